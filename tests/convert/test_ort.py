"""ONNX artifacts: what ONNX Runtime makes of them, and what they compute in each form."""

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from edgepipe.convert import ort
from edgepipe.errors import ModelError, UnsupportedOp
from edgepipe.graph.simplify import Simplify
from edgepipe.model import onnx_model
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def net(build_model):
    return build_model(
        """net (float[n,3,8,8] x) => (float[n,5] y) {
            a = Conv<pads=[1,1,1,1]>(x, w1, b1)
            b = Relu(a)
            c = Conv<pads=[1,1,1,1], group=8>(b, w2, b2)
            d = Clip(c, zero, six)
            e = Add(d, b)
            f = Mul(e, factor)
            g = GlobalAveragePool(f)
            h = Flatten(g)
            i = Gemm<transB=1>(h, w3, b3)
            y = Softmax(i)
        }""",
        w1=normal(8, 3, 3, 3), b1=normal(8), w2=normal(8, 1, 3, 3), b2=normal(8),
        w3=normal(5, 8), b3=normal(5),
        zero=np.float32(0), six=np.float32(6), factor=normal(8, 1, 1),
    )  # fmt: skip


@pytest.fixture
def samples():
    return np.random.default_rng(1).normal(size=(64, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def quantized(net, samples, make_context):
    context = make_context(samples)
    return QuantizeStatic().apply(Simplify().apply(net, context), context)


@pytest.fixture
def optimized(tmp_path):
    """Types of the ops that ONNX Runtime makes of a file."""

    def op_types(payload):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 4
        onnxruntime.InferenceSession(payload, options)
        return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    return op_types


def outputs(emission, x):
    return infer(open_session(emission.payload, "onnx"), emission.inputs, emission.outputs, x)[0]


def test_uint8_activations_fuse_into_integer_kernels(quantized, optimized):
    found = optimized(ort.emit(quantized, activation="uint8").payload)
    assert found[0] == "QuantizeLinear"
    assert found[-1] == "DequantizeLinear"
    kernels = [
        "QLinearConv", "QLinearConv", "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QGemm",
        "QLinearSoftmax",
    ]  # fmt: skip
    assert [each for each in found[1:-1] if each not in ("Flatten", "Reshape")] == kernels


def test_uint8_and_int8_compute_the_same_to_a_step(quantized, samples):
    emissions = [ort.emit(quantized, activation=each) for each in ("uint8", "int8")]
    unsigned, signed = (outputs(each, samples) for each in emissions)
    assert np.abs(unsigned - signed).max() <= 1.01 / 256


def test_a_relu_that_the_grid_does_not_carry_out_keeps_no_convolution_in_float(
    build_model, make_context, optimized, samples
):
    model = build_model(
        """net (float[n,3,8,8] x) => (float[n,8,8,8] y) {
            a = Conv(x, w1, b)
            r = Relu(a)
            c = Conv(x, w2, b)
            y = Concat<axis=1>(r, c)
        }""",
        w1=normal(4, 3, 1, 1), w2=normal(4, 3, 1, 1), b=normal(4),
    )  # fmt: skip
    quantized = QuantizeStatic().apply(model, make_context(samples))
    plain, fused = (ort.emit(quantized, activation=each) for each in ("int8-symmetric", "uint8"))
    assert plain.op_counts["QuantizeLinear"] == fused.op_counts["QuantizeLinear"] - 1
    assert optimized(fused.payload).count("QLinearConv") == 2
    np.testing.assert_allclose(
        outputs(fused, samples), outputs(plain, samples), atol=1.01 * step_of(quantized)
    )


def step_of(model):
    return ort.emit(model, activation="int8", ports="integer").outputs[0].scale


@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_integer_ports_compute_what_float_ports_do(quantized, samples, activation):
    real, integer = (
        ort.emit(quantized, activation=activation, ports=ports) for ports in ("float32", "integer")
    )
    assert (integer.inputs[0].name, integer.outputs[0].name) == ("x", "y")
    assert (integer.inputs[0].dtype, integer.outputs[0].dtype) == (activation, activation)
    assert integer.outputs[0].scale == 1 / 256
    assert integer.outputs[0].zero_point == (0 if activation == "uint8" else -128)
    assert real.op_counts["QuantizeLinear"] == integer.op_counts["QuantizeLinear"] + 1
    onnx.checker.check_model(onnx.load_from_string(integer.payload), full_check=True)
    np.testing.assert_allclose(outputs(integer, samples), outputs(real, samples), atol=1e-6)


def test_ports_of_a_float_artifact(net, samples):
    emission = ort.emit(net, activation="uint8", ports="integer")
    assert emission.name == "float32.onnx"
    assert msgspec.to_builtins(emission.inputs[0]) == {
        "name": "x", "dtype": "float32", "shape": (1, 3, 8, 8), "permutation": (0, 1, 2, 3),
        "scale": None, "zero_point": 0,
    }  # fmt: skip
    assert emission.op_counts == {
        "Add": 1, "Clip": 1, "Conv": 2, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1, "Mul": 1, "Relu": 1,
        "Softmax": 1,
    }  # fmt: skip
    np.testing.assert_allclose(outputs(emission, samples).sum(axis=1), 1, rtol=1e-5)


def test_emitting_changes_nothing_and_gives_the_same_bytes(quantized):
    before = quantized.payload
    first, second = (ort.emit(quantized, activation="uint8", ports="integer") for _ in range(2))
    assert first == second
    assert quantized.payload == before


def test_the_batch_stays_dynamic(quantized, samples):
    session = open_session(ort.emit(quantized, activation="uint8").payload, "onnx")
    assert session.dynamic_batch
    assert session.run([samples[:7]])[0].shape == (7, 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("made_as", ["uint8", "int8"])
@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_a_foreign_qdq_model_is_emitted_in_either_type(
    net, samples, tmp_path, made_as, activation, optimized
):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"x": samples}])

        def get_next(self):
            return next(self.batches, None)

    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    onnx.save(net.to_onnx(), tmp_path / "net.onnx")
    quantize_static(
        tmp_path / "net.onnx", tmp_path / "qdq.onnx", Reader(), quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=types[made_as], weight_type=QuantType.QInt8,
    )  # fmt: skip
    foreign = onnx_model(onnx.load(tmp_path / "qdq.onnx"), "foreign")
    emission = ort.emit(foreign, activation=activation, ports="integer")
    assert emission.precision == "int8"
    assert emission.inputs[0].dtype == activation
    expected = onnxruntime.InferenceSession(foreign.payload).run(None, {"x": samples})[0]
    assert np.abs(outputs(emission, samples) - expected).max() <= 2.01 * emission.outputs[0].scale
    if activation == "uint8":
        assert optimized(emission.payload).count("QLinearConv") == 2


