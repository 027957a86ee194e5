"""Shape inference, and whatever else ONNX does to a graph, without the weights.

ONNX's own functions take a whole model as bytes and give another back, which for a few megabytes of
weights costs ten times what is done. Here large constants become inputs of their shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_SHAPE_ELEMENTS = 1024
"""Elements at most of a constant that a shape may follow from: far more than a tensor has axes."""


def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its shapes inferred anew: itself, or a copy where some are inside of control flow."""
    import onnx

    graph = proto.graph
    del graph.value_info[:]  # a stale shape would win over the inferred one
    if is_nested(proto):
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    inferred = onnx.shape_inference.infer_shapes(without_weights(proto), data_prop=True).graph
    graph.value_info.extend(inferred.value_info)
    for value, found in zip(graph.output, inferred.output, strict=True):
        value.CopyFrom(found)
    return proto


def is_nested(proto: onnx.ModelProto) -> bool:
    """Whether the model has functions, or graphs inside of nodes, which may read what is outside."""
    return bool(proto.functions) or any(
        each.HasField("g") or each.graphs for node in proto.graph.node for each in node.attribute
    )


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph alone, its large constants as inputs behind its own."""
    import onnx

    graph = proto.graph
    inputs = {value.name for value in graph.input}
    bare = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    bare.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SHAPE_ELEMENTS:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            bare.graph.input.append(_port(tensor.name, tensor.data_type, tensor.dims))
    return bare


def refresh(graph_model: ir.Model) -> ir.Model:
    """As `infer`, of an onnx_ir model: itself, or a copy where some shapes are inside of control flow."""
    import onnx
    import onnx_ir as ir

    graph = graph_model.graph
    if graph_model.functions or any(each is not graph for each in graph_model.graphs()):
        return ir.from_proto(infer(ir.to_proto(graph_model)))
    inferred = onnx.shape_inference.infer_shapes(_proto_without_weights(graph_model), data_prop=True).graph
    known = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    for node in graph:
        for value in node.outputs:
            value.shape = value.type = None
            if str(value.name) in known:
                ir.serde.deserialize_value_info_proto(known[str(value.name)], value)
    return graph_model


def _proto_without_weights(graph_model: ir.Model) -> onnx.ModelProto:
    import onnx
    from onnx_ir import serde

    graph, bare = graph_model.graph, onnx.ModelProto(ir_version=graph_model.ir_version)
    for domain, version in graph_model.opset_imports.items():
        bare.opset_import.add(domain=domain, version=version)
    for node in graph:
        serde.serialize_node_into(bare.graph.node.add(), node)
    for ports, values in ((bare.graph.input, graph.inputs), (bare.graph.output, graph.outputs)):
        for value in values:
            serde.serialize_value_into(ports.add(), value)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.size <= _SHAPE_ELEMENTS:
            tensor.name = value.name
            serde.serialize_tensor_into(bare.graph.initializer.add(), tensor)
        elif not value.is_graph_input():
            bare.graph.input.append(_port(str(value.name), int(tensor.dtype), tensor.shape.numpy()))
    return bare


def _port(name: str, element: int, sizes: Sequence[int]) -> onnx.ValueInfoProto:
    import onnx

    return onnx.helper.make_tensor_value_info(name, element, list(sizes))
