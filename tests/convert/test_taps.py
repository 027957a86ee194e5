"""Artifacts that return their layers: against the reference evaluator and LiteRT's view of its tensors."""

from functools import partial

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepipe.convert import ort, tflite
from edgepipe.convert.taps import steps_of_outputs, tap
from edgepipe.data import make_dataset
from edgepipe.model import onnx_model
from edgepipe.passes import Context
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import open_session, to_port
from edgepipe.target import load_target


def network():
    random = np.random.default_rng(0)
    weights = {
        "stem": random.normal(size=(6, 3, 3, 3)),
        "branch": random.normal(size=(6, 6, 1, 1)),
        "head": random.normal(size=(6 * 25, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "branch"], ["c"], name="branch"),
        helper.make_node("Add", ["b", "c"], ["d"], name="add"),
        helper.make_node("Flatten", ["d"], ["e"], name="flatten"),
        helper.make_node("MatMul", ["e", "head"], ["y"], name="head"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


SAMPLES = np.random.default_rng(1).normal(size=(8, 3, 5, 5)).astype(np.float32)


def to_onnx(model):
    return ort.emit(model, activation="uint8")


@pytest.fixture(scope="module")
def float_model():
    return onnx_model(network(), "net")


@pytest.fixture(scope="module")
def quantized(float_model, tmp_path_factory):
    context = Context(
        target=load_target("x86"),
        calibration=make_dataset(SAMPLES, None, "test"),
        work=tmp_path_factory.mktemp("work"),
    )
    return QuantizeStatic().apply(float_model, context)


def run(payload, emission, x=SAMPLES[:1]):
    return open_session(payload, emission.format).run([to_port(x, emission.inputs[0])])


@pytest.mark.parametrize("kind", ["float", "quantized"])
@pytest.mark.parametrize("emit", [to_onnx, tflite.emit], ids=["onnx", "tflite"])
def test_an_artifact_computes_what_it_did_and_returns_more(float_model, quantized, kind, emit):
    emission = emit(float_model if kind == "float" else quantized)
    tapped = tap(emission.payload, emission.format)
    plain, more = run(emission.payload, emission), run(tapped.payload, emission)
    own = len(plain)
    if kind == "quantized" or emission.format == "tflite":
        assert [each.tobytes() for each in more[:own]] == [each.tobytes() for each in plain]
    else:  # ONNX Runtime joins an Add to the Conv before it where nobody else reads that
        np.testing.assert_allclose(more[0], plain[0], rtol=1e-5)
    assert len(more) == own + len(tapped.taps)
    assert len(tapped.taps) >= 3
    assert tap(emission.payload, emission.format) == tapped
    assert len({each.tensor for each in tapped.taps}) == len(tapped.taps)
    if kind == "quantized":
        assert all(each.scale is not None for each in tapped.taps)
        assert {each.dtype.kind for each in more[own:]} <= {"i", "u"}


def test_layers_of_a_quantized_onnx_artifact_are_its_integers(quantized):
    emission = to_onnx(quantized)
    tapped = tap(emission.payload, "onnx")
    assert {"Add", "Conv", "MatMul"} <= {each.op for each in tapped.taps}
    names = [each.tensor for each in tapped.taps]
    proto = onnx.load_from_string(emission.payload)
    proto.opset_import[0].version = 21  # the same for these ops, and one that the evaluator knows
    expected = ReferenceEvaluator(proto).run(names, {"x": SAMPLES[:1]})
    found = run(tapped.payload, emission)[1:]
    for each, one, other in zip(tapped.taps, found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        # Kernels on integers round half-way cases otherwise than the float arithmetic of the standard.
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1, each
        assert each.scale > 0


def test_layers_of_a_tflite_artifact_are_its_tensors(quantized):
    emission = tflite.emit(quantized)
    tapped = tap(emission.payload, "tflite")
    found = run(tapped.payload, emission)[1:]
    # Its kernels without XNNPACK, as it keeps no tensors of what it hands over.
    interpreter = Interpreter(
        model_content=emission.payload,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], to_port(SAMPLES[:1], emission.inputs[0])
    )
    interpreter.invoke()
    tensors = {each["name"]: each for each in interpreter.get_tensor_details()}
    for each, one in zip(tapped.taps, found, strict=True):
        detail = tensors[each.tensor]
        expected = interpreter.get_tensor(detail["index"])
        assert np.abs(one.astype(int) - expected.astype(int)).max() <= 1, "kernels round half-way cases apart"
        assert detail["quantization"] == (pytest.approx(each.scale), each.zero_point)
    assert tapped.taps[0].op == "CONV_2D"


def test_nothing_of_a_tflite_file_is_touched_but_the_place_of_its_outputs(quantized):
    payload = tflite.emit(quantized).payload
    longer = tap(payload, "tflite").payload
    changed = [at for at, (one, other) in enumerate(zip(payload, longer, strict=False)) if one != other]
    assert len(changed) <= 4
    assert changed[-1] - changed[0] < 4
    assert longer[4:8] == b"TFL3"


@pytest.mark.parametrize("emit", [to_onnx, partial(tflite.emit, ports="float32")], ids=["onnx", "tflite"])
def test_float_outputs_on_a_grid_have_its_step(quantized, float_model, emit):
    emission = emit(quantized)
    [step] = steps_of_outputs(emission.payload, emission.format)
    [values] = run(emission.payload, emission)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values / step, np.rint(values / step), atol=1e-3)
    assert steps_of_outputs(emit(float_model).payload, emission.format) == (None,)


def test_a_function_that_is_fused_is_no_layer_of_its_own(float_model):
    tapped = tap(to_onnx(float_model).payload, "onnx")
    assert "a" not in {each.tensor for each in tapped.taps}
    assert {"b", "c", "d"} <= {each.tensor for each in tapped.taps}
