"""Ops on integers (QLinearConv and its kin) as float ops between DequantizeLinear and QuantizeLinear.

ONNX Runtime's quantizer calls the first form QOperator and the second QDQ. Both hold the same decisions,
and only the second says what they mean in ops that every emitter knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgepipe.graph import edit
from edgepipe.graph.moving import REARRANGING, SELECTING

if TYPE_CHECKING:
    import onnx_ir as ir

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own ops."""
MOVES = REARRANGING | SELECTING
"""Standard ops with one data input that compute the same on integers as on their reals."""


class Steps(msgspec.Struct, frozen=True):
    """The values of a graph that hold a scale and a zero point.

    Attributes:
        scale: float32, a scalar or [channels].
        zero_point: Shaped alike; None for a uint8 0.
        axis: Axis of the channels in the integers; of no matter for a scalar.
    """

    scale: ir.Value
    zero_point: ir.Value | None
    axis: int = 0


class Operand(msgspec.Struct, frozen=True):
    """An input of an op on integers: what holds the integers, and their steps."""

    integers: ir.Value
    steps: Steps


class Parts(msgspec.Struct, frozen=True):
    """What an op on integers is made of.

    Attributes:
        op: The float op.
        inputs: Its inputs; a plain value is no integer tensor and is taken as it is.
        result: Steps of its output; None where that is float.
        dropped: Attributes that the float op does not have.
    """

    op: str
    inputs: tuple[Operand | ir.Value | None, ...]
    result: Steps | None
    dropped: tuple[str, ...] = ()


def expand(graph: ir.Graph) -> None:
    """Replaces every op on integers that is known, in place; others are left for the emitters to refuse."""
    steps: dict[ir.Value, Steps] = {}
    for node in list(graph):
        parts = _parts(graph, node, steps)
        if parts is not None:
            result = _replace(graph, node, parts)
            if parts.result is not None:
                steps[result] = parts.result
        elif node.op_type == "QuantizeLinear" and (scale := node.inputs[1]) is not None:
            steps[node.outputs[0]] = Steps(scale, _optional(node, 2), edit.integer(node, "axis", 1))


def _parts(graph: ir.Graph, node: ir.Node, steps: dict[ir.Value, Steps]) -> Parts | None:
    source = node.inputs[0] if node.inputs else None
    if node.op_type in MOVES and node.domain == "" and source in steps and len(node.outputs) == 1:
        return Parts(node.op_type, (Operand(source, steps[source]), *node.inputs[1:]), steps[source])
    reader = _READERS.get((node.domain, node.op_type))
    return None if reader is None else reader(graph, node)


def _replace(graph: ir.Graph, node: ir.Node, parts: Parts) -> ir.Value:
    """Writes the parts in place of the node; gives what stands for its output now."""
    import onnx_ir as ir

    base = str(node.name or node.outputs[0].name)
    made: list[ir.Node] = []
    inputs: list[ir.Value | None] = []
    for each in parts.inputs:
        if isinstance(each, Operand):
            operand = [each.integers, each.steps.scale, each.steps.zero_point]
            settings = {"axis": each.steps.axis} if _is_vector(each.steps.scale) else {}
            made.append(ir.node("DequantizeLinear", operand, settings, name=f"{base}/dequantize{len(made)}"))
            inputs.append(made[-1].outputs[0])
        else:
            inputs.append(each)
    kept = [each for key, each in node.attributes.items() if key not in parts.dropped]
    made.append(ir.Node("", parts.op, inputs, kept, name=base))
    if parts.result is not None:
        real = [made[-1].outputs[0], parts.result.scale, parts.result.zero_point]
        made.append(ir.node("QuantizeLinear", real, name=f"{base}/quantize"))
    graph.insert_before(node, made)
    for index, part in enumerate(made[:-1]):
        part.outputs[0].name = edit.unused_name(graph, f"{base}/part{index}")
    old, new = node.outputs[0], made[-1].outputs[0]
    name, old.name = old.name, edit.unused_name(graph, f"{old.name}/replaced")
    new.name, new.type, new.shape = name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return new


