"""ONNX files as sources."""

import contextlib

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepipe import errors, events
from edgepipe.runtime import open_session
from edgepipe.sources import load


def opset(model):
    return model.to_onnx().opset_import[0].version


def outputs(model, x):
    return open_session(model.payload, "onnx").run([x])[0]


def test_a_recent_model_is_taken_as_it_is(cnn, save_onnx):
    proto = cnn(opset=19)
    source = load(save_onnx(proto))
    assert source.fidelity is None
    assert source.kind == "onnx"
    assert opset(source.model) == 19
    assert source.model.name == "cnn"
    assert str(source.model.inputs[0]) == "image float32 [?, 3, 8, 8]"
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    want = ReferenceEvaluator(proto).run(None, {"image": x})[0]
    np.testing.assert_allclose(outputs(source.model, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("old", [11, 13, 17])
def test_an_old_model_is_upgraded_and_compared(cnn, save_onnx, old):
    proto = cnn(opset=old)
    source = load(save_onnx(proto), seed=3)
    assert opset(source.model) == 18
    assert source.fidelity.samples == 8
    assert source.fidelity.sample_source == "random"
    assert source.fidelity.reference.endswith(f"at opset {old}")
    assert source.model.inputs[0].shape == (None, 3, 8, 8)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    want = ReferenceEvaluator(proto).run(None, {"image": x})[0]
    np.testing.assert_allclose(outputs(source.model, x), want, rtol=1e-4, atol=1e-5)


def test_given_samples_are_used(cnn, save_onnx):
    sample = np.ones((3, 3, 8, 8), np.float32)
    fidelity = load(save_onnx(cnn(opset=13)), sample=sample).fidelity
    assert (fidelity.samples, fidelity.sample_source) == (3, "given")
    want = ReferenceEvaluator(cnn(opset=13)).run(None, {"image": sample})[0]
    assert fidelity.peak == pytest.approx(np.abs(want).max(), rel=1e-4)


def test_given_samples_of_another_shape(cnn, save_onnx):
    with pytest.raises(errors.DataShapeMismatch):
        load(save_onnx(cnn(opset=13)), sample=np.ones((3, 8, 8, 3), np.float32))


def test_same_file_same_digest_and_progress(cnn, save_onnx):
    path, seen = save_onnx(cnn(opset=13)), []
    first, second = load(path, emit=seen.append), load(path)
    assert first.model.digest == second.model.digest
    assert isinstance(seen[0], events.StageStarted)
    assert isinstance(seen[-1], events.StageEnded)
    assert "opset 13, upgraded to 18" in seen[-1].detail


def test_external_data(cnn, save_onnx, tmp_path):
    inline = load(save_onnx(cnn(), "inline.onnx"))
    path = save_onnx(cnn(), "outside.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    outside = load(path)
    assert outside.model.digest == inline.model.digest
    (tmp_path / "w.data").unlink()
    with pytest.raises(errors.ModelUnreadable, match=r"w\.data"):
        load(path)


def test_qdq_model_stays_as_it_is(save_onnx):
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.int8(0), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "qdq", values[:1], values[1:], [scale, zero])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    source = load(save_onnx(proto))
    assert source.fidelity is None
    assert opset(source.model) == 13
    assert [node.op_type for node in source.model.to_onnx().graph.node] == [
        "QuantizeLinear",
        "DequantizeLinear",
    ]


def test_unknown_sizes_are_asked_for_and_taken(cnn, save_onnx):
    path = save_onnx(cnn(height="H", width="W"))
    with pytest.raises(errors.ModelError, match=r"\[\?, 3, \?, \?\]") as caught:
        load(path)
    assert type(caught.value) is errors.ModelError
    assert "--input-shape" in caught.value.remedy
    model = load(path, input_shape=(1, 3, 16, 12)).model
    assert model.inputs[0].shape == (None, 3, 16, 12)
    assert model.outputs[0].shape == (None, 5)
    assert outputs(model, np.zeros((2, 3, 16, 12), np.float32)).shape == (2, 5)


@pytest.mark.parametrize("size", [0, -1])
def test_zero_and_minus_one_mean_any_size(cnn, save_onnx, size):
    path = save_onnx(cnn(batch=size))
    assert load(path).model.inputs[0].shape == (None, 3, 8, 8)


def test_fixed_batch_is_kept(cnn, save_onnx):
    assert load(save_onnx(cnn(batch=1))).model.inputs[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("shape", [(1, 3, 9, 9), (1, 3, 8), (1, 8, 8, 3)])
def test_input_shape_that_contradicts_the_model(cnn, save_onnx, shape):
    with pytest.raises(errors.ModelError, match="contradicts"):
        load(save_onnx(cnn()), input_shape=shape)


def test_input_shape_that_agrees_changes_nothing(cnn, save_onnx):
    path = save_onnx(cnn())
    assert load(path, input_shape=(1, 3, 8, 8)).model.digest == load(path).model.digest


def two_inputs():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "add", values[:2], values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_several_inputs(save_onnx):
    path = save_onnx(two_inputs())
    source = load(path)
    assert [spec.name for spec in source.model.inputs] == ["a", "b"]
    assert source.fidelity.sqnr_db is None
    assert "bit for bit" in str(source.fidelity)
    with pytest.raises(errors.ModelError, match="one input"):
        load(path, input_shape=(1, 4))
    with pytest.raises(errors.ModelError, match="the model has several"):
        load(path, sample=np.zeros((1, 4), np.float32))


@pytest.mark.parametrize("contents", [b"", b"hello, no model", b"\x08\x08\x12", bytes(range(256))])
def test_not_a_model(tmp_path, contents):
    (tmp_path / "x.onnx").write_bytes(contents)
    with pytest.raises(errors.ModelUnreadable) as caught:
        load(str(tmp_path / "x.onnx"))
    assert str(tmp_path / "x.onnx") in caught.value.where


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_model(cnn, save_onnx, tmp_path, share):
    whole = save_onnx(cnn())
    contents = (tmp_path / "cnn.onnx").read_bytes()
    (tmp_path / "cnn.onnx").write_bytes(contents[: int(len(contents) * share)])
    with pytest.raises(errors.ModelUnreadable):
        load(whole)


def test_model_without_inputs(save_onnx):
    value = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    constant = helper.make_node("Constant", [], ["c"], value_floats=[1.0])
    proto = helper.make_model(helper.make_graph([constant], "g", [], [value]), ir_version=8)
    with pytest.raises(errors.ModelUnreadable, match="no inputs"):
        load(save_onnx(proto))


def test_custom_op(save_onnx):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "ab"]
    node = helper.make_node("Frobnicate", ["a"], ["b"], domain="my.ops")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.ops", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(errors.UnsupportedOp, match="Frobnicate"):
        load(save_onnx(proto))


def test_opset_from_the_future(cnn, save_onnx):
    proto = cnn()
    proto.opset_import[0].version = 999
    with pytest.raises(errors.ModelUnreadable):
        load(save_onnx(proto))


def test_shared_model(shared):
    source = load(str(shared("efficientnet_lite0_fp32.onnx")))
    assert str(source.model.inputs[0]) == "input float32 [?, 3, 224, 224]"
    assert opset(source.model) == 18
    assert source.fidelity.max_abs_error <= 1e-5 * source.fidelity.peak
    assert onnx.checker.check_model(source.model.payload) is None


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=5), st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_raise_nothing_but_our_errors(cnn, tmp_path, damage, data):
    contents = bytearray(cnn(opset=data.draw(st.sampled_from([13, 18]))).SerializeToString())
    for place, value in damage:
        contents[place % len(contents)] = value
    (tmp_path / "x.onnx").write_bytes(contents)
    with contextlib.suppress(errors.ModelError):
        load(str(tmp_path / "x.onnx"))


def test_weight_beyond_float32_is_loaded_without_a_word(cnn, tmp_path):
    """Outputs are infinite then, in a batch of two as in two of one."""
    proto = cnn()
    weight = proto.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), 3e38, np.float32), weight.name))
    onnx.save(proto, tmp_path / "x.onnx")
    assert load(str(tmp_path / "x.onnx")).model.inputs[0].shape[0] is None


