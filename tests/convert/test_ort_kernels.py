"""What ONNX Runtime fuses into integer kernels, against the same file computed op by op."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgepipe.convert import ort
from edgepipe.graph.simplify import Simplify
from edgepipe.model import onnx_model
from edgepipe.quantize.static import QuantizeStatic

SHAPE = (4, 10, 11)
BEYOND = "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2], ceil_mode=1, count_include_pad=1>(c)"
FAMILIES = {
    "Conv": "Conv<pads=[1,1,1,1], strides=[2,1]>(c, w3)",
    "depthwise": "Conv<pads=[1,0,1,2], group=4>(c, dw)",
    "dilated": "Conv<dilations=[2,2]>(c, w3)",
    "ConvTranspose": "ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(c, w3)",
    "MatMul": "MatMul(c, matrix)",
    "Add": "Add(c, x)",
    "Add a constant": "Add(c, factor)",
    "Sub": "Sub(x, c)",
    "Mul": "Mul(c, x)",
    "Mul a constant": "Mul(c, factor)",
    "Max": "Max(c, x)",
    "Relu": "Relu(c)",
    "Clip": "Clip(c, low, high)",
    "Concat": "Concat<axis=1>(c, x)",
    "MaxPool": "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1>(c)",
    "GlobalAveragePool": "GlobalAveragePool(c)",
    "ReduceMean": "ReduceMean<axes=[1]>(c)",
    "Sigmoid": "Sigmoid(c)",
    "Tanh": "Tanh(c)",
    "Softmax": "Softmax<axis=1>(c)",
    "LogSoftmax": "LogSoftmax<axis=3>(c)",
    "HardSwish": "HardSwish(c)",
    "HardSigmoid": "HardSigmoid(c)",
    "LeakyRelu": "LeakyRelu<alpha=0.2>(c)",
    "Elu": "Elu(c)",
    "PRelu": "PRelu(c, factor)",
    "Pad": "Pad(c, pads, low)",
    "Transpose": "Transpose<perm=[0,2,3,1]>(c)",
    "Resize, nearest": 'Resize<mode="nearest">(c, , scales)',
    "Resize, linear": 'Resize<mode="linear">(c, , scales)',
    "Slice": "Slice(c, starts, ends)",
}


def run(payload, x, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(payload, options)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def step(payload):
    """The step of the grid that the output is on."""
    proto = onnx.load_from_string(payload)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    last = next(node for node in proto.graph.node if node.output[0] == proto.graph.output[0].name)
    return float(constants[last.input[1]])


def steps_apart(fused, plain, x):
    """The greatest difference between a file that is fused and one that is not, in steps of the output."""
    levels = onnxruntime.GraphOptimizationLevel
    found, exact = run(fused, x, levels.ORT_ENABLE_ALL), run(plain, x, levels.ORT_DISABLE_ALL)
    assert found.shape == exact.shape
    return np.abs(found - exact).max() / step(plain)


@pytest.fixture
def quantized(build_model, make_context):
    """A convolution `c` of `x` [n, 4, 10, 11] and one op behind it, in QDQ form; and samples."""

    def build(expression, opset=17):
        rng = np.random.default_rng(0)

        def normal(*shape):
            return rng.normal(size=shape).astype(np.float32)

        model = build_model(
            f"net (float[n,4,10,11] x) => (float[n,h,i,j] y) {{ c = Conv(x, w1, b)  y = {expression} }}",
            opset=opset,
            w1=normal(4, 4, 1, 1), b=normal(4), w3=normal(4, 4, 3, 3) / 6, dw=normal(4, 1, 3, 3),
            matrix=normal(11, 5), factor=normal(4, 1, 1), low=np.float32(-0.5), high=np.float32(1.5),
            pads=np.array([0, 0, 1, 2, 0, 0, 0, 1]), scales=np.array([1, 1, 2, 2], np.float32),
            starts=np.array([0, 1, 2]), ends=np.array([9, 3, 9]),
        )  # fmt: skip
        x = rng.normal(size=(16, *SHAPE)).astype(np.float32)
        context = make_context(x)
        return QuantizeStatic().apply(Simplify().apply(model, context), context), x

    return build


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_integer_kernels_compute_the_graph(quantized, family, activation):
    model, x = quantized(FAMILIES[family])
    payload = ort.emit(model, activation=activation).payload
    assert steps_apart(payload, payload, x) <= 1.01


@st.composite
def pools(draw):
    taps = [draw(st.integers(1, 4)) for _ in range(2)]
    pads = [draw(st.integers(0, (k - 1) * draw(st.integers(0, 1)))) for k in taps * 2]
    strides = [draw(st.integers(1, 3)) for _ in range(2)]
    flags = f"ceil_mode={draw(st.integers(0, 1))}, count_include_pad={draw(st.integers(0, 1))}"
    return f"AveragePool<kernel_shape={taps}, pads={pads}, strides={strides}, {flags}>(c)"


def test_integer_kernels_compute_every_average_pool(quantized):
    @settings(max_examples=60)
    @given(expression=pools(), activation=st.sampled_from(["uint8", "int8"]))
    @example(BEYOND, "uint8")
    def check(expression, activation):
        model, x = quantized(expression)
        payload = ort.emit(model, activation=activation).payload
        assert steps_apart(payload, payload, x) <= 1.01

    check()


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_pools_of_models_that_come_in_quantized_are_right_too(quantized, pads, activation):
    """The same pool with its flags put back, as another tool would have written it."""
    model, x = quantized(f"AveragePool<kernel_shape=[3,3], strides=[2,2], pads={[pads] * 4}>(c)")
    proto = onnx.load_from_string(model.payload)
    pool = next(node for node in proto.graph.node if node.op_type == "AveragePool")
    pool.attribute.extend(onnx.helper.make_attribute(name, 1) for name in ("ceil_mode", "count_include_pad"))
    foreign = onnx_model(proto, "foreign")
    assert steps_apart(ort.emit(foreign, activation=activation).payload, foreign.payload, x) <= 1.01
