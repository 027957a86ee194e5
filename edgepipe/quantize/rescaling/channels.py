"""Which activations can trade a factor for each channel between the ops before and after them.

Dividing what an op puts out by a positive factor for each channel, and multiplying the weights of all
that read it by the same, changes nothing in a float network, if everything in between is positively
homogeneous (``f(s x) = s f(x)`` for ``s > 0``: Nagel et al. 2019, arXiv 1906.04721, section 4.1) and
keeps channels apart. Here such sets of activations are found, however many ops write and read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_POINTWISE = frozenset({"Clip", "Dropout", "Identity", "LeakyRelu", "PRelu", "Relu"})
"""Homogeneous ops that look at one element at a time; a Clip is so between its bounds alone."""
_SPATIAL = frozenset({
    "AveragePool", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "ReduceMax",
    "ReduceMean", "ReduceSum", "Resize", "Slice", "Squeeze", "Unsqueeze",
})  # fmt: skip
"""Ops along other axes than that of the channels."""
_JOINING = frozenset({"Add", "Sub"})


class Channels(msgspec.Struct, frozen=True):
    """Activations that must take the same factor for each channel, and all that touches them.

    Attributes:
        size: Number of channels.
        writers: Ops whose output channels these are: linear ones, LayerNormalization, or a product with
            a constant for each channel.
        readers: Linear ops with a constant weight that these are the input channels of.
        shifts: Constants that are added on the way, as (node, index of the input).
        clips: Clips on the way.
        axes: Axis of the channels in each of the activations.
    """

    size: int
    writers: tuple[Any, ...]
    readers: tuple[Any, ...]
    shifts: tuple[tuple[Any, int], ...]
    clips: tuple[Any, ...]
    axes: Mapping[Any, int]


def find_channels(graph: ir.Graph) -> tuple[Channels, ...]:
    """All sets of activations of a graph that can take a factor for each channel, in order."""
    found: list[Channels] = []
    taken: set[ir.Value] = set()
    for node in edit.nodes(graph):
        axis = written_axis(node)
        if axis is None or node.outputs[0] in taken:
            continue
        search = _Search(int(edit.sizes(node.outputs[0])[axis]))  # type: ignore[index, arg-type]
        complete = search.visit(node.outputs[0], axis)
        taken.update(search.axes)
        if complete and search.readers:
            found.append(search.result())
    return tuple(found)


def written_axis(node: ir.Node) -> int | None:
    """Axis of the channels in the output of an op that a factor can be folded into; None for others."""
    sizes = edit.sizes(node.outputs[0])
    if sizes is None:
        return None
    if is_linear(node):
        axis: int | None = len(sizes) - 1 if node.op_type == "MatMul" else 1
    elif node.op_type == "LayerNormalization" and edit.constant_input(node, 1) is not None:
        axis = len(sizes) - 1
        if edit.integer(node, "axis", -1) not in (-1, axis) or _is_variable(node, 2):
            return None
    elif node.op_type == "Mul":
        axis = _factor_axis(node, len(sizes))
    else:
        return None
    return axis if axis is not None and isinstance(sizes[axis], int) else None


def is_linear(node: ir.Node) -> bool:
    """Whether the op multiplies its first input with a constant weight, and adds a vector at most."""
    weight, bias = edit.constant_input(node, 1), edit.constant_input(node, 2)
    if node.op_type not in LINEAR or node.domain not in ("", "ai.onnx") or weight is None:
        return False
    if node.op_type == "MatMul":
        return weight.ndim == 2
    plain = edit.real(node, "alpha", 1.0) == edit.real(node, "beta", 1.0) == 1.0
    plain = plain and not edit.integer(node, "transA", 0)
    return plain and not _is_variable(node, 2) and (bias is None or bias.ndim == 1)


def _is_variable(node: ir.Node, index: int) -> bool:
    given = index < len(node.inputs) and node.inputs[index] is not None
    return given and edit.constant_input(node, index) is None


def _factor_axis(node: ir.Node, rank: int) -> int | None:
    """The one axis that the constant factor of a Mul varies along; None where there is no such."""
    constants = [array for index in (0, 1) if (array := edit.constant_input(node, index)) is not None]
    if len(constants) != 1 or constants[0].dtype != np.float32:
        return None
    array = constants[0]
    long = [axis + rank - array.ndim for axis, size in enumerate(array.shape) if size > 1]
    return long[0] if len(long) == 1 else None


class _Search:
    """Spreads from one activation over all that must take the same factors."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.axes: dict[ir.Value, int] = {}
        self.writers: dict[ir.Node, None] = {}
        self.readers: dict[ir.Node, None] = {}
        self.shifts: dict[tuple[ir.Node, int], None] = {}
        self.clips: dict[ir.Node, None] = {}

    def result(self) -> Channels:
        return Channels(
            self.size,
            tuple(self.writers),
            tuple(self.readers),
            tuple(self.shifts),
            tuple(self.clips),
            self.axes,
        )

    def visit(self, value: ir.Value | None, axis: int) -> bool:
        """Takes in `value`, whose channels lie on `axis`; False where something forbids a factor."""
        if value is None:
            return False
        if value in self.axes:
            return self.axes[value] == axis
        producer = value.producer()
        self.axes[value] = axis
        if producer is None or value.is_graph_output() or len(producer.outputs) > 1:
            return False
        return self._written(producer, axis) and all(
            self._read(user, index, axis) for user, index in value.uses()
        )

    def _written(self, node: ir.Node, axis: int) -> bool:
        if written_axis(node) == axis:
            self.writers[node] = None
            return True
        if self._is_flattening(node):
            return self.visit(node.inputs[0], 1)
        if _moves_rows(node):
            return self._rows(node, axis)
        return self._between(node, axis)

    def _read(self, node: ir.Node, index: int, axis: int) -> bool:
        if is_linear(node):
            self.readers[node] = None
            rank = len(edit.sizes(node.inputs[0]) or ())
            return index == 0 and axis == (rank - 1 if node.op_type == "MatMul" else 1)
        if self._is_flattening(node):
            return axis == 1 and self.visit(node.outputs[0], 1)
        if _moves_rows(node):
            return self._rows(node, axis)
        return self._between(node, axis)

    def _between(self, node: ir.Node, axis: int) -> bool:
        """An op with these channels on `axis` of what it reads and of what it puts out."""
        if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            return False
        if node.op_type in _JOINING:
            return self._joined(node, axis)
        keeps = node.op_type in _POINTWISE or (node.op_type in _SPATIAL and _keeps(node, axis))
        if not keeps or _is_variable(node, 1):
            return False
        if node.op_type == "Clip":
            if _is_variable(node, 2):
                return False
            self.clips[node] = None
        return self.visit(node.inputs[0], axis) and self.visit(node.outputs[0], axis)

    def _joined(self, node: ir.Node, axis: int) -> bool:
        shape = edit.sizes(node.outputs[0]) or ()
        for index, value in enumerate(node.inputs):
            array = edit.constant(value)
            if array is not None and array.ndim <= len(shape):
                self.shifts[node, index] = None
            elif edit.sizes(value) != shape or not self.visit(value, axis):
                return False
        return self.visit(node.outputs[0], axis)

    def _rows(self, node: ir.Node, axis: int) -> bool:
        """A Reshape that keeps the last axis, along which the channels must lie."""
        ranks = [len(edit.sizes(value) or ()) for value in (node.inputs[0], node.outputs[0])]
        if axis not in (rank - 1 for rank in ranks):
            return False
        return self.visit(node.inputs[0], ranks[0] - 1) and self.visit(node.outputs[0], ranks[1] - 1)

    def _is_flattening(self, node: ir.Node) -> bool:
        """Whether all axes but the batch become one, so that each channel becomes a run of features."""
        if node.op_type not in ("Flatten", "Reshape"):
            return False
        before, after = edit.sizes(node.inputs[0]), edit.sizes(node.outputs[0])
        if before is None or after is None or len(before) < 2 or len(after) != 2:
            return False
        features = [size for size in before[1:] if size is not None]
        whole = len(features) == len(before) - 1 and prod(features) == after[1]
        return whole and before[0] == after[0] and before[1] == self.size


