"""Makes the quantized models beside this file: one small net, quantized by each tool with its own code.

Each tool lives in an environment of its own, so the script does one tool a call, in that tool's environment::

    python make_fixtures.py net              torch, onnxscript: the float net, which the others take
    python make_fixtures.py onnxruntime      onnxruntime
    python make_fixtures.py nncf             nncf
    python make_fixtures.py modelopt         nvidia-modelopt[onnx]
    python make_fixtures.py aimet            aimet-onnx
    python make_fixtures.py torchao          torch, torchao, onnxscript

README.md says with which versions the committed files were made.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NET = HERE / "net.onnx"
SAMPLES = 32


def samples():
    """Calibration samples: float32 [32, 3, 16, 16], smooth rather than white, as photos are."""
    rng = np.random.default_rng(5)
    coarse = rng.standard_normal((SAMPLES, 3, 4, 4))
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3) + 0.3 * rng.standard_normal((SAMPLES, 3, 16, 16))
    return fine.astype(np.float32)


def make_torch_net():
    """What edge CNNs are made of: full, depthwise and pointwise convolutions, ReLU and ReLU6, a residual
    sum, a concatenation, both pools, a mean and a dense layer.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.pointwise = nn.Conv2d(8, 8, 1)
            self.branch = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.joint = nn.Conv2d(16, 16, 1)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = functional.relu(self.stem(x))
            y = functional.relu6(self.depthwise(x))
            x = functional.relu(x + self.pointwise(y))
            x = torch.cat([functional.max_pool2d(x, 2), functional.avg_pool2d(self.branch(x), 2)], dim=1)
            x = functional.relu(self.joint(x))
            return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))

    torch.manual_seed(11)
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
                parameter.mul_(torch.linspace(0.5, 2.0, len(parameter)).reshape(-1, 1, 1, 1))
    return net


def make_torch_chain():
    """Depthwise convolutions in a chain, as MobileNetV1 is made of, behind ReLU and behind ReLU6."""
    import torch
    from torch import nn

    torch.manual_seed(12)
    layers = [
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(),
        nn.Conv2d(8, 12, 1), nn.ReLU6(), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6(),
        nn.Conv2d(12, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ]  # fmt: skip
    return nn.Sequential(*layers).eval()


def net():
    """The float nets themselves."""
    _export(make_torch_net(), "net.onnx")
    _export(make_torch_chain(), "chain.onnx")


def _export(module, name):
    import torch

    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module, (torch.zeros(2, 3, 16, 16),), dynamo=True, opset_version=18,
        input_names=["x"], output_names=["y"], dynamic_shapes=({0: batch},), external_data=False,
    )  # fmt: skip
    write(program.model_proto, name)


def write(proto, name):
    """Saves a model without what tells of the machine that made it."""
    for item in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    (HERE / name).write_bytes(proto.SerializeToString(deterministic=True))


