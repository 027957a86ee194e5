"""Every number format on every runtime, kernel by kernel, against the graph computed op by op in float."""

import numpy as np
import onnx
import onnxruntime
import pytest

from edgepipe.convert import ort, tflite
from edgepipe.convert.precision import precision_of
from edgepipe.errors import UnsupportedOp
from edgepipe.graph.simplify import Simplify
from edgepipe.quantize.scheme import Override
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

EXACT = {
    "Conv": "Conv<pads=[1,1,1,1], strides=[2,1]>(c, w3)",
    "pointwise": "Conv(c, w1)",
    "depthwise": "Conv<pads=[1,1,1,1], group=4>(c, dw)",
    "grouped": "Conv<pads=[1,1,1,1], group=2>(c, w2)",
    "dilated": "Conv<dilations=[2,2]>(c, w3)",
    "ConvTranspose": "ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(c, w3)",
    "MatMul": "MatMul(c, matrix)",
    "MatMul of two": "MatMul(c, turned)",
    "Add": "Add(c, x)",
    "Sub": "Sub(x, c)",
    "Mul": "Mul(c, x)",
    "Mul a constant": "Mul(c, factor)",
    "Max": "Max(c, x)",
    "Min": "Min(c, x)",
    "Relu": "Relu(c)",
    "Clip": "Clip(c, low, high)",
    "Concat": "Concat<axis=1>(c, x)",
    "MaxPool": "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)",
    "AveragePool": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)",
    "GlobalAveragePool": "GlobalAveragePool(c)",
    "ReduceMean": "ReduceMean<axes=[1]>(c)",
    "ReduceMax": "ReduceMax<axes=[1]>(c)",
    "LeakyRelu": "LeakyRelu<alpha=0.2>(c)",
    "Pad": "Pad(c, pads, low)",
    "mirrored": 'Pad<mode="reflect">(c, pads)',
    "Transpose": "Transpose<perm=[0,2,3,1]>(c)",
    "Resize, nearest": 'Resize<mode="nearest">(c, , scales)',
    "Resize, linear": 'Resize<mode="linear">(c, , scales)',
    "Slice": "Slice(c, starts, ends)",
    "Gather": "Gather<axis=1>(c, indices)",
}
"""Ops whose 16-bit kernels of TFLite are right to a step; the convolution before them makes another."""
TABLES = {"Sigmoid": "Sigmoid(c)", "Tanh": "Tanh(c)", "Softmax": "Softmax<axis=1>(c)"}
"""Those that interpolate a table: up to 24 of 32768 steps apart."""
FLOATS = {
    "HardSwish": "HardSwish(c)",
    "Elu": "Elu(c)",
    "PRelu": "PRelu(c, factor)",
    "LogSoftmax": "LogSoftmax<axis=1>(c)",
    "DepthToSpace": "DepthToSpace<blocksize=2>(c)",
}
"""Those without a 16-bit kernel."""
SHAPE = (4, 10, 11)


@pytest.fixture
def samples():
    return np.random.default_rng(3).normal(size=(16, *SHAPE)).astype(np.float32)


@pytest.fixture
def quantized(build_model, make_context, samples):
    """A convolution `c` of `x` and one op behind it, quantized; `op` names the latter for overrides."""

    def build(expression, **settings):
        rng = np.random.default_rng(0)

        def normal(*shape):
            return rng.normal(size=shape).astype(np.float32)

        model = build_model(
            "net (float[n,4,10,11] x) => (float[n,h,i,j] y) { c = Conv(x, w0, b) "
            f"turned = Transpose<perm=[0,1,3,2]>(x) y = {expression} }}",
            w0=normal(4, 4, 1, 1), b=normal(4), w1=normal(6, 4, 1, 1), w2=normal(6, 2, 3, 3),
            w3=normal(4, 4, 3, 3) / 6, dw=normal(4, 1, 3, 3) / 3, matrix=normal(11, 5),
            factor=np.abs(normal(4, 1, 1)), low=np.float32(-0.5), high=np.float32(1.5),
            pads=np.array([0, 0, 1, 2, 0, 0, 0, 1]), scales=np.array([1, 1, 2, 2], np.float32),
            starts=np.array([0, 1, 2]), ends=np.array([99, 3, 9]), indices=np.array([0, 3, 1]),
        )  # fmt: skip
        context = make_context(samples)
        return QuantizeStatic(**settings).apply(Simplify().apply(model, context), context)

    return build


def plainly(model, x):
    """What the QDQ graph says, op by op."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    payload = model if isinstance(model, bytes) else model.payload
    return onnxruntime.InferenceSession(payload, options).run(None, {"x": x})[0]


def run(emission, x):
    return infer(open_session(emission.payload, emission.format), emission.inputs, emission.outputs, x)[0]


def worst_steps(emission, model, x):
    return np.abs(run(emission, x) - plainly(model, x)).max() / tflite.emit(model).outputs[0].scale


def optimized_ops(payload, tmp_path):
    """What ONNX Runtime makes of a file on loading."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(payload, options)
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


