"""Linear ops as matrix products: their weights as matrices, and samples of the rows that these multiply."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir

UNFOLDED = frozenset({"Conv", "Gemm", "MatMul"})
"""Ops that have this form; a MatMul has it where its weight is a matrix."""


def is_unfolded(node: ir.Node) -> bool:
    """Whether a linear op can be written as a matrix product here."""
    weight = edit.array_at(node, 1)
    return node.op_type in UNFOLDED and (node.op_type == "Conv" or weight.ndim == 2)


def to_matrix(node: ir.Node, weight: NDArray[np.generic]) -> NDArray[np.float64]:
    """The weight of a linear op as [groups, inputs, outputs]."""
    real = weight.astype(np.float64)
    if node.op_type == "Conv":
        group = edit.integer(node, "group", 1)
        return np.ascontiguousarray(real.reshape(group, len(real) // group, -1).swapaxes(1, 2))
    return real.T[None] if _is_transposed(node) else real[None]


def from_matrix(node: ir.Node, matrix: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The inverse of `to_matrix`, for a weight of this shape."""
    if node.op_type == "Conv":
        return np.ascontiguousarray(matrix.swapaxes(1, 2)).reshape(shape)
    return np.ascontiguousarray(matrix[0].T if _is_transposed(node) else matrix[0])


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(edit.integer(node, "transB", 0))


def inputs_of(node: ir.Node) -> int:
    """Inputs that an output of a linear op sums over."""
    shape = edit.array_at(node, 1).shape
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    return int(shape[1 if _is_transposed(node) else 0])


def count_rows(node: ir.Node, shape: tuple[int, ...]) -> int:
    """Number of rows that an output of this shape was computed from."""
    return math.prod(shape) // shape[1 if node.op_type == "Conv" else -1]


def rows_at(
    node: ir.Node, source: NDArray[np.float32], places: NDArray[np.intp], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Rows that the op multiplies its weight with, float32 [groups, places, inputs].

    Args:
        node: The op.
        source: Its input.
        places: Which rows, numbered as the positions of the output in order.
        shape: Shape of the output.
    """
    if node.op_type != "Conv":
        return source.reshape(-1, source.shape[-1])[places][None]
    weight = edit.array_at(node, 1)
    group, kernel = edit.integer(node, "group", 1), weight.shape[2:]
    sample, *position = np.unravel_index(places, (shape[0], *shape[2:]))
    strides = edit.ints(node, "strides", [1] * len(kernel))
    dilations = edit.ints(node, "dilations", [1] * len(kernel))
    before = _pads_before(node, source.shape[2:], shape[2:], strides, dilations)
    inside = np.ones((len(places), *(1,) * len(kernel)), bool)
    index = []
    for axis, size in enumerate(kernel):
        at = position[axis][:, None] * strides[axis] - before[axis] + np.arange(size) * dilations[axis]
        at = at.reshape(len(places), *(size if each == axis else 1 for each in range(len(kernel))))
        inside = inside & (at >= 0) & (at < source.shape[2 + axis])
        index.append(np.clip(at, 0, source.shape[2 + axis] - 1))
    first = sample.reshape(-1, *(1,) * len(kernel))
    patches = np.moveaxis(source, 1, -1)[(first, *index)] * inside[..., None]
    flat = np.moveaxis(patches, -1, 1).reshape(len(places), group, -1)
    return np.ascontiguousarray(flat.swapaxes(0, 1))


def _pads_before(
    node: ir.Node, sizes: tuple[int, ...], results: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[int]:
    """Zeros before the first element of each spatial axis."""
    mode = edit.text(node, "auto_pad", "NOTSET")
    if not mode.startswith("SAME"):
        return edit.ints(node, "pads", [0] * 2 * len(sizes))[: len(sizes)]
    kernel = edit.array_at(node, 1).shape[2:]
    missing = [
        max(0, (result - 1) * stride + (extent - 1) * dilation + 1 - size)
        for size, result, stride, dilation, extent in zip(
            sizes, results, strides, dilations, kernel, strict=True
        )
    ]
    return [-(-each // 2) if mode == "SAME_LOWER" else each // 2 for each in missing]
