"""Quantized models of other tools, in the one form that edgepipe writes itself.

The decisions stay: every scale, zero point and integer. Only the way of saying them changes.

The form: standard QuantizeLinear and DequantizeLinear; a weight is an integer constant behind a
DequantizeLinear, a bias int32 on the scale of its products; what only moves or joins quantized values is
quantized too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import channelwise, edit, joins, qlinear
from edgepipe.graph.opset import standard_opset

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

FIRST_WIDE_OPSET = 21
"""First opset whose QuantizeLinear knows 16 and 4 bits; before, they are ONNX Runtime's own ops."""
_INT32_MAX = 2**31 - 1
_NARROW = ("INT8", "UINT8", "INT32")
_BIASED = ("Conv", "ConvTranspose", "Gemm")


def settle(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same quantized model in edgepipe's own form; a model that is in it already comes out as it was.

    Args:
        proto: Of opset 13 or later.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    proto = _with_known_quantizers(proto)
    graph_model = ir.from_proto(proto)
    common.LiftConstantsToInitializersPass()(graph_model)
    graph = graph_model.graph
    _state_zero_points(graph)
    qlinear.expand(graph)
    _fold_weights(graph)
    _fold_transposes(graph)
    _free_bounds(graph)
    channelwise.unify(graph)
    joins.complete(graph)
    _round_biases(graph)
    common.TopologicalSortPass()(graph_model)
    common.RemoveUnusedNodesPass()(graph_model)
    common.RemoveUnusedOpsetsPass()(graph_model)
    return ir.to_proto(graph_model)


def _with_known_quantizers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Quantizers of the standard domain alone, with the opset raised where their types need it."""
    from onnx import TensorProto, version_converter

    own = [node for node in proto.graph.node if _is_contributed(node)]
    if not own:
        return proto
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    narrow = {getattr(TensorProto, name) for name in _NARROW}
    wide = any(types.get(name, TensorProto.FLOAT) not in narrow for node in own for name in node.input[2:3])
    if wide and standard_opset(proto) < FIRST_WIDE_OPSET:
        proto = version_converter.convert_version(proto, FIRST_WIDE_OPSET)
    for node in proto.graph.node:
        if _is_contributed(node):
            node.domain = ""
    return proto


def _is_contributed(node: onnx.NodeProto) -> bool:
    return node.domain == qlinear.CONTRIB and node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _state_zero_points(graph: ir.Graph) -> None:
    """Gives an explicit zero point to each Q and DQ on 8 bits that left it out, of the type that it implies.

    That is what `output_dtype` of a Q says, uint8 where it says nothing; a DQ has the type of what it reads.
    """
    import onnx_ir as ir

    kinds = {}
    for node in edit.nodes(graph, "QuantizeLinear", "DequantizeLinear"):
        source, scale = node.inputs[0], edit.constant_input(node, 1)
        if source is None or scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None):
            continue
        if node.op_type == "QuantizeLinear":
            kind = edit.integer(node, "output_dtype", 0) or ir.DataType.UINT8.value
            kinds[node.outputs[0]] = kind
        else:
            constant = source.const_value
            kind = kinds.get(source, 0) if constant is None else constant.dtype.value
        if kind in (ir.DataType.INT8.value, ir.DataType.UINT8.value):
            zeros = np.zeros(scale.shape, ir.DataType(kind).numpy())
            node.resize_inputs(3)
            node.replace_input_with(2, edit.add_constant(graph, f"{node.outputs[0].name}/zero_point", zeros))
            node.attributes.pop("output_dtype", None)


def _fold_weights(graph: ir.Graph) -> None:
    """Rounds a float constant that a QuantizeLinear takes: to the integers that it would give."""
    for node in edit.nodes(graph, "QuantizeLinear"):
        arrays = [edit.constant_input(node, index) for index in range(3)]
        real, scale, zero_point = arrays
        if real is None or scale is None or edit.integer(node, "block_size", 0):
            continue
        if zero_point is None:
            zero_point = np.zeros(scale.shape, np.uint8)
        if zero_point.dtype not in (np.int8, np.uint8):
            continue
        axis = edit.integer(node, "axis", 1)
        integers = _quantized(real, scale, zero_point, axis)
        constant = edit.add_constant(graph, str(node.outputs[0].name), integers)
        node.outputs[0].replace_all_uses_with(constant)
        graph.remove(node, safe=True)


def _quantized(
    real: NDArray[np.floating], scale: NDArray[np.floating], zero_point: NDArray[np.integer], axis: int
) -> NDArray[np.integer]:
    """ONNX's definition of QuantizeLinear, in float32: half to even, saturated."""
    shape = [1] * real.ndim
    if scale.size > 1:
        shape[axis] = -1
    limits = np.iinfo(zero_point.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):  # channels of zeros may have a scale of 0
        steps = np.rint(real.astype(np.float32) / scale.astype(np.float32).reshape(shape))
    moved = np.nan_to_num(steps, nan=0.0) + zero_point.astype(np.float32).reshape(shape)
    return np.asarray(np.clip(moved, limits.min, limits.max).astype(zero_point.dtype))


def _fold_transposes(graph: ir.Graph) -> None:
    """Transposes the integers of a constant weight, rather than the reals behind its DequantizeLinear."""
    import onnx_ir as ir

    for node in edit.nodes(graph, "Transpose"):
        source = node.inputs[0]
        dequantizer = source.producer() if source is not None else None
        if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
            continue
        integers = edit.constant_input(dequantizer, 0)
        if integers is None or edit.integer(dequantizer, "block_size", 0):
            continue
        perm = edit.ints(node, "perm", tuple(reversed(range(integers.ndim))))
        name = f"{dequantizer.inputs[0].name}/transposed"  # type: ignore[union-attr]
        constant = edit.add_constant(graph, name, np.ascontiguousarray(integers.transpose(perm)))
        axis = perm.index(edit.integer(dequantizer, "axis", 1) % integers.ndim)
        taken = [constant, *dequantizer.inputs[1:]]
        new = ir.node("DequantizeLinear", taken, {"axis": axis}, name=dequantizer.name)
        new.outputs[0].name = edit.unused_name(graph, f"{constant.name}/dequantized")
        graph.insert_before(node, new)
        edit.replace_value(graph, node.outputs[0], new.outputs[0])
        graph.remove(node, safe=True)


def _free_bounds(graph: ir.Graph) -> None:
    """Gives a Clip its bounds as the reals that they stand for: kernels know no other."""
    for node in edit.nodes(graph, "Clip"):
        for index, value in enumerate(node.inputs[1:], start=1):
            dequantizer = value.producer() if value is not None else None
            if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
                continue
            integers, scale, zero = (edit.constant_input(dequantizer, place) for place in range(3))
            if integers is None or scale is None or integers.size != 1:
                continue
            steps = integers.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))
            name = f"{dequantizer.outputs[0].name}/real"
            bound = edit.add_constant(graph, name, np.asarray(steps * scale, np.float32).reshape(()))
            node.replace_input_with(index, bound)