class Reader:
    """Calibration samples as onnxruntime and its likes read them."""

    def __init__(self, batch=1):
        self.batches = iter(np.split(samples(), SAMPLES // batch))

    def get_next(self):
        """The next feed, or None."""
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}


def onnxruntime():
    """Its static quantizer, in the forms that users choose from."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    int8, uint8, int16, uint16 = QuantType.QInt8, QuantType.QUInt8, QuantType.QInt16, QuantType.QUInt16
    forms = {
        "default": {},
        "per_channel": {"per_channel": True, "activation_type": uint8},
        "per_channel_reduced": {"per_channel": True, "activation_type": uint8, "reduce_range": True},
        "symmetric": {"per_channel": True, "extra_options": {"ActivationSymmetric": True}},
        "uint8_weights": {"activation_type": uint8, "weight_type": uint8},
        "uint8_weights_symmetric": {
            "activation_type": uint8, "weight_type": uint8, "extra_options": {"WeightSymmetric": True},
        },
        "float_weights": {"per_channel": True, "extra_options": {"AddQDQPairToWeight": True}},
        "float_bias": {"per_channel": True, "extra_options": {"QuantizeBias": False}},
        "contrib": {"per_channel": True, "extra_options": {"UseQDQContribOps": True}},
        "int16_activations": {"per_channel": True, "activation_type": int16},
        "int16_symmetric": {
            "per_channel": True, "activation_type": int16, "extra_options": {"ActivationSymmetric": True},
        },
        "uint16_activations": {"activation_type": uint16, "weight_type": uint8},
        "conv_alone": {"per_channel": True, "op_types_to_quantize": ["Conv"]},
        "operators": {"quant_format": QuantFormat.QOperator, "activation_type": uint8},
        "operators_per_channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    }  # fmt: skip
    for name, options in forms.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "q.onnx"
            settings = {"quant_format": QuantFormat.QDQ, "activation_type": int8, "weight_type": int8}
            quantize_static(str(NET), str(path), Reader(), **(settings | options))
            write(onnx.load(path), f"onnxruntime_{name}.onnx")


def nncf():
    """Its post-training quantizer, with unsigned and with signed activations."""
    import nncf as tool
    import onnx

    data = tool.Dataset([{"x": sample[None]} for sample in samples()])
    forms = {
        "default": {"fast_bias_correction": True},
        "mixed": {"preset": tool.QuantizationPreset.MIXED, "fast_bias_correction": False},
    }
    for name, options in forms.items():
        write(tool.quantize(onnx.load(NET), data, subset_size=SAMPLES, **options), f"nncf_{name}.onnx")
    chain = onnx.load(HERE / "chain.onnx")
    write(tool.quantize(chain, data, subset_size=SAMPLES, fast_bias_correction=True), "nncf_depthwise.onnx")


def modelopt():
    """Its ONNX quantizer, for TensorRT."""
    import onnx
    from modelopt.onnx.quantization import quantize

    for name, options in {"default": {}, "float32": {"high_precision_dtype": "fp32"}}.items():
        with tempfile.TemporaryDirectory() as folder:
            source, path = Path(folder) / "net.onnx", Path(folder) / "q.onnx"
            source.write_bytes(NET.read_bytes())
            quantize(
                str(source), quantize_mode="int8", calibration_data={"x": samples()},
                calibration_method="max", output_path=str(path), calibration_eps=["cpu"], **options,
            )  # fmt: skip
            write(onnx.load(path), f"modelopt_{name}.onnx")


def aimet():
    """Its simulation, written with to_onnx_qdq."""
    import onnx
    from aimet_onnx import QuantizationSimModel, int8

    simulation = QuantizationSimModel(onnx.load(NET), param_type=int8, activation_type=int8)
    simulation.compute_encodings([{"x": sample[None]} for sample in samples()])
    write(simulation.to_onnx_qdq(), "aimet_default.onnx")


def torchao():
    """PT2E, exported to ONNX: with the quantizer for x86, and with that for XNNPACK."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    forms = {
        "x86": x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config()),
        "xnnpack": xnnpack.XNNPACKQuantizer().set_global(
            xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        ),
    }
    for name, quantizer in forms.items():
        _quantize_pt2e(quantizer, f"torchao_{name}.onnx")


def _quantize_pt2e(quantizer, name):
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    batch = torch.export.Dim("batch")
    example = (torch.zeros(2, 3, 16, 16),)
    program = torch.export.export(make_torch_net(), example, dynamic_shapes=({0: batch},))
    prepared = prepare_pt2e(program.module(), quantizer)
    for sample in samples():
        prepared(torch.from_numpy(sample[None]))
    converted = convert_pt2e(prepared)
    exported = torch.onnx.export(
        torch.export.export(converted, example, dynamic_shapes=({0: batch},)), dynamo=True, opset_version=21,
        input_names=["x"], output_names=["y"], external_data=False,
    )  # fmt: skip
    write(exported.model_proto, name)


if __name__ == "__main__":
    np.random.seed(0)  # noqa: NPY002  the tools draw from the global generator
    globals()[sys.argv[1]]()
