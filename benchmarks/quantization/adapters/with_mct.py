"""Sony's Model Compression Toolkit, which takes PyTorch modules: https://github.com/SonySemiconductorSolutions/mct-model-optimization.

The result is exported as ONNX in its "fake quantized" format, the one of its formats that ONNX Runtime runs
without MCT's own operators: weights are float numbers on the grid.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from adapter import Reply, Request, serve

# MCT and onnx2torch import torchvision without using it here, and torchvision from PyPI is built for
# CUDA's PyTorch: beside the CPU's it finds none of its operators, and fails on the first that it wants.
for operator in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )

# MCT writes for PyTorch's older exporter, which was the default until PyTorch 2.8.
torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)

import model_compression_toolkit as mct  # noqa: E402  after the lines above

BATCH = 16


def quantize(request: Request) -> Reply:
    """Settings: platform ([version, device]), gptq_epochs (0 for none), weight_bits (an average), onnx.

    With `onnx` the module comes from the ONNX graph even where there is an original one.
    """
    settings = request.settings
    module = _module(request._replace(torch=None) if settings.get("onnx") else request)
    batches = _Batches(request, BATCH)
    platform = mct.get_target_platform_capabilities(*settings.get("platform", ("1.0", "imx500")))
    core = mct.core.CoreConfig()
    budget = None
    if settings.get("weight_bits"):
        core = mct.core.CoreConfig(
            mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(num_of_images=32)
        )
        full = mct.core.pytorch_resource_utilization_data(
            module, batches, core, target_platform_capabilities=platform
        )
        # What the data facade tells is at 8 bits a weight.
        budget = mct.core.ResourceUtilization(
            weights_memory=full.weights_memory * settings["weight_bits"] / 8
        )
    if settings.get("gptq_epochs"):
        # Its Hessian scores refuse a model that ends with Softmax, and its message says to turn them off.
        hessian = onnx.load(str(request.onnx)).graph.node[-1].op_type != "Softmax"
        config = mct.gptq.get_pytorch_gptq_config(
            n_epochs=settings["gptq_epochs"],
            use_hessian_based_weights=hessian,
            use_hessian_sample_attention=hessian,
        )
        quantized, found = mct.gptq.pytorch_gradient_post_training_quantization(
            module,
            batches,
            target_resource_utilization=budget,
            core_config=core,
            gptq_config=config,
            target_platform_capabilities=platform,
        )
    else:
        quantized, found = mct.ptq.pytorch_post_training_quantization(
            module,
            batches,
            target_resource_utilization=budget,
            core_config=core,
            target_platform_capabilities=platform,
        )
    artifact = request.folder / "int8.onnx"
    mct.exporter.pytorch_export_model(
        quantized,
        str(artifact),
        batches,
        quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT,
    )
    detail: dict[str, Any] = {}
    if settings.get("weight_bits"):
        detail["bits"] = [str(each) for each in found.mixed_precision_cfg or ()]
    return Reply({"onnx": artifact}, detail)


class _Batches:
    """What MCT calls a representative data generator: called, it goes over the calibration samples."""

    def __init__(self, request: Request, batch: int) -> None:
        self._feeds = request.feeds(batch)
        self._input = request.input

    def __call__(self) -> Iterator[list[Any]]:
        for feed in self._feeds:
            yield [feed[self._input]]


def _module(request: Request) -> torch.nn.Module:
    if request.torch is None:
        import onnx2torch

        return onnx2torch.convert(_without_reshapes(request.simplified)).eval()
    factory, checkpoint = request.torch
    spec = importlib.util.spec_from_file_location(Path(factory).stem, factory)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    module: torch.nn.Module = source.build()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return module.eval()


def _without_reshapes(path: Path) -> onnx.ModelProto:
    """The model with each Reshape and Squeeze as what it does here.

    onnx2torch's forms look at the shape, or take it as a tensor, which torch.fx and MCT forbid.
    """
    model = onnx.load(str(path))
    shapes = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in {"Reshape", "Squeeze"}:
            continue
        flat = node.op_type == "Squeeze" or len(shapes[node.input[1]]) == 2
        # Of the four models one has another: from one channel last to one channel first, a transposition.
        known = (
            onnx.helper.make_attribute("axis", 1)
            if flat
            else onnx.helper.make_attribute("perm", (0, 3, 1, 2))
        )
        node.op_type = "Flatten" if flat else "Transpose"
        del node.attribute[:], node.input[1:]
        node.attribute.append(known)
    return model


if __name__ == "__main__":
    serve(("model-compression-toolkit", "torch", "onnx"), quantize)
