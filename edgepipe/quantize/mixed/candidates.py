"""What each linear op may become: its weight and bias at every width it could be rounded to.

What a layer costs depends on how it is rounded: optimised rounding spares layers whose inputs are
correlated far more than others. So candidates are rounded as the layer will be, to nearest or by the error
of its output, with the bias corrected for the mean error, while all other layers stay float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.events import Emit, silent, stage
from edgepipe.graph import edit
from edgepipe.model import Model
from edgepipe.quantize import grid as g
from edgepipe.quantize.layerwise.gptq import round_in_order
from edgepipe.quantize.layerwise.unfold import count_rows, from_matrix, rows_at, to_matrix
from edgepipe.quantize.scheme import FLOAT_BITS
from edgepipe.quantize.weights import Granularity, channel_axis, channels_of, mean_output_error

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

_LEAST_ROWS = 2048
_ROWS_PER_INPUT = 4
"""Rows looked at for each input that an output sums over, and at least: enough for moments of full rank."""
_DAMPING, _STRONG_DAMPING = 0.01, 1.0
_NARROWEST = {8: 1.0, 7: 0.95, 6: 0.9, 5: 0.8, 4: 0.6, 3: 0.45, 2: 0.3}
"""The least part of a channel's greatest magnitude that a scale is tried for, by bits: few bits clip more."""
_FINENESS = 0.05


class Constants(msgspec.Struct, frozen=True):
    """Weight and bias of a linear op, real numbers on the grid of some width.

    Attributes:
        weight: float32, shaped as the op's own.
        bias: float32 [channels]; None for an op that takes none.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def arrays(self) -> list[NDArray[np.float32]]:
        """The weight, and the bias if there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def float_constants(node: ir.Node) -> Constants:
    """The constants of a linear op as they are; zeros for a bias that it could have."""
    weight, bias = edit.array_at(node, 1), edit.constant_input(node, 2)
    if bias is None and node.op_type != "MatMul":
        bias = np.zeros(channels_of(node), np.float32)
    return Constants(weight, bias)


def rounded_constants(
    node: ir.Node, bits: int, granularity: Granularity, input_mean: NDArray[np.float64] | None
) -> Constants:
    """The constants of a linear op with its weight rounded to the nearest, on a grid that holds all of it.

    Args:
        node: The op.
        bits: Bits of the weight's integers; `FLOAT_BITS` leaves it as it is.
        granularity: A scale for each output channel, or one in all.
        input_mean: Mean of each input channel, float64 [channels], to correct the bias with (Nagel et
            al. 2019, arXiv 1906.04721, equation 17); None for no correction.
    """
    exact = float_constants(node)
    if bits == FLOAT_BITS:
        return exact
    axis = channel_axis(node) if granularity == "per-channel" else None
    weight = _on_grid(exact.weight, g.weight_scales(_magnitudes(exact.weight, axis), bits), axis, bits)
    if exact.bias is None or input_mean is None:
        return Constants(weight, exact.bias)
    shift = mean_output_error(node, weight - exact.weight, input_mean)
    return Constants(weight, (exact.bias - shift).astype(np.float32))


def optimized_constants(
    node: ir.Node, widths: Sequence[int], granularity: Granularity, inputs: Inputs
) -> tuple[Constants, ...]:
    """The constants of a linear op with its weight rounded by the error of its output, at each width.

    The scales make the squared error of the weights least; the rounding is GPTQ's (Frantar et al. 2023, arXiv
    2210.17323, algorithm 1), and the bias makes up for the mean error that it leaves.

    Args:
        node: The op, of a kind that can be unfolded.
        widths: Bits of the weight's integers; `FLOAT_BITS` leaves it as it is.
        granularity: A scale for each output channel, or one in all.
        inputs: What it takes on the calibration samples.
    """
    exact = float_constants(node)
    matrix = to_matrix(node, exact.weight)
    groups, _, outputs = matrix.shape
    axis = channel_axis(node) if granularity == "per-channel" else None
    narrow = [bits for bits in widths if bits != FLOAT_BITS]
    steps, largest = [], []
    for bits in narrow:
        scales = _least_error_scales(exact.weight, axis, bits)
        steps.append(np.broadcast_to(scales.astype(np.float64), (groups * outputs,)).reshape(groups, outputs))
        largest.append(np.full((groups, outputs), float(g.weight_max(bits))))
    found = {FLOAT_BITS: exact}
    if narrow:  # all widths at once, as outputs of one op: what they share is computed once
        step = np.concatenate(steps, axis=1)
        tiled = np.tile(matrix, (1, 1, len(narrow)))
        integers = round_in_order(tiled, inputs.damped_gram(), step, np.concatenate(largest, axis=1))
        rounded = np.split(integers * step[:, None, :], len(narrow), axis=2)
        found |= {
            bits: _compensated(node, exact, matrix, each, inputs)
            for bits, each in zip(narrow, rounded, strict=True)
        }
    return tuple(found[bits] for bits in widths)


