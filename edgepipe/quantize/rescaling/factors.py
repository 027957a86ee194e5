"""Factors for each channel, folded into the constants of the ops around an activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit
from edgepipe.quantize.rescaling.channels import Channels, is_linear

if TYPE_CHECKING:
    import onnx_ir as ir

    Array = NDArray[Any]
    Factors = NDArray[np.float64]

MOST = 2.0**10
"""Greatest factor, and the inverse of the least: beyond, a channel is as good as dead."""


def rescale(graph: ir.Graph, channels: Channels, factors: Factors) -> None:
    """Divides the activations `channels` by `factors`, and lets what reads them make up for it.

    Bounds of clips stay as they are: whoever calls this sees to it that they don't matter.

    Args:
        graph: The graph; its constants are replaced.
        channels: What to rescale.
        factors: float64 [channels.size], positive.
    """
    for node in channels.writers:
        _divide_output(graph, node, factors)
    for node, index in channels.shifts:
        _divide(graph, node, index, _along(factors, node, channels.axes[node.outputs[0]]))
    for node in channels.readers:
        _put(graph, node, 1, _times_inputs(node, _wide(node, 1), factors))


def _divide_output(graph: ir.Graph, node: ir.Node, factors: Factors) -> None:
    if node.op_type == "Mul":
        index = 0 if edit.constant_input(node, 0) is not None else 1
        rank = len(edit.sizes(node.outputs[0]) or ())
        sizes = edit.array_at(node, index).shape
        axis = next(axis for axis, size in enumerate(sizes, rank - len(sizes)) if size > 1)
        _divide(graph, node, index, _along(factors, node, axis))
        return
    if is_linear(node):
        _put(graph, node, 1, _times_outputs(node, _wide(node, 1), 1 / factors))
    else:
        _divide(graph, node, 1, factors)
    if edit.constant_input(node, 2) is not None:
        _divide(graph, node, 2, factors)


def _along(factors: Factors, node: ir.Node, axis: int) -> Factors:
    """`factors` shaped to broadcast along `axis` of the output of `node`."""
    rank = len(edit.sizes(node.outputs[0]) or ())
    return factors.reshape((-1,) + (1,) * (rank - axis - 1))


def _divide(graph: ir.Graph, node: ir.Node, index: int, divisor: Factors) -> None:
    _put(graph, node, index, _wide(node, index) / divisor)


def _wide(node: ir.Node, index: int) -> Array:
    """A constant in float64, so that it is rounded once."""
    return edit.array_at(node, index).astype(np.float64)


def _put(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    """Puts another constant into an input; the old one may have other users, so it stays."""
    name = str(node.inputs[index].name)  # type: ignore[union-attr]
    node.replace_input_with(index, edit.add_constant(graph, name, np.asarray(array, np.float32)))


def magnitudes(node: ir.Node, inputs: int | None = None) -> NDArray[np.float64]:
    """Greatest magnitude among the weights between each output channel and each input channel.

    Args:
        node: A linear op.
        inputs: Number of its input channels, where several of its input features may be one channel.

    Returns:
        float64 [groups, output channels of a group, input channels of a group].
    """
    lanes = np.abs(_lanes(node, edit.array_at(node, 1))).max(3)
    groups, outputs, features = lanes.shape
    wanted = features if inputs is None else inputs // groups
    return np.asarray(lanes.reshape(groups, outputs, wanted, -1).max(3), np.float64)


def powers(node: ir.Node, inputs: int, heed: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Sum of the squared weights of each input channel, and the number of weights between two channels.

    Args:
        node: A linear op.
        inputs: Number of its input channels.
        heed: What each output channel counts for, float64 [outputs].

    Returns:
        float64 [inputs], and the number of weights between one output and one input channel.
    """
    lanes = np.square(_lanes(node, edit.array_at(node, 1)), dtype=np.float64).sum(3)
    groups, outputs, _ = lanes.shape
    by_feature = (lanes * heed.reshape(groups, outputs, 1)).sum(1).reshape(-1)
    taps = edit.array_at(node, 1).size * groups // (groups * outputs * inputs)
    return by_feature.reshape(inputs, -1).sum(1), taps


def _times_outputs(node: ir.Node, weight: Array, factors: Factors) -> Array:
    lanes = _lanes(node, weight)
    return _from_lanes(node, weight, lanes * factors.reshape(*lanes.shape[:2], 1, 1))


def _times_inputs(node: ir.Node, weight: Array, factors: Factors) -> Array:
    lanes = _lanes(node, weight)
    groups, inputs = lanes.shape[0], lanes.shape[2]
    each = np.repeat(factors, groups * inputs // len(factors))  # a flattened channel is a run of features
    return _from_lanes(node, weight, lanes * each.reshape(groups, 1, inputs, 1))


def _lanes(node: ir.Node, weight: Array) -> Array:
    """A linear op's weight as [groups, outputs of a group, inputs of a group, kernel]."""
    if node.op_type == "Conv":
        group = edit.integer(node, "group", 1)
        return weight.reshape(group, len(weight) // group, weight.shape[1], -1)
    if node.op_type == "ConvTranspose":
        group = edit.integer(node, "group", 1)
        return weight.reshape(group, len(weight) // group, weight.shape[1], -1).transpose(0, 2, 1, 3)
    return (weight if _is_transposed(node) else weight.T)[None, :, :, None]


def _from_lanes(node: ir.Node, weight: Array, lanes: Array) -> Array:
    """What `_lanes` was given, after a change of the lanes."""
    if node.op_type == "Conv":
        return lanes.reshape(weight.shape)
    if node.op_type == "ConvTranspose":
        return lanes.transpose(0, 2, 1, 3).reshape(weight.shape)
    return lanes[0, :, :, 0] if _is_transposed(node) else lanes[0, :, :, 0].T


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(edit.integer(node, "transB", 0))