@pytest.mark.parametrize("family", EXACT)
def test_16_bits(quantized, samples, family):
    model = quantized(EXACT[family], activation_bits=16)
    lite = tflite.emit(model)
    assert not {"DEQUANTIZE"} & lite.op_counts.keys()
    assert {port.dtype for port in lite.inputs + lite.outputs} == {"int16"}
    assert worst_steps(lite, model, samples) <= 3.01
    assert worst_steps(ort.emit(model, activation="uint8"), model, samples) <= 1.01


@pytest.mark.parametrize("family", TABLES)
def test_16_bits_by_table(quantized, samples, family):
    model = quantized(TABLES[family], activation_bits=16)
    assert tflite.emit(model).outputs[0].scale == 1 / 32768
    assert worst_steps(tflite.emit(model), model, samples) <= 24


@pytest.mark.parametrize("family", FLOATS)
def test_ops_without_a_16_bit_kernel_compute_in_float_and_say_so(quantized, samples, family):
    model = quantized(FLOATS[family], activation_bits=16)
    emission = tflite.emit(model)
    assert "DEQUANTIZE" in emission.op_counts
    assert any(family in note and "float" in note for note in emission.notes)
    assert worst_steps(emission, model, samples) <= 3.01


@pytest.mark.parametrize("factor", [0.7, 3.0, 11.0])
def test_what_moves_onto_another_grid_has_the_same_integers_everywhere(
    build_model, make_context, samples, factor
):
    """Concat, Sigmoid's fixed grid and a wider input: one goes onto the other's grid, as in ONNX Runtime."""
    body = """{ a = Conv(x, w)  b = Sigmoid(a)  c = Mul(a, k)  y = Concat<axis=1>(a, b, c) }"""
    shape = ",".join(map(str, SHAPE))
    weight = np.random.default_rng(8).normal(size=(4, SHAPE[0], 1, 1)).astype(np.float32)
    model = build_model(
        f"net (float[n,{shape}] x) => (float[n,h,i,j] y) {body}", w=weight, k=np.float32(factor)
    )
    quantized = QuantizeStatic().apply(model, make_context(samples))
    lite = tflite.emit(quantized)
    assert "QUANTIZE" not in lite.op_counts
    np.testing.assert_array_equal(
        run(lite, samples), run(ort.emit(quantized, activation="uint8", ports="integer"), samples)
    )


def test_an_op_that_tflite_lacks_is_refused_on_16_bits_too(build_model, make_context, samples):
    ones = np.ones(SHAPE[0], np.float32)
    shape = ",".join(map(str, SHAPE))
    body = "{ a = Relu(x)  y = InstanceNormalization(a, s, b) }"
    model = build_model(f"net (float[n,{shape}] x) => (float[n,{shape}] y) {body}", s=ones, b=ones)
    wide = QuantizeStatic(activation_bits=16).apply(model, make_context(samples))
    with pytest.raises(UnsupportedOp, match="InstanceNormalization"):
        tflite.emit(wide)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize(
    "family", ["Conv", "pointwise", "depthwise", "grouped", "dilated", "ConvTranspose", "MatMul"]
)
def test_int4_weights(quantized, samples, family, granularity, tmp_path):
    model = quantized(EXACT[family], weight_bits=4, granularity=granularity)
    for emission in (ort.emit(model, activation="uint8"), tflite.emit(model)):
        assert emission.name == f"int4.{emission.format}"
        assert worst_steps(emission, model, samples) <= 1.01
    if family != "ConvTranspose":  # ONNX Runtime has no integer kernel for that, of any width
        ops = optimized_ops(ort.emit(model, activation="uint8").payload, tmp_path)
        assert not {"Conv", "MatMul"} & set(ops)


def test_int4_takes_half_the_bytes_where_a_kernel_is_fast(build_model, make_context):
    rng = np.random.default_rng(0)
    sizes = {}
    for kind, shape, group in (("pointwise", (64, 64, 1, 1), 1), ("depthwise", (64, 1, 8, 8), 64)):
        model = build_model(
            f"g (float[n,64,8,8] x) => (float[n,m,h,i] y) {{ y = Conv<group={group}>(x, w) }}",
            w=rng.normal(size=shape).astype(np.float32),
        )
        context = make_context(rng.normal(size=(8, 64, 8, 8)).astype(np.float32))
        for bits in (4, 8):
            quantized = QuantizeStatic(weight_bits=bits).apply(model, context)
            sizes[kind, bits] = [
                len(ort.emit(quantized, activation="uint8").payload),
                len(tflite.emit(quantized).payload),
            ]
    half = 64 * 64 // 2
    saved = {kind: np.subtract(sizes[kind, 8], sizes[kind, 4]) for kind in ("pointwise", "depthwise")}
    assert (saved["pointwise"] > half - 250).all()
    assert saved["depthwise"][0] > half - 250
    assert abs(saved["depthwise"][1]) < 100