def _is_vector(value: ir.Value) -> bool:
    array = edit.constant(value)
    return array is not None and array.size > 1


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _operand(node: ir.Node, index: int, axis: int = 0) -> Operand | None:
    """The operand whose integers, scale and zero point are the inputs from `index` on."""
    integers, scale, zero_point = (_optional(node, index + offset) for offset in range(3))
    return None if integers is None or scale is None else Operand(integers, Steps(scale, zero_point, axis))


def _result(node: ir.Node, index: int) -> Steps | None:
    scale = _optional(node, index)
    return None if scale is None else Steps(scale, _optional(node, index + 1))


def _bias(graph: ir.Graph, bias: ir.Value, factors: tuple[Operand, Operand]) -> Operand | None:
    """An int32 bias, whose scale the op leaves unsaid: the product of those that it multiplies."""
    scales = [edit.constant(each.steps.scale) for each in factors]
    if scales[0] is None or scales[1] is None:
        return None
    product = edit.add_constant(graph, f"{bias.name}/scale", np.asarray(scales[0] * scales[1], np.float32))
    zero = edit.add_constant(graph, f"{bias.name}/zero_point", np.zeros(scales[1].shape, np.int32))
    return Operand(bias, Steps(product, zero))


def _convolution(graph: ir.Graph, node: ir.Node) -> Parts | None:
    return _with_bias(graph, node, "Conv", (_operand(node, 0), _operand(node, 3)), (6, 8))


def _gemm(graph: ir.Graph, node: ir.Node) -> Parts | None:
    if edit.real(node, "alpha", 1.0) != 1.0:  # it would scale the bias in one form and not in the other
        return None
    weight = _operand(node, 3, 0 if edit.integer(node, "transB", 0) else 1)
    return _with_bias(graph, node, "Gemm", (_operand(node, 0), weight), (7, 6))


def _with_bias(
    graph: ir.Graph,
    node: ir.Node,
    op: str,
    factors: tuple[Operand | None, Operand | None],
    places: tuple[int, int],
) -> Parts | None:
    """Parts of a linear op; `places` are those of its result's steps and of its bias."""
    data, weight = factors
    if data is None or weight is None:
        return None
    inputs: tuple[Operand, ...] = (data, weight)
    bias = _optional(node, places[1])
    if bias is not None:
        ready = _bias(graph, bias, (data, weight))
        if ready is None:
            return None
        inputs = (*inputs, ready)
    return Parts(op, inputs, _result(node, places[0]))


def _product(_: ir.Graph, node: ir.Node) -> Parts | None:
    data, weight = _operand(node, 0), _operand(node, 3, 1)
    return Parts("MatMul", (data, weight), _result(node, 6))


def _binary(op: str) -> Callable[[ir.Graph, ir.Node], Parts | None]:
    return lambda _, node: Parts(op, (_operand(node, 0), _operand(node, 3)), _result(node, 6))


def _unary(op: str) -> Callable[[ir.Graph, ir.Node], Parts | None]:
    def read(_: ir.Graph, node: ir.Node) -> Parts | None:
        if edit.integer(node, "channels_last", 0):
            return None
        return Parts(op, (_operand(node, 0),), _result(node, 3), ("channels_last", "opset"))

    return read


def _concat(_: ir.Graph, node: ir.Node) -> Parts | None:
    inputs = tuple(_operand(node, index) for index in range(2, len(node.inputs), 3))
    return Parts("Concat", inputs, _result(node, 0))


_READERS: dict[tuple[str, str], Callable[[ir.Graph, ir.Node], Parts | None]] = {
    ("", "QLinearConv"): _convolution,
    ("", "QLinearMatMul"): _product,
    (CONTRIB, "QGemm"): _gemm,
    (CONTRIB, "QLinearAdd"): _binary("Add"),
    (CONTRIB, "QLinearMul"): _binary("Mul"),
    (CONTRIB, "QLinearConcat"): _concat,
    (CONTRIB, "QLinearAveragePool"): _unary("AveragePool"),
    (CONTRIB, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (CONTRIB, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (CONTRIB, "QLinearSigmoid"): _unary("Sigmoid"),
    (CONTRIB, "QLinearSoftmax"): _unary("Softmax"),
}
