"""Integer weights and biases of linear ops, with the correction of the bias for rounded weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit
from edgepipe.quantize import grid as g

if TYPE_CHECKING:
    import onnx_ir as ir

Granularity = Literal["per-channel", "per-tensor"]


class QuantizedLinear(msgspec.Struct, frozen=True):
    """The constants of a linear op as integers.

    Attributes:
        node: The op.
        bits: Bits of its weight's integers; fewer than 8 are stored as int8 here.
        weight: int8, shaped as the float weight.
        scales: float32 [channels], or [1] for one in all.
        axis: Axis of the output channels in `weight`.
        bias: int32 [channels]; None where the op has none.
        bias_scales: float32, shaped as `scales`: input scale times weight scales, if any.
        raised: Number of channels whose scale was raised so that the int32 bias fits.
    """

    node: Any
    bits: int
    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int
    bias: NDArray[np.int32] | None
    bias_scales: NDArray[np.float32] | None
    raised: int

    @property
    def real_weight(self) -> NDArray[np.float32]:
        """What the integers of the weight stand for: float32, shaped as it."""
        return self.weight.astype(np.float32) * g.along(self.scales, self.axis, self.weight.ndim)


def channel_axis(node: ir.Node) -> int | None:
    """Axis of the output channels in a linear op's weight; None where they have no axis of their own."""
    weight = edit.constant_input(node, 1)
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1 if edit.integer(node, "group", 1) == 1 else None
        case "Gemm":
            return 0 if edit.integer(node, "transB", 0) else 1
        case _:
            return 1 if weight is not None and weight.ndim == 2 else None


def quantize_linear(
    node: ir.Node,
    input_grid: g.Grid,
    granularity: Granularity,
    input_mean: NDArray[np.float64] | None,
    *,
    bits: int = 8,
) -> QuantizedLinear:
    """Rounds the constants of a linear op.

    Args:
        node: The op; its weight is constant, its bias constant or absent.
        input_grid: Grid of its data input.
        granularity: A scale for each output channel, or one in all.
        input_mean: Mean of each input channel, float64 [channels], to correct the bias with; None for
            no correction.
        bits: Bits of the weight's integers.
    """
    weight, bias = edit.array_at(node, 1), edit.constant_input(node, 2)
    axis = channel_axis(node) if granularity == "per-channel" else None
    scales = g.weight_scales(_magnitudes(weight, axis), bits)
    raised = 0
    if bias is not None:
        safe = _safe(scales, node, input_grid)
        raised, scales = int((safe != scales).sum()), safe
    integers = g.quantize_weight(weight, scales, axis or 0, bits)
    linear = QuantizedLinear(node, bits, integers, scales, axis or 0, None, None, raised)
    if input_mean is not None and node.op_type != "MatMul":
        shift = mean_output_error(node, linear.real_weight - weight, input_mean)
        bias = (np.zeros(channels_of(node)) if bias is None else bias) - shift
    return with_bias(linear, bias, input_grid)


def with_bias(
    linear: QuantizedLinear, bias: NDArray[np.floating] | None, input_grid: g.Grid
) -> QuantizedLinear:
    """The same weight with another bias.

    Args:
        linear: The op.
        bias: Real, [channels]; None for no bias.
        input_grid: Grid of its data input.
    """
    if bias is None:
        return msgspec.structs.replace(linear, bias=None, bias_scales=None)
    scales = np.float32(input_grid.scale) * linear.scales
    rounded = g.quantize_bias(np.asarray(bias, np.float32), scales)
    return msgspec.structs.replace(linear, bias=rounded, bias_scales=scales)


def least_scales(linear: QuantizedLinear, input_grid: g.Grid) -> NDArray[np.float64]:
    """Scales below which the int32 bias of an op could overflow, or the scale itself lose its precision.

    Args:
        linear: The op.
        input_grid: Grid of its data input.

    Returns:
        float64, shaped as its scales.
    """
    floor = np.full_like(linear.scales, g.SMALLEST_WEIGHT_SCALE)
    if edit.constant_input(linear.node, 2) is None:
        return floor.astype(np.float64)
    return _safe(floor, linear.node, input_grid).astype(np.float64)


def _safe(scales: NDArray[np.float32], node: ir.Node, input_grid: g.Grid) -> NDArray[np.float32]:
    weight = edit.array_at(node, 1)
    return g.safe_weight_scales(
        scales,
        edit.array_at(node, 2),
        input_grid.scale,
        weight.size // channels_of(node),
        activation_bits=input_grid.bits,
    )


def _magnitudes(weight: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    if axis is None:
        return np.asarray(np.abs(weight).max(initial=0.0), np.float32).reshape(1)
    others = tuple(each for each in range(weight.ndim) if each != axis)
    return np.asarray(np.abs(weight).max(axis=others, initial=0.0), np.float32)


def channels_of(node: ir.Node) -> int:
    """Number of output channels of a linear op."""
    weight = edit.array_at(node, 1)
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * edit.integer(node, "group", 1)
    return int(weight.shape[channel_axis(node) or 0]) if node.op_type != "MatMul" else int(weight.shape[-1])


def mean_output_error(
    node: ir.Node, error: NDArray[np.float32], input_mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far an error of the weight moves the mean of each output channel, float64 [channels].

    ``E[y'] - E[y] = error · E[x]``: Nagel et al. 2019 (arXiv 1906.04721), equation 17, with the mean of
    the input taken from calibration samples rather than from batch normalization.

    Args:
        node: A Conv, ConvTranspose or Gemm.
        error: Dequantized weight minus weight, shaped as the weight.
        input_mean: Mean of each input channel, float64 [channels].
    """
    if node.op_type == "Gemm":
        matrix = error if edit.integer(node, "transB", 0) else error.T
        return np.asarray(matrix @ input_mean, np.float64)
    group = edit.integer(node, "group", 1)
    summed = error.sum(axis=tuple(range(2, error.ndim)), dtype=np.float64)
    blocks = summed.reshape(group, -1, summed.shape[1])
    pattern = "gio,gi->go" if node.op_type == "ConvTranspose" else "goi,gi->go"
    return np.asarray(np.einsum(pattern, blocks, input_mean.reshape(group, -1)).reshape(-1), np.float64)
