"""An explanation in words."""

from __future__ import annotations

from edgepipe.quantize.explain.attribution import costliest
from edgepipe.quantize.explain.diagnosis import ActivationDiagnosis
from edgepipe.quantize.explain.explanation import Explanation, LayerExplanation
from edgepipe.units import format_share

SHARE = 0.5
MOST_LAYERS = 5
_CLIPPED = 1e-3
_CLEAR_DB = 3.0
"""A cause is named where the other is at most half of the error."""


def summarize(explanation: Explanation) -> tuple[str, ...]:
    """What it comes to, in a few sentences."""
    if explanation.output_sqnr_db is None:
        return ("Quantization changes nothing at the outputs on these samples.",)
    return (_concentration(explanation), *_causes(explanation), *_recovered(explanation))


def _concentration(explanation: Explanation) -> str:
    layers = explanation.layers
    worst = costliest(layers, SHARE)[:MOST_LAYERS]
    together = sum(each.share for each in worst)
    verb = "makes" if len(worst) == 1 else "make"
    named = ", ".join(f"{each.layer.name} ({format_share(each.share)})" for each in worst)
    return f"{len(worst)} of {len(layers)} layers {verb} {format_share(together)} of the error: {named}."


def _causes(explanation: Explanation) -> list[str]:
    """Where the error of the costliest layers comes from."""
    found = []
    for each in costliest(explanation.layers, SHARE)[:MOST_LAYERS]:
        cause = cause_of(each)
        if cause:
            found.append(f"{each.layer.name}: {cause}.")
    return found


def cause_of(each: LayerExplanation) -> str:
    """What of a layer makes its error; "" where it was not looked at so closely."""
    gain, activation = each.gain, each.layer.activation
    if gain is None:
        return ""
    weight, grid = gain.weight_sqnr_db, gain.grid_sqnr_db
    if weight is not None and (grid is None or weight + _CLEAR_DB < grid):
        return "the rounding of its weight"
    if activation is not None and clips(activation):
        return f"{format_share(activation.clipped)} of its output is clipped"
    if weight is None or (grid is not None and grid + _CLEAR_DB < weight):
        return "the grid of its output"
    return "its weight and the grid of its output, about equally"


def clips(activation: ActivationDiagnosis) -> bool:
    """Whether values lie well beyond a grid: more than one of a thousand, by more than two steps."""
    step = (activation.grid_high - activation.grid_low) / (2**activation.bits - 1)
    beyond = max(activation.high - activation.grid_high, activation.grid_low - activation.low)
    return activation.clipped > _CLIPPED and beyond > 2 * step


def _recovered(explanation: Explanation) -> list[str]:
    """What the recipe's steps gained."""
    if len(explanation.steps) < 2:
        return []
    first, last = explanation.steps[0].output_sqnr_db, explanation.steps[-1].output_sqnr_db
    if first is None or last is None:
        return []
    gained = f"{last - first:+.1f}".replace("-", "−")
    return [f"The recipe's steps moved the outputs from {first:.1f} dB to {last:.1f} dB ({gained} dB)."]
