"""The lowest opset that a graph is valid in, so that runtimes of old board images can load it.

A graph is valid in an older opset where each of its ops exists there with the same inputs, attributes
and types, and means the same. The first part is looked up in ONNX's own schemas; the second holds for
the ops listed here, whose later versions only added types or options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.graph.opset import standard_opset

if TYPE_CHECKING:
    import onnx

LOWEST = 13
"""First opset with a scale for each channel in DequantizeLinear."""
IR_VERSION = 7
"""That of opset 13 (ONNX 1.8); later ones add functions and float8, which no graph here uses, and int4."""
IR_VERSION_WITH_INT4 = 10
_FIRST_WITH_INT4 = 21

_UNCHANGED_SINCE_13 = frozenset({
    "Abs", "Add", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv",
    "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Elu", "Erf", "Exp", "Expand",
    "Flatten", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "PRelu", "Pad", "Pow",
    "QuantizeLinear", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape",
    "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile",
    "Transpose", "Unsqueeze",
})  # fmt: skip
"""Ops that mean the same from opset 13 on wherever their old schema admits the node."""

_RUNTIMES = {
    13: "1.7", 14: "1.8", 15: "1.10", 16: "1.11", 17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18",
    22: "1.22", 23: "1.23", 24: "1.24",
}  # fmt: skip
"""First ONNX Runtime with each opset: https://onnxruntime.ai/docs/reference/compatibility.html"""
_INT4_RUNTIME = "1.23"
"""First ONNX Runtime with a kernel for Cast from int4: found by trying 1.18 to 1.24."""


def runtime_for(version: int) -> str:
    """The least version of ONNX Runtime that runs an opset; that of this machine for one not in the table."""
    from importlib.metadata import version as installed

    return _RUNTIMES.get(version) or ".".join(installed("onnxruntime").split(".")[:2])


def runtime_of(proto: onnx.ModelProto, version: int) -> str:
    """The least version of ONNX Runtime that runs a model of an opset, the types of its weights regarded."""
    import onnx

    packed = any(tensor.data_type == onnx.TensorProto.INT4 for tensor in proto.graph.initializer)
    least = runtime_for(version)
    return max(least, _INT4_RUNTIME, key=_numbers) if packed else least


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def lower(proto: onnx.ModelProto) -> int:
    """Marks the model with the lowest opset and IR version that it is valid in, and returns that opset.

    Nodes stay as they are. Imports of domains that no node uses are dropped.
    """
    import onnx

    domains = {node.domain if node.domain != "ai.onnx" else "" for node in proto.graph.node}
    current = standard_opset(proto)
    if not current:
        return LOWEST
    types = _element_types(proto.graph)
    least = max((_least_version(node, current, types) for node in proto.graph.node), default=LOWEST)
    least = min(max(least, LOWEST), current)
    others = [each for each in proto.opset_import if each.domain in domains - {""}]
    del proto.opset_import[:]
    proto.opset_import.extend([onnx.helper.make_opsetid("", least), *others])
    if not proto.functions:
        proto.ir_version = min(
            proto.ir_version, IR_VERSION if least < _FIRST_WITH_INT4 else IR_VERSION_WITH_INT4
        )
    return least


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _least_version(node: onnx.NodeProto, current: int, types: dict[str, int]) -> int:
    """The lowest opset from 13 on that has this node with the same meaning."""
    import onnx

    if node.domain not in ("", "ai.onnx"):
        return LOWEST
    since = int(onnx.defs.get_schema(node.op_type, current, "").since_version)
    if node.op_type not in _UNCHANGED_SINCE_13:
        return since
    for version in range(LOWEST, current):
        try:
            schema = onnx.defs.get_schema(node.op_type, version, "")
        except onnx.defs.SchemaError:
            continue
        if _admits(schema, node, types):
            return version
    return since


def _admits(schema: onnx.defs.OpSchema, node: onnx.NodeProto, types: dict[str, int]) -> bool:
    """Whether an op's schema allows the node's attributes, number of inputs, and types where known."""
    import onnx

    if not schema.min_input <= len(node.input) <= schema.max_input or len(node.output) > schema.max_output:
        return False
    if any(attribute.name not in schema.attributes for attribute in node.attribute):
        return False
    if any(attribute.s == b"wrap" for attribute in node.attribute):  # a mode that Pad took on in opset 19
        return False
    if node.op_type == "AveragePool" and any(a.name == "ceil_mode" and a.i for a in node.attribute):
        return False  # opset 19 settled what its last windows average
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in schema.type_constraints}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            formal = formals[min(index, len(formals) - 1)]
            if types.get(name):
                text = f"tensor({onnx.TensorProto.DataType.Name(types[name]).lower()})"
                if text not in allowed.get(formal.type_str, {formal.type_str}):
                    return False
    return True
