"""Networks of random layers: clean-up keeps what they compute, and every executor agrees on the QDQ graph."""

import numpy as np
import onnx
import onnxruntime
import pytest

from edgepipe.convert import ort, tflite
from edgepipe.graph.simplify import Simplify
from edgepipe.model import onnx_model
from edgepipe.quantize.scheme import Override
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

SIZE = 12


class Network:
    """Appends random layers to `x` float32 [n, 3, 12, 12]; each keeps rank 4."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []
        self.value, self.shape = "x", (3, SIZE, SIZE)
        self.seen = {self.shape: ["x"]}

    def constant(self, array):
        self.constants.append(onnx.numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def normal(self, *shape):
        return self.constant((self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    def append(self, op, *inputs, shape=None, **attributes):
        self.value, self.shape = f"v{len(self.nodes)}", shape or self.shape
        self.nodes.append(onnx.helper.make_node(op, inputs, [self.value], **attributes))
        self.seen.setdefault(self.shape, []).append(self.value)

    def conv(self, kernel, outputs, group=1):
        channels, height, width = self.shape
        weight = self.normal(outputs, channels // group, kernel, kernel)
        bias = self.constant(self.rng.normal(size=outputs).astype(np.float32))
        pads = [kernel // 2] * 4
        self.append("Conv", self.value, weight, bias, shape=(outputs, height, width), pads=pads, group=group)

    def layer(self):
        (self.linear, self.linear, self.pointwise, self.pointwise, self.spatial)[self.rng.integers(5)]()

    def linear(self):
        channels = self.shape[0]
        kernel, outputs, group = ((1, 8, 1), (3, 4, 1), (3, channels, channels))[self.rng.integers(3)]
        self.conv(kernel, outputs, group)

    def pointwise(self):
        channels = self.shape[0]
        earlier = self.rng.choice(self.seen[self.shape])
        match self.rng.integers(7):
            case 0:
                self.append("Relu", self.value)
            case 1:
                self.append("Clip", self.value, self.constant(np.float32(0)), self.constant(np.float32(6)))
            case 2:
                self.append("Add", self.value, earlier)
            case 3:
                self.append("Mul", self.value, self.normal(channels, 1, 1))
            case 4:
                statistics = self.rng.uniform(0.5, 2, (4, channels)).astype(np.float32)
                self.append("BatchNormalization", self.value, *map(self.constant, statistics))
            case 5:
                self.append("Sigmoid", self.value)
            case _:
                self.append("LeakyRelu", self.value, alpha=0.1)

    def spatial(self):
        channels, height, width = self.shape
        earlier = self.rng.choice(self.seen[self.shape])
        match self.rng.integers(3):
            case 0 if min(height, width) >= 4:
                half = (channels, height // 2, width // 2)
                self.append("MaxPool", self.value, kernel_shape=[2, 2], strides=[2, 2], shape=half)
            case 1 if channels <= 8:
                self.append("Concat", self.value, earlier, axis=1, shape=(2 * channels, height, width))
            case _:
                pads = self.constant(np.array([0, 1, 0, 1, 0, 0, 1, 1]))
                self.append("Pad", self.value, pads, shape=(channels + 1, height + 1, width + 2))

    def model(self):
        for _ in range(self.rng.integers(3, 9)):
            self.layer()
        self.append("GlobalAveragePool", self.value)
        self.append("Flatten", self.value)
        self.append("Gemm", self.value, self.normal(6, self.shape[0]), self.normal(6), transB=1)
        ports = {"x": ["n", 3, SIZE, SIZE], self.value: ["n", 6]}
        values = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in ports.items()]
        graph = onnx.helper.make_graph(self.nodes, "random", values[:1], values[1:], self.constants)
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        return onnx_model(proto, "random")


def run(emission, x):
    return infer(open_session(emission.payload, emission.format), emission.inputs, emission.outputs, x)[0]


@pytest.mark.parametrize("seed", range(24))
def test_executors_agree(seed, make_context):
    model = Network(seed).model()
    x = np.random.default_rng(seed).normal(size=(32, 3, SIZE, SIZE)).astype(np.float32)
    exact = onnxruntime.InferenceSession(model.payload).run(None, {"x": x})[0]
    simple = Simplify().apply(model, make_context())
    clean = onnxruntime.InferenceSession(simple.payload).run(None, {"x": x})[0]
    np.testing.assert_allclose(clean, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())

    quantized = QuantizeStatic(ranges=("minmax", "mse")[seed % 2]).apply(simple, make_context(x))
    unsigned, signed = (ort.emit(quantized, activation=each, ports="integer") for each in ("uint8", "int8"))
    lite = tflite.emit(quantized, ports="integer")
    assert not {"DEQUANTIZE", "TRANSPOSE"} & lite.op_counts.keys()
    step = unsigned.outputs[0].scale
    found = run(unsigned, x)
    assert np.square(exact).sum() > 100 * np.square(exact - found).sum()  # 20 dB
    for other in (signed, lite):
        assert (
            np.abs(run(other, x) - found).max() <= 4.01 * step
        )  # kernels round averages and sums differently


SCHEMES = {
    "int16": {"activation_bits": 16},
    "int4": {"weight_bits": 4},
    "3 bits per tensor": {"weight_bits": 3, "granularity": "per-tensor"},
    "every second layer on 16 bits": {"activation_bits": 16},
    "every second layer in float": {"keep_float": True},
    "every third layer on 4 bits": {"weight_bits": 4},
}


def some_layers(model, scheme):
    """The settings of a scheme; as overrides of some layers where its name says so."""
    step = {"second": 2, "third": 3}.get(scheme.split()[1] if " " in scheme else "")
    if step is None:
        return SCHEMES[scheme]
    names = tuple(node.output[0] for node in model.to_onnx().graph.node[::step])
    return {"overrides": (Override(layers=names, **SCHEMES[scheme]),)}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(6))
def test_executors_agree_on_every_scheme(seed, scheme, make_context, compute):
    x = np.random.default_rng(seed).normal(size=(16, 3, SIZE, SIZE)).astype(np.float32)
    simple = Simplify().apply(Network(seed).model(), make_context())
    plain = QuantizeStatic().apply(simple, make_context(x))
    quantized = QuantizeStatic(ranges="minmax", **some_layers(simple, scheme)).apply(simple, make_context(x))
    wanted = compute(quantized, x)[0]
    step = tflite.emit(plain).outputs[0].scale
    tolerance = 0.2 if scheme == "int16" else 4.01  # kernels round averages and sums differently
    for emission in (ort.emit(quantized, activation="uint8"), tflite.emit(quantized)):
        assert np.abs(run(emission, x) - wanted).max() <= tolerance * step
