"""Weights and biases of one linear op after the other, each for what those before it leave of its input.

The float network and the quantized one are walked through side by side. At each linear op the inputs
that occur in both say how its weight is best rounded, and the mean of its output in both how far its
bias has to move.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.events import Emit, stage
from edgepipe.graph import edit
from edgepipe.quantize import grid as g
from edgepipe.quantize import rounding as r
from edgepipe.quantize.moments import Sums, gather
from edgepipe.quantize.unfold import from_matrix, is_unfolded, to_matrix
from edgepipe.quantize.walk import Batches, Walk
from edgepipe.quantize.weights import QuantizedLinear, channels_of, least_scales, with_bias

if TYPE_CHECKING:
    from edgepipe.quantize.grid import Grid

_DAMPING = 0.01
"""Share of the mean diagonal that keeps the moments' inverse bounded, as in GPTQ."""
_RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Strengths of the pull towards the float weight that the target may be fitted with."""
_HELD_OUT = 4
"""Every fourth batch judges those strengths."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be decided.

    Attributes:
        optimize_rounding: Whether weights are rounded by the error of the output.
        correct_bias: Whether biases make up for the mean error of the output.
        seed: Chooses the rows that are looked at.
    """

    optimize_rounding: bool
    correct_bias: bool
    seed: int


def recover(
    linears: list[QuantizedLinear],
    grids: list[Grid],
    walks: tuple[Walk, Walk],
    task: Task,
    emit: Emit,
) -> list[QuantizedLinear]:
    """Linear ops with less error than rounding each weight to the nearest leaves.

    Args:
        linears: Integers to start from, in order of computation.
        grids: Grid of the input of each.
        walks: Through the float network, and through the one with quantized activations.
        task: What is to be decided.
        emit: Where progress goes.
    """
    found = []
    exact, rounded = walks
    with stage(emit, "recover accuracy", total=len(linears)) as running, ThreadPoolExecutor(2) as pool:
        for index, (linear, grid) in enumerate(zip(linears, grids, strict=True)):
            ahead = pool.submit(exact.advance)
            found_input, real_input = list(rounded.advance()), list(ahead.result())
            real_output, better = exact.compute(), linear
            if task.optimize_rounding and is_unfolded(linear.node):
                shapes = [each.shape for each in real_output]
                random = np.random.default_rng([task.seed, index])
                sums = gather(linear.node, real_input, found_input, shapes, random)
                better = _optimize(linear, grid, sums, centered=task.correct_bias)
            del found_input, real_input
            found.append(_settle_bias(better, grid, rounded, real_output, correct=task.correct_bias))
            running.advance(index + 1)
    return found


def _optimize(linear: QuantizedLinear, grid: Grid, sums: list[Sums], *, centered: bool) -> QuantizedLinear:
    node = linear.node
    weight = to_matrix(node, edit.array_at(node, 1))
    centered = centered and node.op_type != "MatMul"
    target, moments = _target(weight, sums, centered=centered)
    outputs = (weight.shape[0], weight.shape[2])
    step = r.Step(
        scales=np.broadcast_to(linear.scales.astype(np.float64), weight.shape[0] * weight.shape[2]).reshape(
            outputs
        ),
        least=np.broadcast_to(least_scales(linear, grid), weight.shape[0] * weight.shape[2]).reshape(outputs),
        largest=g.weight_max(linear.bits),
        shared=linear.scales.size == 1,
    )
    integers, scales = r.round_weight(target, moments.gram, step)
    return msgspec.structs.replace(
        linear,
        weight=from_matrix(node, integers, linear.weight.shape).astype(np.int8),
        scales=scales.reshape(-1)[: linear.scales.size].astype(np.float32),
    )


def _target(
    weight: NDArray[np.float64], sums: list[Sums], *, centered: bool
) -> tuple[NDArray[np.float64], r.Moments]:
    """The real weight to round, and the damped moments of all batches.

    Fitted to the quantized inputs as closely as it also helps on batches that it was not fitted to;
    where it does not, it is the float weight.
    """
    everything = _total(sums).moments(centered=centered)
    fitted = [each for index, each in enumerate(sums) if index % _HELD_OUT != _HELD_OUT - 1]
    judging = sums[_HELD_OUT - 1 :: _HELD_OUT]
    target = weight
    if judging:
        training, held_out = (_total(each).moments(centered=centered) for each in (fitted, judging))
        trials = [r.least_squares_weight(weight, training.damped(ridge)) for ridge in _RIDGES]
        losses = [r.fitting_loss(weight, trial, held_out) for trial in [weight, *trials]]
        best = int(np.argmin(losses))
        if best > 0:
            target = r.least_squares_weight(weight, everything.damped(_RIDGES[best - 1]))
    return target, everything.damped(_DAMPING)


def _total(sums: list[Sums]) -> Sums:
    total = sums[0]
    for each in sums[1:]:
        total = total + each
    return total


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
    """Mean of `real - found` for each channel, on axis 1."""
    rows = sum(each.size // each.shape[1] for each in real)
    total = np.zeros(real[0].shape[1])
    for exact, rounded in zip(real, found, strict=True):
        total += np.sum(exact - rounded, axis=(0, *range(2, exact.ndim)), dtype=np.float64)
    return np.asarray(total / rows, np.float32)
