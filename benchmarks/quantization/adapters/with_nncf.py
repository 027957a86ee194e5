"""NNCF's post-training quantization of ONNX models: https://github.com/openvinotoolkit/nncf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime
from adapter import Reply, Request, serve
from nncf.quantization.advanced_parameters import OverflowFix, QuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet


def quantize(request: Request) -> Reply:
    """Settings: mode ("default", "accurate", "accuracy-control"), per_channel, weight_bits, target, tuned."""
    model = onnx.load(str(request.onnx))
    artifact = request.folder / "int8.onnx"
    data = nncf.Dataset(request.feeds())
    mode = request.settings["mode"]
    if mode == "default":
        quantized = nncf.quantize(model, data, subset_size=len(request.x))
    elif mode == "accurate":
        quantized = nncf.quantize(
            model,
            data,
            subset_size=len(request.x),
            fast_bias_correction=False,
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice[request.settings.get("target", "CPU")],
            advanced_parameters=_advanced(request.settings),
        )
    else:
        quantized = nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=data,
            validation_dataset=nncf.Dataset(list(zip(request.feeds(), request.y, strict=True))),
            validation_fn=lambda candidate, pairs: accuracy(candidate, pairs, request.input),
            subset_size=len(request.x),
            preset=nncf.QuantizationPreset.MIXED,
        )
    onnx.save(quantized, str(artifact))
    return Reply({"onnx": artifact}, {})


def _advanced(settings: dict[str, Any]) -> nncf.AdvancedQuantizationParameters:
    """What the row changes of NNCF's parameters; `tuned` is the best found of those that it documents."""
    changed: dict[str, Any] = {}
    if settings.keys() & {"per_channel", "weight_bits"}:
        changed["weights_quantization_params"] = QuantizationParameters(
            num_bits=settings.get("weight_bits", 8), per_channel=settings.get("per_channel", True)
        )
    if settings.get("tuned"):
        # The fix halves the first layer's range for processors without VNNI; the default range is a mean.
        changed["overflow_fix"] = OverflowFix.DISABLE
        changed["activations_range_estimator_params"] = RangeEstimatorParametersSet.MINMAX
    return nncf.AdvancedQuantizationParameters(**changed)


def accuracy(model: onnx.ModelProto, pairs: Iterable[Any], input_name: str) -> tuple[float, None]:
    """Top-1 accuracy on the calibration samples, the only labelled ones that a tool may see."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    hits = [
        int(np.argmax(session.run(None, {input_name: feed[input_name]})[0]) == label) for feed, label in pairs
    ]
    return float(np.mean(hits)), None


if __name__ == "__main__":
    serve(("nncf", "onnxruntime", "onnx"), quantize)