def _moves_rows(node: ir.Node) -> bool:
    """Whether an op only takes positions together or apart, in front of the channels on the last axis."""
    before, after = edit.sizes(node.inputs[0]), edit.sizes(node.outputs[0])
    return (
        node.op_type == "Reshape"
        and bool(before and after)
        and before[-1:] == after[-1:]  # type: ignore[index]
        and before[-1] is not None  # type: ignore[index]
        and not _is_variable(node, 1)
    )


def _keeps(node: ir.Node, axis: int) -> bool:
    """Whether an op leaves the axis of the channels where it is, and mixes no two of them."""
    before, after = edit.sizes(node.inputs[0]), edit.sizes(node.outputs[0])
    if before is None or after is None or len(after) <= axis or before[axis] != after[axis]:
        return False
    if axis == 1 and node.op_type in ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"):
        return True
    if node.op_type == "Pad":
        value = edit.constant_input(node, 2)
        return not _is_variable(node, 2) and (value is None or not float(value))
    if node.op_type == "Resize":
        return edit.text(node, "coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
    if node.op_type in ("ReduceMax", "ReduceMean", "ReduceSum"):
        axes = edit.constant_input(node, 1)
        listed = edit.ints(node, "axes") if axes is None else [int(each) for each in axes.reshape(-1)]
        reduced = {each % len(before) for each in listed}
        kept = edit.integer(node, "keepdims", 1) or all(each > axis for each in reduced)
        return bool(reduced) and axis not in reduced and bool(kept)
    return False