def _round_biases(graph: ir.Graph) -> None:
    """Writes float biases of integer ops as int32 on the scale of their products, as kernels add them."""
    import onnx_ir as ir

    for node in edit.nodes(graph, *_BIASED):
        bias = edit.constant_input(node, 2)
        scales = _product_scales(node)
        if bias is None or scales is None or bias.ndim != 1 or bias.dtype != np.float32:
            continue
        if scales.size not in (1, bias.size) or not _feeds_quantizer(node.outputs[0]):
            continue
        steps = np.rint(bias.astype(np.float64) / scales)
        if not np.isfinite(steps).all() or np.abs(steps).max(initial=0.0) > _INT32_MAX:
            continue  # the emitter that needs integers raises the weight's scale
        name = str(node.inputs[2].name)  # type: ignore[union-attr]
        own = scales if scales.size > 1 else scales.reshape(())
        taken = [
            edit.add_constant(graph, f"{name}/quantized", steps.astype(np.int32)),
            edit.add_constant(graph, f"{name}/scale", own),
            edit.add_constant(graph, f"{name}/zero_point", np.zeros(own.shape, np.int32)),
        ]
        new = ir.node("DequantizeLinear", taken, {"axis": 0}, name=f"{name}/dequantize")
        new.outputs[0].name = edit.unused_name(graph, f"{name}/dequantized")
        graph.insert_before(node, new)
        node.replace_input_with(2, new.outputs[0])


def _product_scales(node: ir.Node) -> NDArray[np.float32] | None:
    """Input scale times weight scales: float32 [channels] or [1]; None unless both are quantized so."""
    scales = []
    for index, allowed in ((0, None), (1, _weight_axis(node))):
        value = node.inputs[index]
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type != "DequantizeLinear":
            return None
        scale = edit.constant_input(producer, 1)
        if scale is None or edit.integer(producer, "block_size", 0):
            return None
        if scale.size > 1:
            integers = edit.constant_input(producer, 0)
            if integers is None or edit.integer(producer, "axis", 1) % integers.ndim != allowed:
                return None
        scales.append(np.asarray(scale, np.float32).reshape(-1))
    return np.asarray(scales[0] * scales[1], np.float32)


def _weight_axis(node: ir.Node) -> int | None:
    """Axis of the output channels in the weight; None where they have none of their own."""
    if node.op_type == "Gemm":
        return 0 if edit.integer(node, "transB", 0) else 1
    if node.op_type == "ConvTranspose":
        return 1 if edit.integer(node, "group", 1) == 1 else None
    return 0


def _feeds_quantizer(value: ir.Value) -> bool:
    """Whether all readers quantize the value, behind a Relu or Clip at most."""
    readers = [node for node, _ in value.uses()]
    if value.is_graph_output() or not readers:
        return False
    return all(
        node.op_type == "QuantizeLinear"
        or (node.op_type in ("Relu", "Clip") and _feeds_quantizer(node.outputs[0]))
        for node in readers
    )
