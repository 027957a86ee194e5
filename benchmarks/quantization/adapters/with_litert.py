"""litert-quantizer (until 0.10 ai-edge-quantizer), Google's own for LiteRT: static INT8, per channel."""

from __future__ import annotations

from adapter import Reply, Request, serve
from ai_edge_litert.interpreter import Interpreter
from litert_quantizer import quantizer, recipe


def quantize(request: Request) -> Reply:
    """Settings: none."""
    artifact = request.folder / "int8.tflite"
    work = quantizer.Quantizer(str(request.tflite), recipe.static_wi8_ai8())
    signatures = Interpreter(model_path=str(request.tflite)).get_signature_list()
    name, ports = next(iter(signatures.items())) if signatures else (None, {"inputs": []})
    samples = request.x.transpose(request.tflite_input_axes)
    port = ports["inputs"][0] if ports["inputs"] else request.input
    feeds = [{port: samples[i : i + 1]} for i in range(len(samples))]
    measured = work.calibrate({name: feeds})
    work.quantize(measured).export_model(str(artifact), overwrite=True)
    return Reply({"tflite": artifact}, {})


if __name__ == "__main__":
    serve(("litert-quantizer", "ai-edge-litert"), quantize)