def test_name_that_is_no_text(cnn, tmp_path):
    contents = cnn().SerializeToString().replace(b"Relu", b"Re\xffu")
    (tmp_path / "x.onnx").write_bytes(contents)
    with pytest.raises(errors.ModelUnreadable, match="Re\ufffdu"):
        load(str(tmp_path / "x.onnx"))


def in_precision(proto, dtype):
    """The model with all its floats in another precision."""
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = elem_type
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    return proto


@pytest.mark.parametrize("opset_version", [13, 18])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions_become_float32(cnn, save_onnx, dtype, opset_version):
    proto, seen = in_precision(cnn(opset=opset_version), dtype), []
    source = load(save_onnx(proto), emit=seen.append)
    assert f"{dtype} made float32" in seen[-1].detail
    assert str(source.model.inputs[0]) == "image float32 [?, 3, 8, 8]"
    assert source.model.outputs[0].dtype == "float32"
    assert not {tensor.data_type for tensor in source.model.to_onnx().graph.initializer} & {
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
    }
    assert source.fidelity.samples == 8
    assert source.fidelity.max_abs_error > 0 if dtype == "float16" else source.fidelity.max_abs_error < 1e-4
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(dtype)
    want = ReferenceEvaluator(proto).run(None, {"image": x})[0]
    bound = 1e-2 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(
        outputs(source.model, x.astype(np.float32)), want, atol=bound * np.abs(want).max()
    )


