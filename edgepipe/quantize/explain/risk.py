"""Layers at risk: those whose quantization is likely what the outputs suffer from, with the remedy.

The limits lie between what was measured on networks that quantize well (DS-CNN, ResNet-20, MobileNetV1
0.25 and EfficientNet-Lite0; 64 calibration samples; asymmetric and symmetric activations) and on the
same networks spoilt on purpose: one scale for all channels, weights of 4 bits, a channel of 30 or 100
times the others, calibration on one sample, on samples of another scale, or with one of 100 times the
values. A layer's median channel kept at least 25 dB in all of the former, and had at most 20 dB in the
latter where no values were clipped.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator

import msgspec

from edgepipe.quantize.explain.diagnosis import (
    ActivationDiagnosis,
    Diagnosis,
    LayerDiagnosis,
    WeightDiagnosis,
)
from edgepipe.quantize.plan import FIXED
from edgepipe.units import format_share

SOUND_OUTPUT_DB = 30.0
"""Outputs as good as that do not suffer, whatever happens inside."""
LEAST_CHANNEL_DB = 22.0
"""What the median channel of a sound layer keeps: 25 dB or more were measured."""
LEAST_CLIPPED_DB = 25.0
"""What a layer keeps whose values are clipped without harm."""
MOST_CLIPPED = 1e-3
FAR_STEPS = 16.0
"""Values clipped by less than that are within a few per cent of the grid."""
LEAST_USED = 0.2
"""Share of its grid that a layer's values span at least; symmetric grids come to 0.34."""
WIDE_SPREAD = 4.0
OUTLIER_DB = 6.0
"""What a tensor's SQNR exceeds that of its median channel by where a few channels outweigh the others."""


class Risk(msgspec.Struct, frozen=True):
    """A layer at risk.

    Attributes:
        layer: Its name.
        text: What is wrong with it.
        remedy: What to do.
        sqnr_db: What is left of it; the less the worse.
    """

    layer: str
    text: str
    remedy: str
    sqnr_db: float


def at_risk(diagnosis: Diagnosis) -> tuple[Risk, ...]:
    """The layers at risk, the worst first; none where the outputs are sound."""
    output = diagnosis.output_sqnr_db
    if output is None or output >= SOUND_OUTPUT_DB:
        return ()
    return tuple(sorted(_risks(diagnosis), key=lambda risk: risk.sqnr_db))


def _risks(diagnosis: Diagnosis) -> Iterator[Risk]:
    for layer in diagnosis.layers:
        own, channel = layer.local_sqnr_db, layer.channel_sqnr_db
        if layer.activation is not None and own is not None and _clips_far(layer.activation):
            if own < LEAST_CLIPPED_DB:
                yield _clipped(layer, layer.activation, own)
        elif channel is not None and channel < LEAST_CHANNEL_DB and layer.op not in FIXED:
            yield _coarse(layer, channel)


def _clips_far(activation: ActivationDiagnosis) -> bool:
    return activation.clipped >= MOST_CLIPPED and overshoot_steps(activation) > FAR_STEPS


def overshoot_steps(activation: ActivationDiagnosis) -> float:
    """How many steps beyond its grid the farthest value lies; negative where none does."""
    step = (activation.grid_high - activation.grid_low) / (2**activation.bits - 1)
    beyond = max(activation.high - activation.grid_high, activation.grid_low - activation.low)
    return beyond / step if step else 0.0


def used_share(activation: ActivationDiagnosis) -> float:
    """Share of the grid's range that the values, with zero, span."""
    span = activation.grid_high - activation.grid_low
    return (max(activation.high, 0.0) - min(activation.low, 0.0)) / span if span else 1.0


def _clipped(layer: LayerDiagnosis, activation: ActivationDiagnosis, own: float) -> Risk:
    share = format_share(activation.clipped)
    text = (
        f"{share} of its values are clipped, up to {_farthest(activation):.3g} at a grid that ends at "
        f"{_end(activation):.3g}"
    )
    remedy = 'calibrate on more samples, like those of the application, or take ranges = "extrapolated"'
    return Risk(layer.name, text, remedy, own)


def _farthest(activation: ActivationDiagnosis) -> float:
    above = activation.high - activation.grid_high >= activation.grid_low - activation.low
    return activation.high if above else activation.low


def _end(activation: ActivationDiagnosis) -> float:
    above = activation.high - activation.grid_high >= activation.grid_low - activation.low
    return activation.grid_high if above else activation.grid_low


def _coarse(layer: LayerDiagnosis, channel: float) -> Risk:
    """A layer whose steps are too wide for what most of its channels hold."""
    weight, activation = layer.weight, layer.activation
    if activation is not None and used_share(activation) < LEAST_USED:
        text = (
            f"its values span {format_share(used_share(activation))} of its grid, which some calibration "
            "sample stretched"
        )
        return Risk(layer.name, text, 'ranges = "mse", or calibrate without the odd samples', channel)
    if weight is not None and weight.bits < 8 and _weight_is_worse(weight, channel):
        text = f"its weight has {weight.bits} bits, which leaves {channel:.0f} dB in its median channel"
        return Risk(layer.name, text, override(layer, "weight_bits = 8"), channel)
    if weight is not None and weight.scales == 1 and weight.channel_spread >= WIDE_SPREAD:
        text = (
            f"one scale serves weight channels that differ {weight.channel_spread:.0f}-fold, which leaves "
            f"{channel:.0f} dB in its median channel"
        )
        remedy = 'granularity = "per-channel", or the pass quantize.equalize before'
        return Risk(layer.name, text, remedy, channel)
    text = f"{channel:.0f} dB are left in its median channel"
    if layer.local_sqnr_db is not None and layer.local_sqnr_db - channel > OUTLIER_DB:
        text = f"few channels are far wider than the others, which leaves {channel:.0f} dB in the median one"
    return Risk(layer.name, text, _finer(layer), channel)


def _weight_is_worse(weight: WeightDiagnosis, channel: float) -> bool:
    return weight.sqnr_db is None or weight.sqnr_db < channel + OUTLIER_DB


def _finer(layer: LayerDiagnosis) -> str:
    if layer.op == "Input":
        return 'scale the channels of the input alike, or take ranges = "mse"'
    named = override(layer, "keep_float = true", *layer.readers)
    return f"the pass quantize.equalize before, or in the recipe {named}"


def override(layer: LayerDiagnosis, setting: str, *others: str) -> str:
    """The lines of a recipe for a layer and others, on one line, as an inline table of TOML.

    A tensor has a grid of its own wherever an integer layer reads it, so that what spares a layer's
    output names its readers too.
    """
    names = ", ".join(json.dumps(glob.escape(name), ensure_ascii=False) for name in (layer.name, *others))
    return f"overrides = [{{ layers = [{names}], {setting} }}]"
