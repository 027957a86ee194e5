"""What an artifact is called after: the widths of the integers in the graph that it is written from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.bundle import Precision

if TYPE_CHECKING:
    import onnx

LEAST_RUNTIMES: dict[Precision, dict[str, str]] = {
    "float16": {"litert": "1.0", "tflite-runtime": "2.5"},
    "int4": {"onnxruntime": "1.23", "litert": "1.0", "tflite-runtime": "2.17"},
    "int16": {"onnxruntime": "1.18", "litert": "1.0", "tflite-runtime": "2.17"},
    "dynamic": {"onnxruntime": "1.7", "litert": "1.0", "tflite-runtime": "2.17"},
}
"""Least version of each runtime that runs a precision as recipes have it, with a scale for each channel. A
runtime that is not named has no use for it: ONNX Runtime's CPU kernels would compute float16 by casting."""
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def runs(precision: Precision, runtime: str, version: str) -> bool:
    """Whether a version of a runtime runs artifacts of a precision; those without a bound run anywhere."""
    least = LEAST_RUNTIMES.get(precision)
    return least is None or (runtime in least and _numbers(version) >= _numbers(least[runtime]))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


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