def test_a_left_out_zero_point_is_a_uint8_zero(build_model, samples):
    model = build_model(
        "net (float[n,4] x) => (float[n,4] y) { q = QuantizeLinear(x, s)  y = DequantizeLinear(q, s) }",
        s=np.float32(0.01),
    )  # fmt: skip
    x = np.linspace(-1, 4, 8, dtype=np.float32).reshape(2, 4)
    expected = np.clip(np.rint(x / np.float32(0.01)), 0, 255) * np.float32(0.01)
    for activation in ("uint8", "int8"):
        for ports in ("float32", "integer"):
            emission = ort.emit(model, activation=activation, ports=ports)
            np.testing.assert_allclose(outputs(emission, x), expected, atol=1e-6)


def test_check_names_an_op_that_the_runtime_does_not_have(net):
    ort.check(net)
    proto = net.to_onnx()
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "MysteryOp", "nowhere"
    proto.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    with pytest.raises(UnsupportedOp, match="MysteryOp"):
        ort.check(onnx_model(proto, "net"))


def test_a_second_dynamic_size_is_refused(build_model):
    model = build_model("net (float[n,3,h,8] x) => (float[n,3,h,8] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="--input-shape"):
        ort.emit(model, activation="int8")


def test_without_pools_that_overhang_the_graph_is_not_opened(quantized, monkeypatch):
    monkeypatch.setattr(ort.edit, "open_graph", lambda _: pytest.fail("inferred all shapes for nothing"))
    assert ort.emit(quantized, activation="uint8").precision == "int8"