def test_casts_and_constants_inside_become_float32_too(save_onnx):
    one = numpy_helper.from_array(np.array([1.5], np.float16), "")
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Add", ["half", "one"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "mixed", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    source = load(save_onnx(proto))
    x = np.array([[0.1, 0.2, 0.3, 1000.1]], np.float32)
    np.testing.assert_array_equal(outputs(source.model, x), x + np.float32(1.5))
    assert source.fidelity.peak > 0


def reshaping(rows, batch):
    """Relu, then a Reshape to [rows, 12]."""
    shape = numpy_helper.from_array(np.array([rows, 12]), "shape")
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Reshape", ["r", "shape"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "reshaping",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 12])],
        [shape],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_batch_that_only_claims_to_be_free_is_fixed(save_onnx):
    seen = []
    model = load(save_onnx(reshaping(1, "N")), emit=seen.append).model
    assert model.inputs[0].shape == (1, 3, 2, 2)
    assert any(isinstance(event, events.Warned) for event in seen)
    assert load(save_onnx(reshaping(-1, "N"))).model.inputs[0].shape == (None, 3, 2, 2)


def test_a_batch_of_several_is_freed(cnn, save_onnx):
    proto = cnn(batch=4)
    model = load(save_onnx(proto)).model
    assert (model.inputs[0].shape, model.outputs[0].shape) == ((None, 3, 8, 8), (None, 5))
    x = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    want = ReferenceEvaluator(proto).run(None, {"image": x})[0]
    np.testing.assert_allclose(outputs(model, x[:1]), want[:1], rtol=1e-4, atol=1e-5)
    reshaped = load(save_onnx(reshaping(4, 4))).model
    assert outputs(reshaped, x[:3, :, :2, :2]).shape == (3, 12)


def test_a_batch_that_mixes_samples_is_refused(save_onnx):
    proto = reshaping(4, 4)
    proto.graph.node[0].CopyFrom(helper.make_node("Softmax", ["x"], ["r"], axis=0))
    with pytest.raises(errors.ModelError, match="fixed at 4 samples") as caught:
        load(save_onnx(proto))
    assert "batch of one" in caught.value.remedy


def test_weights_that_are_nan_are_named(cnn, save_onnx):
    proto = cnn()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[1, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    with pytest.raises(errors.ModelError, match="tensor w") as caught:
        load(save_onnx(proto))
    assert caught.value.got == "9 of 108 values are NaN"


def test_an_unknown_tensor_type_in_an_old_model(cnn, save_onnx):
    proto = cnn(opset=13)
    proto.graph.initializer[0].data_type = 29
    with pytest.raises(errors.ModelError):
        load(save_onnx(proto))


@pytest.mark.parametrize(("opset", "times"), [(18, 1), (13, 2)])
def test_a_model_is_loaded_into_the_runtime_once(cnn, save_onnx, monkeypatch, opset, times):
    opened = []
    open_once = onnxruntime.InferenceSession

    def watched(*arguments, **options):
        opened.append(arguments)
        return open_once(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    load(str(save_onnx(cnn(opset=opset))))
    assert len(opened) == times  # and, to compare an upgraded one with it, the original


def test_a_float32_file_is_checked_once(cnn, save_onnx, monkeypatch):
    check, checked = onnx.checker.check_model, []
    monkeypatch.setattr(onnx.checker, "check_model", lambda proto: (checked.append(proto), check(proto)))
    load(str(save_onnx(cnn())))
    assert len(checked) == 1
