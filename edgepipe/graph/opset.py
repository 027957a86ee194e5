"""Raising a model to an opset that has the integer types it is to hold."""

from __future__ import annotations

from edgepipe.errors import ModelError
from edgepipe.model import Model, onnx_model

INTEGERS_OF_ALL_WIDTHS = 21
"""First opset whose QuantizeLinear and DequantizeLinear take int4 and int16 (ONNX 1.16)."""


SCALES_BY_CHANNEL = 13
"""First opset whose DequantizeLinear takes a scale for each channel."""


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


def raise_opset(model: Model, least: int) -> Model:
    """The same function in opset `least`; the model itself where it is that new already.

    Args:
        model: Format "onnx".
        least: Version of the standard op set.

    Raises:
        ModelError: ONNX's own converter does not know the way for an op.
    """
    import onnx
    from onnx import version_converter

    proto = model.to_onnx()
    current = max((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), default=0)
    if current >= least:
        return model
    try:
        raised = version_converter.convert_version(proto, least)
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
