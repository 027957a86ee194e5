"""Quantizers that a tool left out because they say nothing new, put where integer kernels look for them.

Tools for other kernels quantize what goes into convolutions alone. A value that one reader takes quantized
and another as it is, or a concatenation whose inputs are quantized and whose output is not, would cost
integer kernels a float op between two integer ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgepipe.graph import edit
from edgepipe.graph.moving import REARRANGING, SELECTING

if TYPE_CHECKING:
    import onnx_ir as ir

_PASSING = REARRANGING | SELECTING | {"Relu"}
"""Ops whose output lies on the grid of their input."""


class _Grid(msgspec.Struct, frozen=True):
    """A per-tensor grid of 8 bits: scale (float32), zero point and NumPy's name of the integers' type."""

    scale: float
    zero_point: int
    dtype: str

    @property
    def span(self) -> tuple[float, float]:
        """The least and the greatest real on it."""
        limits = np.iinfo(self.dtype)
        return self.scale * (limits.min - self.zero_point), self.scale * (limits.max - self.zero_point)


def complete(graph: ir.Graph) -> None:
    """Adds the missing quantizers, in place."""
    for node in edit.nodes(graph, "QuantizeLinear"):
        _share(node)
    for node in edit.nodes(graph, "Concat"):
        _join(graph, node)


def _share(quantizer: ir.Node) -> None:
    """Lets every reader of a value take it quantized where one does: integer kernels hold it only so."""
    value = quantizer.inputs[0]
    if value is None or value.is_graph_output() or value.is_graph_input():
        return
    readers = list(value.uses())
    if sum(node.op_type == "QuantizeLinear" for node, _ in readers) != 1:
        return
    takers = [node for node, _ in quantizer.outputs[0].uses()]
    if _grid(quantizer) is None or not takers or takers[0].op_type != "DequantizeLinear":
        return
    for node, index in readers:
        if node is not quantizer:
            node.replace_input_with(index, takers[0].outputs[0])


def _join(graph: ir.Graph, node: ir.Node) -> None:
    """Gives a Concat a grid, and those of its inputs that have none: its own, which changes nothing.

    Rounding after joining is joining after rounding. An output that has no grid gets the one that spans
    its inputs'; inputs on other grids are brought onto it by the kernel.
    """
    grid = _grid_behind(node.outputs[0])
    if grid is None:
        grids = [_grid_before(value) for value in node.inputs]
        known = [each for each in grids if each is not None]
        if len(known) < len(grids) or not known:
            return
        grid = _spanning(known)
        _quantize_output(graph, node, grid)
    for index, value in enumerate(node.inputs):
        if value is not None and _grid_before(value) is None:
            node.replace_input_with(index, _pair(graph, value, grid, node))


def _grid(node: ir.Node) -> _Grid | None:
    """The grid that a Q or DQ names, if it is one of 8 bits for the whole tensor."""
    scale, zero_point = edit.constant_input(node, 1), edit.constant_input(node, 2)
    if scale is None or scale.size != 1:
        return None
    if zero_point is None:
        return None if len(node.inputs) > 2 else _Grid(float(scale.reshape(())), 0, "uint8")
    if zero_point.dtype not in (np.int8, np.uint8):
        return None
    return _Grid(float(scale.reshape(())), int(zero_point.reshape(())), zero_point.dtype.name)


def _grid_behind(value: ir.Value) -> _Grid | None:
    """The grid on which all readers of a value quantize it."""
    grids = {_grid(node) if node.op_type == "QuantizeLinear" else None for node, _ in value.uses()}
    return grids.pop() if len(grids) == 1 and not value.is_graph_output() else None


def _grid_before(value: ir.Value | None) -> _Grid | None:
    """The grid that a value lies on, as what dequantizes it or passes it on tells."""
    producer = value.producer() if value is not None else None
    if producer is None:
        return None
    if producer.op_type == "DequantizeLinear":
        return _grid(producer)
    return _grid_before(producer.inputs[0]) if producer.op_type in _PASSING else None


def _spanning(grids: list[_Grid]) -> _Grid:
    """A grid that holds what all of these hold: the widest where it does, so that nothing of it is lost."""
    spans = [grid.span for grid in grids]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    for grid, span in zip(grids, spans, strict=True):
        if span[0] <= low + grid.scale / 2 and span[1] >= high - grid.scale / 2:
            return grid
    scale = float(np.float32((high - low) / 255))
    return _Grid(scale, int(np.clip(round(-128 - low / scale), -128, 127)), "int8")


def _quantize_output(graph: ir.Graph, node: ir.Node, grid: _Grid) -> None:
    value = node.outputs[0]
    uses = list(value.uses())
    if value.is_graph_output() or not uses:
        return
    real = _pair(graph, value, grid, uses[0][0])
    for user, index in uses:
        user.replace_input_with(index, real)


def _pair(graph: ir.Graph, value: ir.Value, grid: _Grid, before: ir.Node) -> ir.Value:
    """Puts Q and DQ on a value, ahead of a node; gives what comes out."""
    import onnx_ir as ir

    name = edit.unused_name(graph, f"{value.name}/joined")
    scale = edit.add_constant(graph, f"{name}/scale", np.array(grid.scale, np.float32))
    zero_point = edit.add_constant(graph, f"{name}/zero_point", np.array(grid.zero_point, grid.dtype))
    quantizer = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}/quantize")
    integers = quantizer.outputs[0]
    integers.name = f"{name}/integers"
    dequantizer = ir.node("DequantizeLinear", [integers, scale, zero_point], name=f"{name}/dequantize")
    real = dequantizer.outputs[0]
    real.name, real.type, real.shape = name, value.type, value.shape
    graph.insert_before(before, [quantizer, dequantizer])
    return real
