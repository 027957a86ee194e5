"""Dynamic range quantization: weights on grids, activations left to the runtime."""

import numpy as np
import pytest

from edgepipe.convert import ort, tflite
from edgepipe.errors import ModelError
from edgepipe.quantize.dynamic import QuantizeDynamic
from edgepipe.runtime import infer, open_session

NET = """net (float[n,8,9,9] x) => (float[n,40] y) {
    c = Conv<pads=[1,1,1,1]>(x, w, b)  d = Conv<pads=[1,1,1,1], group=16>(c, dw)  r = Relu(d)  a = Add(r, c)
    g = GlobalAveragePool(a)  f = Flatten(g)  h = MatMul(f, wm)  y = Gemm<transB=1>(h, wg, bg)
}"""


@pytest.fixture
def net(build_model):
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 8, 3, 3), "b": 16, "dw": (16, 1, 3, 3), "wm": (16, 64), "wg": (40, 64), "bg": 40}
    return build_model(NET, **{name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()})


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(16, 8, 9, 9)).astype(np.float32)


def test_it_needs_no_samples_and_leaves_its_model_alone(net, make_context):
    before = net.payload
    QuantizeDynamic().apply(net, make_context())
    assert net.payload == before
    assert not QuantizeDynamic.needs_calibration


def test_large_weights_are_within_half_a_step_and_others_as_they_were(net, make_context, read_qdq):
    graph = read_qdq(QuantizeDynamic().apply(net, make_context()))
    convolution, depthwise = (node for node in graph.nodes if node.op_type == "Conv")
    integers, scales, axis = graph.constant(convolution, 1)
    exact = read_qdq(net).constants
    assert (integers.dtype, axis) == (np.int8, 0)
    errors = np.abs(integers * scales[:, None, None, None] - exact["w"])
    assert (errors <= scales[:, None, None, None] * 0.5001).all()
    np.testing.assert_array_equal(graph.constants[depthwise.input[1]], exact["dw"])


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_every_runtime_is_near_the_float_model(net, x, make_context, compute, granularity):
    exact = compute(net, x)[0]
    model = QuantizeDynamic(granularity=granularity).apply(net, make_context())
    for emission in (ort.emit(model, activation="uint8"), tflite.emit(model)):
        session = open_session(emission.payload, emission.format)
        found = infer(session, emission.inputs, emission.outputs, x)[0]
        assert np.square(exact).sum() > 1000 * np.square(exact - found).sum()  # 30 dB
        assert emission.name == f"dynamic.{emission.format}"
        assert {port.dtype for port in emission.inputs + emission.outputs} == {"float32"}


def test_files_hold_the_integers_and_the_fast_ops(net, make_context):
    model = QuantizeDynamic().apply(net, make_context())
    onnx, lite = ort.emit(model, activation="int8"), tflite.emit(model)
    assert onnx.op_counts["MatMulInteger"] == 2
    assert "ConvInteger" not in onnx.op_counts
    assert not {"DEQUANTIZE", "QUANTIZE"} & lite.op_counts.keys()
    assert lite.needs["tflite-runtime"] == "2.17"
    weights = 16 * 8 * 9 + 16 * 64 + 40 * 64
    for emission, plain in ((onnx, ort.emit(net, activation="int8")), (lite, tflite.emit(net))):
        assert len(plain.payload) - len(emission.payload) > 2.3 * weights


def test_a_model_without_weights_is_refused(build_model, make_context):
    with pytest.raises(ModelError, match="no weight"):
        QuantizeDynamic().apply(
            build_model("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }"), make_context()
        )


def test_a_quantized_model_passes_through(net, make_context):
    model = QuantizeDynamic().apply(net, make_context())
    assert QuantizeDynamic().apply(model, make_context()) is model
