"""Whole networks: the families that the writer is made for, quantized here and by ONNX Runtime's tool."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgepipe.convert.tflite import check, emit
from edgepipe.model import onnx_model

DATA = Path(os.environ.get("EDGEPIPE_DATA", Path(__file__).parents[4] / "shared" / "data"))
RNG = np.random.default_rng(1)


class Net:
    """Collects the nodes and constants of a network as it is written down."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def op(self, kind, *inputs, **attributes):
        name = f"{kind}{len(self.nodes)}".lower()
        self.nodes.append((kind, list(inputs), [name], attributes))
        return name

    def constant(self, array):
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def conv(self, source, wide, narrow, size=3, stride=1, group=1):
        """Weights of He et al. 2015, so that activations neither vanish nor grow."""
        shape = (narrow, wide // group, size, size)
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        weight = self.constant((RNG.normal(size=shape) * deviation).astype(np.float32))
        bias = self.constant((RNG.normal(size=narrow) * 0.1).astype(np.float32))
        pads = [size // 2] * 4
        return self.op("Conv", source, weight, bias, strides=[stride] * 2, pads=pads, group=group)

    def relu6(self, source):
        return self.op("Clip", source, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def head(self, source, wide, classes=10):
        pooled = self.op("GlobalAveragePool", source)
        weight = self.constant(RNG.normal(size=(wide, classes)).astype(np.float32))
        bias = self.constant(np.zeros(classes, np.float32))
        self.nodes.append(("Gemm", [self.op("Flatten", pooled), weight, bias], ["y"], {}))


def mobilenet_v2():
    net = Net()
    x = net.relu6(net.conv("x", 3, 8, stride=2))
    wide = net.relu6(net.conv(x, 8, 32, size=1))
    deep = net.relu6(net.conv(wide, 32, 32, group=32))
    x = net.op("Add", x, net.conv(deep, 32, 8, size=1))
    deep = net.relu6(net.conv(net.relu6(net.conv(x, 8, 32, size=1)), 32, 32, stride=2, group=32))
    net.head(net.relu6(net.conv(deep, 32, 24, size=1)), 24)
    return net


def resnet():
    """Option A shortcuts of He et al. 2016: every second pixel, zeros for the new channels."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    for wide, narrow, stride in ((8, 8, 1), (8, 16, 2)):
        deep = net.conv(net.op("Relu", net.conv(x, wide, narrow, stride=stride)), narrow, narrow)
        if stride == 2:
            cut = [net.constant(np.array(part)) for part in ([0, 0], [99, 99], [2, 3], [2, 2])]
            pads = net.constant(np.array([0, 4, 0, 0, 0, 4, 0, 0]))
            x = net.op("Pad", net.op("Slice", x, *cut), pads)
        x = net.op("Relu", net.op("Add", deep, x))
    net.head(x, 16)
    return net


def squeeze_net():
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    squeezed = net.op("Relu", net.conv(x, 8, 4, size=1))
    branches = [net.op("Relu", net.conv(squeezed, 4, 8, size=size)) for size in (1, 3)]
    net.head(net.op("Concat", *branches, axis=1), 16)
    return net


def mobilenet_v3():
    net = Net()
    x = net.op("HardSwish", net.conv("x", 3, 8, stride=2))
    pooled = net.op("GlobalAveragePool", x)
    gate = net.conv(net.op("Relu", net.conv(pooled, 8, 4, size=1)), 4, 8, size=1)
    x = net.op("Mul", x, net.op("HardSigmoid", gate, alpha=1 / 6, beta=0.5))
    net.head(net.op("HardSwish", net.conv(x, 8, 16, size=1)), 16)
    return net


FAMILIES = [mobilenet_v2, resnet, squeeze_net, mobilenet_v3]


def build(tools, family):
    net = family()
    return tools.model(net.nodes, {"x": ["n", 3, 20, 20]}, net.constants)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(tools, family):
    """Every op on integers, nothing transposed; rounding adds up to a few steps over the layers."""
    model = build(tools, family)
    check(model)
    for emission in tools.both(model, steps=6):
        assert not {"TRANSPOSE", "DEQUANTIZE"} & set(emission.op_counts)


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_quantized_by_onnxruntime(tools, family, unsigned, tmp_path):
    """A foreign QDQ model: its own ideas of grids, in front of which the writer stays within steps."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    model = build(tools, family)
    feeds = [tools.feeds(model, seed) for seed in range(4)]

    class Reader(CalibrationDataReader):
        left = iter(feeds)

        def get_next(self):
            return next(self.left, None)

    quantize_static(
        model.to_onnx(),
        tmp_path / "q.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    import onnx

    quantized = onnx_model(onnx.load(tmp_path / "q.onnx"), "q")
    tools.same_steps(quantized, feeds[0], steps=6)


def test_checking_needs_no_writing(tools, monkeypatch):
    """An answer in the first second: the flatbuffer is not made for it."""
    monkeypatch.setattr("edgepipe.convert.tflite.write", None)
    check(build(tools, mobilenet_v2))


def shared(name):
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is absent")
    return DATA / name


def test_efficientnet_lite0(tools):
    """TensorFlow's padding, written out by torch: no PAD and no TRANSPOSE is left of it."""
    import onnx

    model = onnx_model(onnx.load(shared("efficientnet_lite0_fp32.onnx")), "efficientnet")
    emission = emit(model)
    feeds = tools.feeds(model)
    np.testing.assert_allclose(
        tools.run_tflite(emission, feeds)[0], tools.run_onnx(model, feeds)[0], atol=1e-4, rtol=1e-4
    )
    assert emission.op_counts == {
        "ADD": 9, "CONV_2D": 33, "DEPTHWISE_CONV_2D": 16, "FULLY_CONNECTED": 1, "MEAN": 1, "RESHAPE": 1
    }  # fmt: skip
