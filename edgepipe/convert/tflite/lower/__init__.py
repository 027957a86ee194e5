"""Lowers a Graph to a Program: one module for each family of ops, one table of all."""

from __future__ import annotations

from edgepipe.bundle import Port
from edgepipe.convert.emission import PortType
from edgepipe.convert.tflite.builder import Builder, View
from edgepipe.convert.tflite.graph import Graph, Value
from edgepipe.convert.tflite.layout import Layout, input_layouts, plain
from edgepipe.convert.tflite.lower import (
    activation,
    conv,
    dense,
    elementwise,
    normalization,
    pool,
    reduce,
    resize,
    shape,
    transpose_conv,
)
from edgepipe.convert.tflite.lower.site import Rule, Site, computes_on_integers, refusal
from edgepipe.convert.tflite.program import Program, Tensor
from edgepipe.errors import ModelError

RULES: dict[str, Rule] = {
    **activation.RULES,
    **conv.RULES,
    **dense.RULES,
    **elementwise.RULES,
    **normalization.RULES,
    **pool.RULES,
    **reduce.RULES,
    **resize.RULES,
    **shape.RULES,
    **transpose_conv.RULES,
}


def lower(
    graph: Graph, *, float16: bool, ports: PortType
) -> tuple[Program, tuple[Port, ...], tuple[Port, ...]]:
    """The program of a graph, with its input and output ports.

    Args:
        graph: What to lower.
        float16: Whether float weights are stored as float16.
        ports: Type of the ports of quantized values.

    Raises:
        UnsupportedOp: A node that TFLite cannot express.
    """
    builder = Builder(graph, float16=float16)
    layouts = input_layouts(graph)
    inputs: list[tuple[str, Tensor, Layout]] = []
    for name in graph.inputs:
        view = View(layouts[name], graph.values[name].grid if ports == "integer" else None)
        inputs.append((name, builder.define(name, view), view.layout))
    for node in graph.nodes:
        rule = RULES.get(node.op)
        if rule is None:
            raise refusal(node, "edgepipe does not know how to write it")
        rule.lowering(Site(node, builder, integer=computes_on_integers(node, rule, graph.values)))
    outputs: list[tuple[str, Tensor, Layout]] = []
    for name, source in graph.outputs:
        tensor, layout = _output(builder, graph.values[source], ports)
        outputs.append((name, tensor, layout))
    program = builder.program(_indices(inputs), _indices(outputs))
    return program, _ports(program, inputs), _ports(program, outputs)


def _output(builder: Builder, value: Value, ports: PortType) -> tuple[Tensor, Layout]:
    """The tensor of a result: channels may lie last, but flattened features are put in order."""
    if value.data is not None:
        raise ModelError(
            "an output of the model is constant", where=value.name, remedy="leave it out when exporting"
        )
    layout = builder.first(value.name).layout
    if layout.sizes:
        layout = plain(len(value.shape))
    view = View(layout, value.grid if ports == "integer" else None)
    return builder.view(value.name, view), layout


def _indices(ends: list[tuple[str, Tensor, Layout]]) -> tuple[tuple[str, int], ...]:
    return tuple((name, tensor.index) for name, tensor, _ in ends)


def _ports(program: Program, ends: list[tuple[str, Tensor, Layout]]) -> tuple[Port, ...]:
    return tuple(_port(program.tensors[tensor.index], layout) for _, tensor, layout in ends)


def _port(tensor: Tensor, layout: Layout) -> Port:
    grid = tensor.grid
    return Port(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        permutation=layout.perm,
        scale=grid.scale[0] if grid else None,
        zero_point=grid.zero_point[0] if grid else 0,
    )
