"""What an artifact is called after: the widths of the integers in the graph that it is written from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.bundle import Precision

if TYPE_CHECKING:
    import onnx

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def precision_of(proto: onnx.ModelProto) -> Precision:
    """The precision of a QDQ graph, or of a float one.

    Args:
        proto: The graph; activations pass through QuantizeLinear or DynamicQuantizeLinear, weights
            stand behind DequantizeLinear. Those of 5 to 7 bits are stored as 8 and count as such.
    """
    import onnx

    graph = proto.graph
    if any(node.op_type == "DynamicQuantizeLinear" for node in graph.node):
        return "dynamic"
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    activations = {
        types.get(node.input[2], 0) if len(node.input) > 2 else onnx.TensorProto.UINT8
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in types
    }
    weights = _weight_types(graph, types)
    wide = activations & {onnx.TensorProto.INT16, onnx.TensorProto.UINT16}
    narrow = weights & {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    if not activations:
        return "float32"
    if (wide and narrow) or (wide and activations - wide) or (narrow and weights - narrow):
        return "mixed"
    return "int16" if wide else "int4" if narrow else "int8"


def _weight_types(graph: onnx.GraphProto, types: dict[str, int]) -> set[int]:
    makers = {name: node for node in graph.node for name in node.output}
    sources = [makers.get(node.input[1]) for node in graph.node if node.op_type in _LINEAR]
    return {
        types[source.input[0]]
        for source in sources
        if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in types
    }
