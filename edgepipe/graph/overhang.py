"""Average pools in ceil mode, whose last windows reach beyond the padded input.

With `count_include_pad` the pads count and what lies beyond them does not. ONNX Runtime's float kernels
divide so; its integer ones count the overhang too, and the average comes out too small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


class _Axis(msgspec.Struct, frozen=True):
    """Geometry of a pool along one axis, in elements."""

    size: int
    taps: int
    stride: int
    before: int
    after: int

    @property
    def rest(self) -> int:
        """Elements behind the last window that lies inside the padded input."""
        return (self.before + self.size + self.after - self.taps) % self.stride

    @property
    def overhangs(self) -> bool:
        """Whether one more window begins inside: one that would begin in the pads behind is left out."""
        end = self.before + self.size + self.after
        return self.rest > 0 and end - self.taps - self.rest + self.stride < self.before + self.size

    @property
    def pads(self) -> tuple[int, int]:
        """What to pad with so that no other window begins inside the padded input."""
        return self.before, self.after if self.overhangs else max(self.after - self.rest, 0)


def may_overhang(graph: onnx.GraphProto) -> bool:
    """Whether there is a pool that `settle` would look at: less work to tell than to look."""
    return any(
        attribute.name == "ceil_mode" and attribute.i
        for node in graph.node
        if node.op_type == "AveragePool"
        for attribute in node.attribute
    )


def settle(graph: ir.Graph) -> bool:
    """Writes pools that count pads and overhang as pools that count neither, behind a Pad where needed.

    Averages and shapes stay the same. True where it changed a node.
    """
    changed = False
    for node in edit.nodes(graph, "AveragePool"):
        if not edit.integer(node, "ceil_mode", 0) or not edit.integer(node, "count_include_pad", 0):
            continue
        axes = _axes(node)
        if axes is None:
            continue
        if any(axis.overhangs for axis in axes):
            _pad_beforehand(graph, node, axes)
        else:
            del node.attributes["ceil_mode"]
        changed = True
    return changed


def _axes(node: ir.Node) -> list[_Axis] | None:
    """None where a size is dynamic, or where windows do not overhang by definition."""
    sizes = edit.sizes(node.inputs[0])
    if sizes is None or edit.text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    count = len(sizes) - 2
    if any(dilation != 1 for dilation in edit.ints(node, "dilations")):
        return None
    pads = edit.ints(node, "pads", [0] * 2 * count)
    strides = edit.ints(node, "strides", [1] * count)
    taps = edit.ints(node, "kernel_shape")
    known = [size for size in sizes[2:] if size is not None]
    if len(known) < count:
        return None
    return [_Axis(*numbers) for numbers in zip(known, taps, strides, pads[:count], pads[count:], strict=True)]


def _pad_beforehand(graph: ir.Graph, node: ir.Node, axes: list[_Axis]) -> None:
    import onnx_ir as ir

    node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
    before, after = zip(*(axis.pads for axis in axes), strict=True)
    source, name = node.inputs[0], node.outputs[0].name
    if source is None or not any(before + after):
        return
    amounts = np.array([0, 0, *before, 0, 0, *after], np.int64)
    pad = ir.node("Pad", [source, edit.add_constant(graph, f"{name}.pads", amounts)], name=f"{name}.pad")
    padded = pad.outputs[0]
    padded.name, padded.type = edit.unused_name(graph, f"{name}.padded"), source.type
    sizes = [axis.size + front + back for axis, front, back in zip(axes, before, after, strict=True)]
    padded.shape = None if source.shape is None else ir.Shape([*source.shape[:2], *sizes])
    graph.insert_before(node, pad)
    node.replace_input_with(0, _on_grid_of(graph, source, padded, node))
    node.attributes["pads"] = ir.AttrInt64s("pads", [0] * 2 * len(axes))


def _on_grid_of(graph: ir.Graph, source: ir.Value, padded: ir.Value, node: ir.Node) -> ir.Value:
    """`padded` on the grid of `source`, if that has one.

    ONNX Runtime takes a Pad that stands right before a pool into it, and sets the flag again.
    """
    import onnx_ir as ir

    dequantizer = source.producer()
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
        return padded
    grid, attributes = dequantizer.inputs[1:], list(dequantizer.attributes.values())
    quantizer = ir.Node("", "QuantizeLinear", [padded, *grid], attributes)
    again = ir.Node("", "DequantizeLinear", [quantizer.outputs[0], *grid], attributes)
    integers, real = quantizer.outputs[0], again.outputs[0]
    integers.name = edit.unused_name(graph, f"{padded.name}.quantized")
    real.name = edit.unused_name(graph, f"{padded.name}.dequantized")
    graph.insert_before(node, [quantizer, again])
    return real
