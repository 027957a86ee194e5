"""Activation functions moved up to the op that makes what they clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.graph import edit
from edgepipe.graph.moving import REARRANGING

if TYPE_CHECKING:
    import onnx_ir as ir

_CLIPPING = ("Clip", "Relu")
_TAKES_CLIPPING = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Sub"})
"""Ops that kernels carry out together with such a function."""
_COMMUTES = (REARRANGING | {"MaxPool"}) - {"Gather", "Slice", "Split"}
"""Ops with one data input that put out elements of it as they are, and choose them by their order at most: a
function that never falls gives the same before as after. Those that leave elements out spare it work."""


def hoist_clipping(graph: ir.Graph) -> None:
    """Moves each Relu and Clip before the pools and layout changes that stand between it and its maker.

    What is computed stays the same to the bit. Integer kernels need one grid less: without it, what goes into
    a pool would be rounded on one that holds values which are clipped behind it.
    """
    for node in edit.nodes(graph, *_CLIPPING):
        moved = _passed(node)
        if moved:
            _move(graph, node, moved)


def _passed(node: ir.Node) -> list[ir.Node]:
    """What the function can be moved before, the last one first; nothing where that leads to no maker."""
    if any(value is not None and edit.constant(value) is None for value in node.inputs[1:]):
        return []
    passed: list[ir.Node] = []
    source = node.inputs[0]
    while source is not None and len(source.uses()) == 1 and not source.is_graph_output():
        maker = source.producer()
        if maker is None or maker.domain not in ("", "ai.onnx"):
            return []
        if maker.op_type in _TAKES_CLIPPING:
            return passed
        if maker.op_type not in _COMMUTES or len(maker.outputs) > 1:
            return []
        passed.append(maker)
        source = maker.inputs[0]
    return []


def _move(graph: ir.Graph, node: ir.Node, passed: list[ir.Node]) -> None:
    import onnx_ir as ir

    first, last, result = passed[-1], passed[0], node.outputs[0]
    source = first.inputs[0]
    if source is None:
        raise ValueError(f"{first.op_type} {first.name} has no input")
    inputs = [source, *node.inputs[1:]]
    clipped = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=node.name)
    clipped.outputs[0].name = edit.unused_name(graph, f"{source.name}.{node.op_type}")
    clipped.outputs[0].type, clipped.outputs[0].shape = source.type, source.shape
    name = result.name
    edit.replace_value(graph, result, last.outputs[0])
    graph.remove(node, safe=True)
    last.outputs[0].name = name
    graph.insert_before(first, clipped)
    first.replace_input_with(0, clipped.outputs[0])
