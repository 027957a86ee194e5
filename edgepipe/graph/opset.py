"""Raising a model to an opset that has the integer types it is to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.errors import ModelError
from edgepipe.graph import shapes
from edgepipe.model import Model, onnx_model

if TYPE_CHECKING:
    import onnx

INTEGERS_OF_ALL_WIDTHS = 21
"""First opset whose QuantizeLinear and DequantizeLinear take int4 and int16 (ONNX 1.16)."""


SCALES_BY_CHANNEL = 13
"""First opset whose DequantizeLinear takes a scale for each channel."""


def standard_opset(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own op set that a model names, by either name; 0 where it names none."""
    return max((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), default=0)


def require_scales_by_channel(version: int, where: str) -> None:
    """Makes sure that a model of opset `version` can hold per-channel weights.

    Raises:
        ModelError: It cannot.
    """
    if version < SCALES_BY_CHANNEL:
        raise ModelError(
            "the model's opset has no quantization by channel",
            where=where,
            got=f"opset {version}",
            remedy=f"export the model with opset {SCALES_BY_CHANNEL} or later",
        )


def convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """A copy of the model in opset `version`, by ONNX's own converter, which doesn't get to see the weights.

    Raises:
        RuntimeError: The converter does not know the way for an op.
    """
    from onnx import version_converter

    if shapes.is_nested(proto):
        return version_converter.convert_version(proto, version)
    bare = shapes.without_weights(proto)
    bare.metadata_props.extend(proto.metadata_props)
    for copy, source in ((bare, proto), (bare.graph, proto.graph)):
        for field, value in source.ListFields():
            if isinstance(value, str | int):
                setattr(copy, field.name, value)
    converted = version_converter.convert_version(bare, version)
    found, ports = converted.graph, {value.name for value in proto.graph.input}
    tensors = {tensor.name: tensor for tensor in (*proto.graph.initializer, *found.initializer)}
    result = converted.__class__()
    result.CopyFrom(converted)
    del result.graph.input[:], result.graph.initializer[:]
    result.graph.input.extend(value for value in found.input if value.name in ports)
    result.graph.initializer.extend(tensors.values())
    return result


def raise_opset(model: Model, least: int) -> Model:
    """The same function in opset `least`; the model itself where it is that new already.

    Args:
        model: Format "onnx".
        least: Version of the standard op set.

    Raises:
        ModelError: ONNX's own converter does not know the way for an op.
    """
    import onnx

    proto = model.to_onnx()
    if standard_opset(proto) >= least:
        return model
    try:
        raised = convert(proto, least)
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"ONNX cannot raise the model to opset {least}, which int4 and int16 need",
            where=model.name,
            got=str(error).splitlines()[0],
            remedy=f"export the model with opset {least} or later",
        ) from error
    raised.ir_version = max(
        raised.ir_version, onnx.helper.find_min_ir_version_for(raised.opset_import, ignore_unknown=True)
    )
    return onnx_model(raised, model.name)