@pytest.mark.parametrize(
    ("settings", "precision", "least"),
    [
        ({}, "int8", "1.7"),
        ({"activation_bits": 16}, "int16", "1.18"),
        ({"weight_bits": 4}, "int4", "1.23"),
        ({"weight_bits": 2}, "int4", "1.23"),
        ({"weight_bits": 6}, "int8", "1.7"),
        ({"weight_bits": 4, "activation_bits": 16}, "mixed", "1.23"),
        ({"overrides": (Override(layers=("y",), weight_bits=4),)}, "mixed", "1.23"),
        ({"overrides": (Override(layers=("y",), activation_bits=16),)}, "mixed", "1.18"),
        ({"overrides": (Override(layers=("y",), keep_float=True),)}, "int8", "1.7"),
    ],
)
def test_names_and_least_runtimes(quantized, settings, precision, least):
    model = quantized(EXACT["Conv"], **settings)
    emission = ort.emit(model, activation="uint8")
    assert (emission.precision, emission.needs["onnxruntime"]) == (precision, least)
    assert tflite.emit(model).precision == precision == precision_of(model.to_onnx())


@pytest.mark.parametrize("expression", ["Conv(c, w1)", "Relu(d)", "Gemm(f, gw)"])
def test_onnx_runtime_leaves_a_float_layer_in_float(build_model, make_context, expression, tmp_path):
    """Between quantized activations it would quantize the weights itself, with one scale for all channels."""
    rng = np.random.default_rng(0)
    text = {
        "Conv(c, w1)": "o = Conv(c, w1) y = Sigmoid(o)",
        "Relu(d)": "d = Conv(c, w1) o = Relu(d) y = Conv(o, w0)",
        "Gemm(f, gw)": "f = Flatten(c) o = Gemm(f, gw) y = Sigmoid(o)",
    }[expression]
    weights = {"w0": (4, 4, 1, 1), "w1": (4, 4, 1, 1), "gw": (440, 5)}
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    constants["w1"][0] *= 1000  # one scale for all would leave nothing of the other channels
    constants["gw"][:, 0] *= 1000
    used = {name: array for name, array in constants.items() if f"{name})" in f"{text} w0)"}
    model = build_model(
        f"net (float[n,4,10,11] x) => (float[n,m] y) {{ c = Conv(x, w0) {text} }}".replace(
            "[n,m]", "[n,m]" if "Gemm" in text else "[n,m,h,i]"
        ),
        **used,
    )
    x = rng.normal(size=(16, *SHAPE)).astype(np.float32)
    layer = "d" if "d =" in text else "o"
    context = make_context(x)
    quantized = QuantizeStatic(overrides=(Override(layers=(layer,), keep_float=True),)).apply(model, context)
    emission = ort.emit(quantized, activation="uint8")
    assert {"Conv", "Gemm"} & {op.removeprefix("Fused") for op in optimized_ops(emission.payload, tmp_path)}
    assert worst_steps(emission, quantized, x) <= 1.01


@pytest.mark.parametrize("bits", [8, 16])
def test_biases_at_the_limit_of_their_integers(build_model, make_context, bits):
    """A bias of two thousand million steps of its channel's weights, whose scale is therefore raised."""
    rng = np.random.default_rng(0)
    weight, bias = np.full((3, 4, 1, 1), 1e-4, np.float32), np.array([1e6, -1e6, 1.0], np.float32)
    model = build_model("g (float[n,4,5,5] x) => (float[n,3,5,5] y) { y = Conv(x, w, b) }", w=weight, b=bias)
    x = rng.uniform(-1e-3, 1e-3, size=(4, 4, 5, 5)).astype(np.float32)
    settings = QuantizeStatic(activation_bits=bits, ranges="minmax")
    quantized = settings.apply(model, make_context(x))
    wanted = plainly(model, x)
    for emission in (ort.emit(quantized, activation="uint8"), tflite.emit(quantized)):
        # half a step of the output, which spans both signs (and as much again on 16 bits)
        step = 4e6 / 2**bits
        assert np.abs(run(emission, x) - wanted).max() <= 1.01 * step


@pytest.mark.parametrize("bits", [8, 16])
def test_the_fullest_accumulator_does_not_wrap(build_model, make_context, bits):
    """Every product at its greatest: 4608 of 127 * 255, or of 127 * 32767, beyond what int32 holds."""
    weight = np.ones((2, 512, 3, 3), np.float32)
    weight[1] = -1
    model = build_model("g (float[n,512,3,3] x) => (float[n,2,1,1] y) { y = Conv(x, w) }", w=weight)
    x = np.concatenate([np.ones((2, 512, 3, 3)), np.zeros((2, 512, 3, 3))]).astype(np.float32)
    settings = QuantizeStatic(activation_bits=bits, ranges="minmax")
    quantized = settings.apply(model, make_context(x))
    wanted = plainly(model, x)
    for emission in (ort.emit(quantized, activation="uint8"), tflite.emit(quantized)):
        np.testing.assert_allclose(run(emission, x), wanted, atol=1.5 * 4 * 4608 / 2**bits)
