"""Writes quantization decisions into the graph as QuantizeLinear and DequantizeLinear nodes (QDQ).

Every quantized activation passes through one pair, and consumers take the dequantized value. Weights
are int8 or int4 initializers and biases int32 initializers, each behind a DequantizeLinear. So the graph
computes in float what integer kernels compute, up to the rounding of their multipliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit
from edgepipe.quantize.grid import Grid, activation_grid, quantize, saturates
from edgepipe.quantize.plan import Plan, activations
from edgepipe.quantize.weights import QuantizedLinear
from edgepipe.quantize.widths import INT4_BITS

FUSED_BOUNDS = ((0.0, np.inf), (0.0, 6.0), (-1.0, 1.0))
"""What TFLite's kernels clip their own output to: RELU, RELU6, RELU_N1_TO_1."""

if TYPE_CHECKING:
    import onnx_ir as ir

    Grids = dict[ir.Value, Grid]


def write(
    graph: ir.Graph,
    plan: Plan,
    grids: Mapping[ir.Value, Grid],
    linears: list[QuantizedLinear],
    *,
    symmetric: bool,
) -> None:
    """Turns the float graph that `plan` was made for into its QDQ form, in place.

    Args:
        graph: The graph; it is edited.
        plan: What to quantize in it.
        grids: Grid of each tensor of the plan.
        linears: Integer weights and biases of the plan's linear ops.
        symmetric: Whether constants, too, must have zero point 0.
    """
    placed, names = dict(grids), edit.Names(graph)
    for linear in linears:
        _write_linear(graph, linear, names)
    for node, index in plan.operands:
        array = edit.array_at(node, index)
        bits = plan.schemes[node].activation_bits
        own = activation_grid(float(array.min()), float(array.max()), symmetric=symmetric, bits=bits)
        grid = placed[node.outputs[0]] if node in plan.keeping else own
        _write_operand(graph, (node, index), grid, names)
    for node in plan.clipped:
        _place_clipping(graph, node, placed)
    requantized = [
        (node, value, placed[node.outputs[0]])
        for node in plan.keeping
        for value in dict.fromkeys(activations(node))
        if value in placed and placed[value] != placed[node.outputs[0]]  # a constant is on it already
    ]
    pairs = {value: _write_pair(graph, value, grid, names) for value, grid in placed.items()}
    for node, value, grid in requantized:
        _requantize_edge(graph, node, pairs[value], grid, names)
    for node in plan.crossings:
        _remove_crossing(graph, node)


def _remove_crossing(graph: ir.Graph, node: ir.Node) -> None:
    """Leaves of an Identity between two widths what stands around it: DQ of one grid, Q of the other."""
    source = node.inputs[0]
    if source is not None:
        edit.replace_value(graph, node.outputs[0], source)
        graph.remove(node, safe=True)


def _write_pair(graph: ir.Graph, value: ir.Value, grid: Grid, names: edit.Names) -> ir.Value:
    """Puts Q and DQ behind `value` and lets its consumers take what comes out, which is returned."""
    name, producer = str(value.name), value.producer()
    consumers = list(value.uses())
    real = _pair(graph, value, grid, name, names)
    dequantizer = real.producer()
    pair = [dequantizer.inputs[0].producer(), dequantizer]  # type: ignore[union-attr]
    if producer is None:
        graph.insert_before(graph[0], pair)  # type: ignore[arg-type]
    else:
        graph.insert_after(producer, pair)  # type: ignore[arg-type]
    for user, index in consumers:
        user.replace_input_with(index, real)
    if value.is_graph_output() and producer is not None:
        value.name, real.name = f"{name}.float", name
        quantizer = pair[0]
        value.replace_all_uses_with(real, replace_graph_outputs=True)
        quantizer.replace_input_with(0, value)  # type: ignore[union-attr]
    return real


def _pair(graph: ir.Graph, value: ir.Value, grid: Grid, name: str, names: edit.Names) -> ir.Value:
    """Nodes Q and DQ after `value`, not yet in the graph; returns the output of DQ."""
    import onnx_ir as ir

    scale = edit.add_constant(graph, f"{name}.scale", np.array(grid.scale, np.float32), names)
    zero = np.array(grid.zero_point, grid.dtype)
    zero_point = edit.add_constant(graph, f"{name}.zero_point", zero, names)
    integers = ir.Value(
        name=f"{name}.{grid.dtype}", type=ir.TensorType(ir.DataType.from_numpy(grid.dtype)), shape=value.shape
    )
    real = ir.Value(name=f"{name}.dequantized", type=value.type, shape=value.shape)
    ir.node("QuantizeLinear", [value, scale, zero_point], outputs=[integers], name=f"{name}.quantize")
    ir.node("DequantizeLinear", [integers, scale, zero_point], outputs=[real], name=f"{name}.dequantize")
    return real


