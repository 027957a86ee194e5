"""Rounding of one linear op after the other, each for what those before it leave of its input.

The float network and the quantized one are walked through side by side. At each linear op the inputs
that occur in both say how its weight is best rounded, and the means of its outputs how far its bias has
to move. BLAS has one thread meanwhile, so that its sums, and with them all decisions, are the same for
any number of cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.events import Emit, stage
from edgepipe.graph import edit
from edgepipe.quantize import grid as g
from edgepipe.quantize.layerwise import gptq as r
from edgepipe.quantize.layerwise.moments import Sums, gather, rows_wanted, total
from edgepipe.quantize.layerwise.unfold import from_matrix, is_unfolded, to_matrix
from edgepipe.quantize.layerwise.walk import Batches, Walk
from edgepipe.quantize.weights import QuantizedLinear, channels_of, least_scales, with_bias

if TYPE_CHECKING:
    from edgepipe.quantize.grid import Grid

_DAMPING = 0.01
"""Share of the mean diagonal that keeps the moments' inverse bounded: Frantar et al. 2023, step 3."""
_DAMPINGS = (0.01, 0.1, 1.0, 10.0)
"""Likewise where rows are few: what so few say of correlations is then trusted less, as far as helps."""
_RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Strengths of the pull towards the float weight that the target may be fitted with."""
_JUDGED_OUTPUTS = 64
"""Outputs of a group that those strengths are judged on, at most."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be decided besides the weights.

    Attributes:
        correct_bias: Whether biases make up for the mean error of the output.
        seed: Chooses the rows that are looked at.
    """

    correct_bias: bool
    seed: int


def round_layerwise(
    linears: Sequence[QuantizedLinear],
    grids: Sequence[Grid],
    walks: tuple[Walk, Walk],
    task: Task,
    emit: Emit,
) -> list[QuantizedLinear]:
    """Weights with the least error at the output of their op that was found, and biases that fit them.

    The target of each is the real weight that makes up for the error of its input: the asymmetric
    reconstruction of Nagel et al. 2020 (arXiv 2004.10568) without its activation function, in closed form.
    It is rounded by GPTQ (see `rounding`). The bias correction is the empirical one of Nagel et al. 2019
    (arXiv 1906.04721), appendix D, which measures the mean error in the quantized network. ConvTranspose
    and products with a weight of more than two axes keep the integers that they had.

    Args:
        linears: Integers to start from, in order of computation.
        grids: Grid of the input of each.
        walks: Through the float network, and through the one whose activations are on their grids.
        task: What is to be decided besides.
        emit: Where progress goes.
    """
    from scipy import linalg  # noqa: F401 - what is loaded later would not be limited
    from threadpoolctl import threadpool_limits

    found = []
    exact, rounded = walks
    with (
        stage(emit, "round layer by layer", total=len(linears)) as running,
        ThreadPoolExecutor(1) as pool,
        threadpool_limits(1, user_api="blas"),
    ):
        for index, (linear, grid) in enumerate(zip(linears, grids, strict=True)):
            ahead = pool.submit(exact.advance)
            quantized, real = list(rounded.advance()), list(ahead.result())
            output, better = exact.compute(), linear
            if is_unfolded(linear.node):
                random = np.random.default_rng([task.seed, index])
                sums = gather(linear.node, real, quantized, [each.shape for each in output], random)
                better = _round(linear, grid, sums, has_bias=task.correct_bias)
            del quantized, real  # the walks have let go of them where no later op reads them
            found.append(_settle_bias(better, grid, rounded, output, correct=task.correct_bias))
            del output  # so that the float walk can let go of it on its way to the next op
            running.advance(index + 1)
    return found


def _round(
    linear: QuantizedLinear, grid: Grid, sums: tuple[Sums, Sums], *, has_bias: bool
) -> QuantizedLinear:
    """The weight rounded for all rows; where these are few, only if that stands up to rows held out."""
    node = linear.node
    weight = to_matrix(node, edit.array_at(node, 1))
    groups, inputs, outputs = weight.shape
    step = r.Step(
        scales=_by_output(linear.scales, groups, outputs),
        least=_by_output(least_scales(linear, grid), groups, outputs),
        largest=g.weight_max(linear.bits),
        shared=linear.scales.size == 1,
    )
    centered = has_bias and node.op_type != "MatMul"
    ridge = _ridge(weight, sums, centered=centered)
    damping: float | None = _DAMPING
    if total(sums).rows < rows_wanted(inputs):
        damping = _damping(linear, step, sums, ridge, centered=centered)
    if damping is None:
        return linear
    moments = total(sums).moments(centered=centered)
    integers, scales = _rounded(weight, step, moments, ridge, damping)
    return msgspec.structs.replace(
        linear,
        weight=from_matrix(node, integers, linear.weight.shape).astype(np.int8),
        scales=scales.reshape(-1)[: linear.scales.size].astype(np.float32),
    )


def _rounded(
    weight: NDArray[np.float64], step: r.Step, moments: r.Moments, ridge: float | None, damping: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Integers and scales for inputs of these moments."""
    target = weight if ridge is None else r.least_squares_weight(weight, moments.damped(ridge))
    return r.round_weight(target, moments.damped(damping).gram, step)


