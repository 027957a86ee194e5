"""SmoothQuant: outlying channels of activations moved into weights, which hold them more easily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.errors import CalibrationDataMissing
from edgepipe.events import stage
from edgepipe.graph import edit
from edgepipe.model import Model
from edgepipe.passes import Context, Pass
from edgepipe.quantize.rescaling.channels import Channels, find_channels
from edgepipe.quantize.rescaling.factors import MOST, magnitudes, rescale
from edgepipe.quantize.rescaling.spread import Spread, measure_spread

if TYPE_CHECKING:
    Vector = NDArray[np.float64]

_DENSE = frozenset({"Gemm", "MatMul"})
_STRENGTHS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
"""Strengths that a search tries for each layer; 0.0 stands for leaving it as it is."""


class Smooth(Pass, frozen=True, kw_only=True):
    """Moves outlying channels of activations into the weights that read them.

    SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), equation 4: channel j of what dense layers read is
    divided by ``max|x_j|**a / max|w_j|**(1 - a)``, and the weights are multiplied by it. The divisor
    goes into the scale and bias of the layer normalization before them, or into the linear op there.
    What is computed stays the same to float32 rounding.

    Attributes:
        strength: The exponent ``a``: how much of the difficulty moves into the weights.
        search: Whether each layer takes the strength that makes its modelled rounding noise least, or
            stays as it is, instead of `strength`.
        samples: Calibration samples to measure channels on.
    """

    needs_calibration: ClassVar[bool] = True

    strength: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.5
    search: bool = True
    samples: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64

    def apply(self, model: Model, context: Context) -> Model:
        """The smoothed float model.

        Raises:
            CalibrationDataMissing: The context has no samples.
        """
        if edit.is_quantized(model):
            return model
        if context.calibration is None:
            raise CalibrationDataMissing(
                "smoothing measures channels on samples, and there are none", where=model.name
            )
        graph_model = edit.open_graph(model)
        sets = [each for each in find_channels(graph_model.graph) if _is_smoothable(each)]
        if not sets:
            return model
        axes = {name: axis for each in sets for name, axis in _read(each).items()}
        seen = measure_spread(model, axes, context.calibration, self.samples, context.emit)
        with stage(context.emit, "smooth") as running:
            changed = 0
            for channels in sets:
                factors = self._factors(channels, _widest([seen[name] for name in _read(channels)]))
                if (factors != 1.0).any():
                    rescale(graph_model.graph, channels, factors)
                    changed += 1
            running.detail = f"{changed} of {len(sets)} activations"
        return edit.freeze_tidied(graph_model, model.name)

    def _factors(self, channels: Channels, spread: Spread) -> Vector:
        peaks = np.maximum(np.abs(spread.low), np.abs(spread.high))
        if len(peaks) != channels.size:  # a flattened channel is a run of features
            return np.ones(channels.size)
        between = [magnitudes(node, channels.size)[0] for node in channels.readers]
        weights = np.max([each.max(0) for each in between], axis=0)
        if not self.search:
            return migration(peaks, weights, self.strength)
        trials = [
            np.ones(channels.size) if strength == 0.0 else migration(peaks, weights, strength)
            for strength in _STRENGTHS
        ]
        costs = [sum(_rounding_noise(each, spread, trial) for each in between) for trial in trials]
        return trials[int(np.argmin(costs))]


def migration(peaks: Vector, weights: Vector, strength: float) -> Vector:
    """What each channel is divided by: Xiao et al. 2022 (arXiv 2211.10438), equation 4.

    Args:
        peaks: Greatest magnitude of each channel of the activation, float64 [channels].
        weights: Greatest magnitude of the weights that read it, likewise.
        strength: The exponent of the former.

    Returns:
        float64 [channels], with geometric mean 1 over the channels that are alive; 1 for the others.
    """
    alive = (peaks > 0) & (weights > 0)
    if not alive.any():
        return np.ones_like(peaks)
    logs = strength * np.log(np.where(alive, peaks, 1)) - (1 - strength) * np.log(np.where(alive, weights, 1))
    centred = np.where(alive, logs - logs[alive].mean(), 0.0)
    return np.clip(np.exp(centred), 1 / MOST, MOST)


def _rounding_noise(weight: Vector, spread: Spread, factors: Vector) -> float:
    """Power that rounding input and weights [outputs, inputs] of a dense layer to 8 bits adds to its output.

    The weights have a step for each output channel, the input has one in all: see
    `edgepipe.quantize.rescaling.noise`.
    """
    low, high = np.minimum(spread.low / factors, 0).min(), np.maximum(spread.high / factors, 0).max()
    scaled = weight * factors
    steps = scaled.max(1) / 127
    of_input = ((high - low) / 255) ** 2 * np.square(scaled).sum()
    of_weights = np.square(steps).sum() * (spread.square / factors**2).sum()
    return float(of_input + of_weights) / 12


def _is_smoothable(channels: Channels) -> bool:
    """Whether dense layers alone read these, and no bounded or added activation stands in between."""
    dense = all(node.op_type in _DENSE for node in channels.readers)
    return dense and not channels.clips


def _read(channels: Channels) -> dict[str, int]:
    """What the dense layers read, with the axis of the channels."""
    values = [node.inputs[0] for node in channels.readers]
    return {str(value.name): channels.axes[value] for value in values}


def _widest(spreads: list[Spread]) -> Spread:
    """What several activations show together that take one factor."""
    return Spread(
        low=np.min([each.low for each in spreads], axis=0),
        high=np.max([each.high for each in spreads], axis=0),
        mean=np.mean([each.mean for each in spreads], axis=0),
        square=np.mean([each.square for each in spreads], axis=0),
    )