def _requantize_edge(graph: ir.Graph, node: ir.Node, value: ir.Value, grid: Grid, names: edit.Names) -> None:
    """Moves `value` onto another grid for one consumer."""
    real = _pair(graph, value, grid, names.unused(f"{value.name}.requantized"), names)
    dequantizer = real.producer()
    graph.insert_before(node, [dequantizer.inputs[0].producer(), dequantizer])  # type: ignore[union-attr, list-item]
    for index, current in enumerate(node.inputs):
        if current is value:
            node.replace_input_with(index, real)


def _place_clipping(graph: ir.Graph, node: ir.Node, grids: Grids) -> None:
    """Removes an activation function that the ends of its output's grid carry out exactly.

    One that remains is fused by integer kernels if it is of a usual kind. Any other clips integers, so
    its input goes onto its output's grid: clipping and rounding commute, so that the result is the same.
    """
    source, result = node.inputs[0], node.outputs[0]
    low, high = clip_bounds(node)
    if source is None:
        return
    if not saturates(grids[result], low, high):
        if (low, high) not in FUSED_BOUNDS:
            grids[source] = grids[result]
        return
    grids[source] = grids.pop(result)
    name = result.name
    edit.replace_value(graph, result, source)
    graph.remove(node, safe=True)
    source.name = name


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """What a Relu or Clip clips to."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    low, high = edit.constant_input(node, 1), edit.constant_input(node, 2)
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _write_linear(graph: ir.Graph, linear: QuantizedLinear, names: edit.Names) -> None:
    node = linear.node
    name = str(node.inputs[1].name)
    weight = linear.weight.astype(_int4()) if linear.bits <= INT4_BITS else linear.weight
    write_constant(graph, (node, 1), name, weight, linear.scales, linear.axis, names)
    if linear.bias is not None and linear.bias_scales is not None:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        bias = node.inputs[2]
        name = str(bias.name) if bias is not None else f"{node.outputs[0].name}.bias"
        write_constant(graph, (node, 2), name, linear.bias, linear.bias_scales, 0, names)


def _int4() -> np.dtype[Any]:
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.int4)
    return dtype


def write_constant(
    graph: ir.Graph,
    place: tuple[ir.Node, int],
    name: str,
    integers: NDArray[Any],
    scales: NDArray[np.float32],
    axis: int,
    names: edit.Names,
) -> None:
    """Puts integers behind a DequantizeLinear into an input of a node; one scale in all is a scalar."""
    import onnx_ir as ir

    node, index = place
    per_channel = scales.size > 1
    inputs = [
        edit.add_constant(graph, f"{name}.quantized", integers, names),
        edit.add_constant(graph, f"{name}.scale", scales if per_channel else scales.reshape(()), names),
        edit.add_constant(
            graph, f"{name}.zero_point", np.zeros(scales.shape if per_channel else (), integers.dtype), names
        ),
    ]
    real = ir.Value(
        name=names.unused(f"{name}.dequantized"),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(integers.shape),
    )
    dequantizer = ir.node(
        "DequantizeLinear",
        inputs,
        {"axis": axis} if per_channel else {},
        outputs=[real],
        name=f"{real.name}.node",
    )
    graph.insert_before(node, dequantizer)
    node.replace_input_with(index, real)


def _write_operand(graph: ir.Graph, place: tuple[ir.Node, int], grid: Grid, names: edit.Names) -> None:
    """Quantizes a constant that meets an activation, on one grid for the whole tensor."""
    import onnx_ir as ir

    node, index = place
    array = edit.array_at(node, index)
    name = str(node.inputs[index].name)  # type: ignore[union-attr]
    inputs = [
        edit.add_constant(graph, f"{name}.quantized", quantize(array, grid), names),
        edit.add_constant(graph, f"{name}.scale", np.array(grid.scale, np.float32), names),
        edit.add_constant(graph, f"{name}.zero_point", np.array(grid.zero_point, grid.dtype), names),
    ]
    real = ir.Value(
        name=names.unused(f"{name}.dequantized"),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
    )
    graph.insert_before(node, ir.node("DequantizeLinear", inputs, outputs=[real], name=f"{real.name}.node"))
    node.replace_input_with(index, real)
