"""AIMET for ONNX: https://quic.github.io/aimet-pages (quantization simulation, CLE, AdaRound)."""

from __future__ import annotations

import aimet_onnx
import onnx
from adapter import Reply, Request, serve
from aimet_onnx.cross_layer_equalization import equalize_model

ADAROUND_BATCH = 4
"""Samples for an iteration of AdaRound, at most 32: small ones leave time for more iterations."""


def quantize(request: Request) -> Reply:
    """Settings: equalize, adaround (iterations a layer), weight_bits, config_file, scheme, fused."""
    settings = request.settings
    model = onnx.load(str(request.simplified))  # its documentation asks for a simplified model
    artifact = request.folder / "int8.onnx"
    if settings.get("equalize"):
        equalize_model(model)
    first = request.feeds()[0]
    inside = before_activations(model.graph) if settings.get("fused") else []
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=f"int{settings.get('weight_bits', 8)}",
        activation_type="int8",
        quant_scheme=settings.get("scheme", "min_max"),
        config_file=settings.get("config_file", "default"),
        dummy_input=first,
    )
    for name in inside:
        sim.qc_quantize_op_dict[name].enabled = False
    if settings.get("adaround"):
        fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        feeds = request.feeds(fixed or ADAROUND_BATCH)
        aimet_onnx.apply_adaround(sim, feeds, num_iterations=settings["adaround"])
    sim.compute_encodings(request.feeds())
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True, export_int32_bias=True), str(artifact))
    return Reply({"onnx": artifact}, {})


def before_activations(graph: onnx.GraphProto) -> list[str]:
    """Outputs of convolutions that an activation alone reads: runtimes compute both at once.

    AIMET knows that of convolutions except depthwise ones, whose outputs it quantizes before they are cut.
    """
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    found = [node.output[0] for node in graph.node if node.op_type == "Conv"]
    return [name for name in found if readers.get(name) in (["Clip"], ["Relu"])]


if __name__ == "__main__":
    serve(("aimet-onnx", "onnxruntime", "onnx", "torch"), quantize)
