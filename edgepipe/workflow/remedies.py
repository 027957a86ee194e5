"""Lines to paste into a recipe, with what they gain, measured."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Sequence

from edgepipe.errors import EdgepipeError
from edgepipe.events import Emit, stage
from edgepipe.quantize.explain.attribution import Bench, costliest
from edgepipe.quantize.explain.explanation import LayerExplanation, Remedy, is_of_weight
from edgepipe.quantize.explain.splice import Form
from edgepipe.quantize.scheme import Override
from edgepipe.workflow.recovery import Progress, Rerun

MOST_LAYERS = 3
"""Layers that a remedy is about: more would be another scheme for the model."""
_WIDE_WEIGHT_BITS = 8
QUICK_WEIGHTS = 1_000_000
"""Weights up to which rounding them layer by layer takes a few seconds."""
SHARE = 0.5
"""Share of the error that it aims at."""


def find_remedies(
    bench: Bench, layers: Sequence[LayerExplanation], rerun: Rerun | None, requantize: bool, emit: Emit
) -> tuple[Remedy, ...]:
    """What helps the costliest layers, the most first; what gains nothing is left out.

    Where the recipe can be run again soon, it is, with these lines; else the layers are computed in float,
    or on 16 bits, while the others stay as they are.

    Args:
        bench: Both models and the samples.
        layers: The costliest first.
        rerun: The recipe; None where it cannot be run again.
        requantize: Whether to run it even where that takes long.
        emit: Where progress goes.
    """
    worst = [each for each in costliest(layers, SHARE)[:MOST_LAYERS] if each.share > 0]
    if not worst:
        return ()
    found = []
    overrides = [*_wider_weights(worst, rerun), *_overrides(worst)]
    if rerun is not None and rerun.is_long and not requantize and bench.weights > QUICK_WEIGHTS:
        simulated = {override for override in overrides if not override.weight_bits}
    else:
        simulated = set() if rerun is not None else set(overrides)
    with stage(emit, "try what would help", total=len(overrides) * Progress.UNITS) as running:
        for done, override in enumerate(overrides):
            if override in simulated:
                gain_db: float | None = _simulated_db(bench, worst, override)
            else:
                gain_db = _requantized_db(bench, override, rerun, Progress(running, done))
            if gain_db is not None and gain_db > 0:
                found.append(_remedy(override, gain_db, simulated=override in simulated))
            running.advance((done + 1) * Progress.UNITS)
    return tuple(sorted(found, key=lambda remedy: -remedy.gain_db))


def _overrides(worst: Sequence[LayerExplanation]) -> list[Override]:
    """In float, and at 16 bits where some layer's error is that of its grid.

    The grid of a tensor is as fine as the layers on both sides of it: its readers are named too.
    """
    named: dict[str, None] = {}
    for each in worst:
        if each.layer.op != "Input":
            named[each.layer.name] = None
        if not is_of_weight(each):
            named |= dict.fromkeys(each.layer.readers)
    patterns = tuple(map(glob.escape, named))
    if not patterns:
        return []
    overrides = [Override(layers=patterns, keep_float=True)]
    if not all(is_of_weight(each) for each in worst):
        overrides.append(Override(layers=patterns, activation_bits=16))
    return overrides


def _wider_weights(worst: Sequence[LayerExplanation], rerun: Rerun | None) -> list[Override]:
    """Weights of 8 bits where the error is that of narrower ones; only the recipe itself can make them."""
    narrow = [
        each.layer.name
        for each in worst
        if is_of_weight(each) and each.layer.weight is not None and each.layer.weight.bits < _WIDE_WEIGHT_BITS
    ]
    if not narrow or rerun is None:
        return []
    return [Override(layers=tuple(map(glob.escape, narrow)), weight_bits=_WIDE_WEIGHT_BITS)]


def _simulated_db(bench: Bench, worst: Sequence[LayerExplanation], override: Override) -> float:
    """What it gains to compute the layers in another form."""
    tensors = {each.layer.tensor for each in worst}
    form: Form = "float" if override.keep_float else "wide"
    return bench.gain_db(bench.forms("rounded", tensors, instead=form))


def _requantized_db(bench: Bench, override: Override, rerun: Rerun | None, emit: Emit) -> float | None:
    """What the recipe gains by an override; None where this pass or target does not take the scheme."""
    if rerun is None:
        return None
    try:
        _, model = rerun.with_override(override, emit)
        return bench.gain_of_model_db(model)
    except EdgepipeError:
        return None


def _remedy(override: Override, gain_db: float, *, simulated: bool) -> Remedy:
    return Remedy(
        kind="float" if override.keep_float else "8 bits" if override.weight_bits else "16 bits",
        layers=override.layers,
        toml=_toml(override),
        gain_db=gain_db if math.isfinite(gain_db) else 0.0,
        measured="simulated" if simulated else "requantized",
    )


def _toml(override: Override) -> str:
    setting = f"activation_bits = {override.activation_bits}"
    if override.keep_float:
        setting = "keep_float = true"
    elif override.weight_bits:
        setting = f"weight_bits = {override.weight_bits}"
    names = [json.dumps(name, ensure_ascii=False) for name in override.layers]
    listed = ", ".join(names) if len(names) == 1 else "\n    " + ",\n    ".join(names) + ",\n"
    return f"[[passes.overrides]]\nlayers = [{listed}]\n{setting}"