def _compensated(
    node: ir.Node,
    exact: Constants,
    matrix: NDArray[np.float64],
    rounded: NDArray[np.float64],
    inputs: Inputs,
) -> Constants:
    """A rounded weight, [groups, inputs, outputs], with the bias that makes up for its mean error."""
    weight = from_matrix(node, rounded, exact.weight.shape).astype(np.float32)
    if exact.bias is None:
        return Constants(weight, None)
    shift = np.einsum("gio,gi->go", rounded - matrix, inputs.mean).reshape(-1)
    return Constants(weight, (exact.bias - shift).astype(np.float32))


class Inputs(msgspec.Struct, frozen=True):
    """Moments of the rows that a linear op multiplies its weight with.

    Attributes:
        mean: Their mean, float64 [groups, inputs].
        gram: Their second moments about it, or about 0 for an op without bias, float64
            [groups, inputs, inputs].
        rows: Number of the rows.
    """

    mean: NDArray[np.float64]
    gram: NDArray[np.float64]
    rows: int

    def damped_gram(self) -> NDArray[np.float64]:
        """With a share of its mean diagonal added to its diagonal, as in GPTQ: never singular.

        Fewer rows than inputs say little of correlations, and are trusted less.
        """
        size = self.gram.shape[-1]
        level = (
            (_DAMPING if self.rows >= size else _STRONG_DAMPING)
            * np.trace(self.gram, axis1=1, axis2=2)
            / size
        )
        return np.asarray(self.gram + np.maximum(level, 1e-12)[:, None, None] * np.eye(size))


def input_moments(
    model: Model, nodes: Sequence[ir.Node], x: NDArray[Any], seed: int, emit: Emit = silent
) -> dict[ir.Node, Inputs]:
    """Moments of the inputs of linear ops that can be unfolded.

    Args:
        model: The float model.
        nodes: The ops.
        x: Samples, at least one batch of the model.
        seed: Chooses the rows that are looked at.
        emit: Where progress goes.
    """
    size = model.inputs[0].shape[0] or 1
    sums: dict[ir.Node, list[Any]] = {}
    watched = {str(value.name) for node in nodes for value in (node.inputs[0], node.outputs[0])}  # type: ignore[union-attr]
    session, names = _watching(model, sorted(watched - {model.inputs[0].name}))
    starts = range(0, len(x) // size * size, size)
    random = np.random.default_rng(seed)
    with stage(emit, "inputs of layers", total=len(starts)) as running:
        for done, start in enumerate(starts, start=1):
            batch = np.ascontiguousarray(x[start : start + size])
            values = dict(zip(names, session.run(names, {model.inputs[0].name: batch}), strict=True))
            values[model.inputs[0].name] = batch
            for node in nodes:
                source, result = (values[str(value.name)] for value in (node.inputs[0], node.outputs[0]))  # type: ignore[union-attr]
                inputs = to_matrix(node, edit.array_at(node, 1)).shape[1]
                count = count_rows(node, result.shape)
                wanted = min(count, -(-max(_ROWS_PER_INPUT * inputs, _LEAST_ROWS) // len(starts)))
                places = np.sort(random.choice(count, wanted, replace=False))
                rows = rows_at(node, source, places, result.shape).astype(np.float64)
                parts = [rows.sum(1), rows.swapaxes(1, 2) @ rows, rows.shape[1]]
                sums[node] = (
                    [one + other for one, other in zip(sums[node], parts, strict=True)]
                    if node in sums
                    else parts
                )
            running.advance(done)
    return {node: _inputs(*total, centered=node.op_type != "MatMul") for node, total in sums.items()}


def _inputs(
    total: NDArray[np.float64], products: NDArray[np.float64], rows: int, *, centered: bool
) -> Inputs:
    mean, gram = total / rows, products / rows
    return Inputs(mean, gram - mean[:, :, None] * mean[:, None, :] if centered else gram, rows)


def _watching(model: Model, names: list[str]) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """A session that returns these tensors."""
    import onnxruntime

    proto = model.to_onnx()
    edit.return_also(proto.graph, names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # sums keep their order
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ), names


def _magnitudes(weight: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """The greatest magnitude of each channel along `axis`, or of all."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    return np.asarray(np.abs(weight).max(axis=others, initial=0.0), np.float32).reshape(-1)


def _least_error_scales(weight: NDArray[np.float32], axis: int | None, bits: int) -> NDArray[np.float32]:
    """Scales of the symmetric grid of least squared error, for each channel along `axis` or in all."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    greatest = _magnitudes(weight, axis)
    best = np.full(greatest.shape, np.inf)
    scales = g.weight_scales(greatest, bits)
    for ratio in np.arange(1.0, _NARROWEST[bits] - 1e-9, -_FINENESS):
        trial = g.weight_scales(greatest * ratio, bits)
        error = _on_grid(weight, trial, axis, bits)
        error -= weight
        errors = np.square(error, out=error).sum(axis=others, dtype=np.float64).reshape(-1)
        scales, best = np.where(errors < best, trial, scales), np.minimum(errors, best)
    return scales


def _on_grid(
    weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None, bits: int
) -> NDArray[np.float32]:
    steps, largest = g.along(scales, axis or 0, weight.ndim), g.weight_max(bits)
    rounded = weight / steps
    np.clip(np.rint(rounded, out=rounded), -largest, largest, out=rounded)
    return np.asarray(np.multiply(rounded, steps, out=rounded), np.float32)