def _damping(
    linear: QuantizedLinear, step: r.Step, sums: tuple[Sums, Sums], ridge: float | None, *, centered: bool
) -> float | None:
    """The damping whose rounding for some rows loses least on rows that it did not see.

    None where the integers of `linear` lose no more there.
    """
    fitted, judging = sums
    if not fitted.rows or not judging.rows:
        return None
    weight, present = (
        to_matrix(linear.node, each) for each in (edit.array_at(linear.node, 1), linear.real_weight)
    )
    few = slice(None, None, -(-weight.shape[2] // _JUDGED_OUTPUTS))
    some = msgspec.structs.replace(step, scales=step.scales[:, few], least=step.least[:, few])
    training, held_out = (each.moments(centered=centered) for each in (fitted, judging))
    losses = [r.fitting_loss(weight[..., few], present[..., few], held_out)]
    for damping in _DAMPINGS:
        integers, scales = _rounded(weight[..., few], some, training, ridge, damping)
        losses.append(r.fitting_loss(weight[..., few], integers * scales[:, None], held_out))
    return (None, *_DAMPINGS)[int(np.argmin(losses))]


def _by_output(scales: NDArray[np.floating], groups: int, outputs: int) -> NDArray[np.float64]:
    """One scale for each output: float64 [groups, outputs] of [channels] or [1]."""
    return np.broadcast_to(scales.astype(np.float64), groups * outputs).reshape(groups, outputs)


def _ridge(weight: NDArray[np.float64], sums: tuple[Sums, Sums], *, centered: bool) -> float | None:
    """How strongly the weight to round, fitted to the quantized inputs, is to be drawn to the float weight.

    It is what helps most on rows that the weight was not fitted to; None where nothing helps there.
    """
    if not sums[0].rows or not sums[1].rows:
        return None
    some = weight[:, :, :: -(-weight.shape[2] // _JUDGED_OUTPUTS)]
    training, held_out = (each.moments(centered=centered) for each in sums)
    trials = [r.least_squares_weight(some, training.damped(ridge)) for ridge in _RIDGES]
    losses = [r.fitting_loss(some, trial, held_out) for trial in [some, *trials]]
    return (None, *_RIDGES)[int(np.argmin(losses))]


def _settle_bias(
    linear: QuantizedLinear, grid: Grid, rounded: Walk, real_output: Batches, *, correct: bool
) -> QuantizedLinear:
    """Runs the op with its rounded weight; moves its bias by the mean error of its output, if it has one."""
    node = linear.node
    real_bias = edit.constant_input(node, 2)
    if node.op_type == "MatMul":
        rounded.compute(linear.real_weight)
        return linear
    bias = np.zeros(channels_of(node), np.float32) if real_bias is None else real_bias
    output = rounded.compute(linear.real_weight, bias)
    if correct:
        shift = _mean_difference(real_output, output)
        for batch in output:
            np.add(batch, shift.reshape(1, -1, *(1,) * (batch.ndim - 2)), out=batch)
        bias = bias + shift
    return with_bias(linear, None if real_bias is None and not correct else bias, grid)


def _mean_difference(real: Batches, found: Batches) -> NDArray[np.float32]:
    """Mean of `real - found` for each channel, on axis 1: float32 [channels]."""
    rows = sum(each.size // each.shape[1] for each in real)
    difference = np.zeros(real[0].shape[1])
    for exact, rounded in zip(real, found, strict=True):
        difference += np.sum(exact - rounded, axis=(0, *range(2, exact.ndim)), dtype=np.float64)
    return np.asarray(difference / rows, np.float32)
