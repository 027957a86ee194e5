"""ONNX Runtime's static quantization, as its documentation recommends it for x86-64 with VNNI.

QDQ, uint8 activations, int8 weights, after `quant_pre_process`:
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import numpy as np
from adapter import Reply, Request, serve
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Samples(CalibrationDataReader):
    """Calibration samples, one at a time, as the documentation's example gives them."""

    def __init__(self, feeds: list[dict[str, NDArray[np.float32]]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def quantize(request: Request) -> Reply:
    """Settings: method ("MinMax", "Percentile", "Entropy"), per_channel, weight_bits (8 or 4)."""
    prepared, artifact = request.folder / "prepared.onnx", request.folder / "int8.onnx"
    settings = request.settings
    quant_pre_process(str(request.onnx), str(prepared))
    quantize_static(
        str(prepared),
        str(artifact),
        Samples(request.feeds()),
        quant_format=QuantFormat.QDQ,
        per_channel=settings.get("per_channel", True),
        activation_type=QuantType.QUInt8,
        weight_type={8: QuantType.QInt8, 4: QuantType.QInt4}[settings.get("weight_bits", 8)],
        calibrate_method=CalibrationMethod[settings["method"]],
    )
    prepared.unlink()
    return Reply({"onnx": artifact}, {})


if __name__ == "__main__":
    serve(("onnxruntime", "onnx"), quantize)
