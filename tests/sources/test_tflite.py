"""Float .tflite files as sources, without TensorFlow."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from edgepipe import errors, events
from edgepipe.runtime import open_session
from edgepipe.sources import load
from edgepipe.sources.tflite import float_weights


@pytest.fixture
def save(tmp_path):
    def save(payload):
        (tmp_path / "net.tflite").write_bytes(payload)
        return str(tmp_path / "net.tflite")

    return save


def convolve(x, weight, bias):
    """A 3x3 convolution with zeros around, and ReLU, in NumPy: [n, h, w, in] to [n, h, w, out]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    total = bias + sum(
        padded[:, row : row + height, column : column + width] @ weight[:, row, column].T
        for row in range(3)
        for column in range(3)
    )
    return np.maximum(total, 0)


@pytest.mark.parametrize("storage", ["float32", "int8", "float16"])
def test_computes_what_the_file_says(tflite_builder, save, storage):
    source = load(save(tflite_builder.stored_as(storage, batch=-1)))
    assert str(source.model.inputs[0]) == "image float32 [?, 5, 6, 2]"  # NHWC stays NHWC
    assert str(source.model.outputs[0]) == "features float32 [?, 5, 6, 4]"
    assert source.model.to_onnx().opset_import[0].version == 18
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in source.model.to_onnx().graph.node}
    x = np.random.default_rng(1).standard_normal((3, 5, 6, 2)).astype(np.float32)
    want = convolve(x, tflite_builder.weight, tflite_builder.bias)
    np.testing.assert_allclose(
        ReferenceEvaluator(source.model.to_onnx()).run(None, {"image": x})[0], want, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(open_session(source.model.payload, "onnx").run([x])[0], want, 1e-4, 1e-4)
    assert source.fidelity.reference.startswith("LiteRT ")
    assert source.fidelity.sqnr_db is None or source.fidelity.sqnr_db > 100
    assert (storage in source.fidelity.note) == (storage != "float32")


def test_fixed_batch_is_kept(tflite_builder, save):
    assert load(save(tflite_builder.stored_as("float32"))).model.inputs[0].shape == (1, 5, 6, 2)


def test_float_file_is_not_rewritten(tflite_builder):
    payload = tflite_builder.stored_as("float32")
    assert float_weights(payload, "") == (payload, "")


def test_same_file_same_bytes(tflite_builder, save):
    path = save(tflite_builder.stored_as("int8"))
    assert load(path).model.payload == load(path, seed=5).model.payload


def test_given_samples_are_used(tflite_builder, save):
    sample = np.ones((20, 5, 6, 2), np.float32)
    fidelity = load(save(tflite_builder.stored_as("float32")), sample=sample).fidelity
    assert (fidelity.samples, fidelity.sample_source) == (8, "given")


def test_free_batch_that_an_op_fixes_becomes_one(tflite_builder, save):
    schema = tflite_builder.schema
    source = tflite_builder.tensor("x", [1, 2, 3], batch=-1)
    goal = tflite_builder.tensor("y", [1, 6], batch=-1)
    shape = tflite_builder.tensor("shape", [2], "INT32", np.array([1, 6], np.int32))
    options = schema.ReshapeOptionsT()
    options.newShape = [1, 6]
    tflite_builder.operator("RESHAPE", [source, shape], [goal], options)
    seen = []
    model = load(save(tflite_builder.finish([source], [goal])), emit=seen.append).model
    assert model.inputs[0].shape == (1, 2, 3)
    assert any(isinstance(event, events.Warned) and "one sample" in event.text for event in seen)


def test_quantized_model_is_refused(tflite_builder, save):
    source = tflite_builder.tensor("x", [1, 4], "INT8", scale=0.1)
    goal = tflite_builder.tensor("y", [1, 4], "INT8", scale=0.1)
    tflite_builder.operator("RELU", [source], [goal], version=2)
    with pytest.raises(errors.ModelError, match="quantized already") as caught:
        load(save(tflite_builder.finish([source], [goal])))
    assert type(caught.value) is errors.ModelError
    assert "float model" in caught.value.remedy


def test_custom_op(tflite_builder, save):
    source, goal = tflite_builder.tensor("x", [1, 4]), tflite_builder.tensor("y", [1, 4])
    tflite_builder.operator("CUSTOM", [source], [goal], custom="Frobnicate")
    with pytest.raises(errors.UnsupportedOp, match="Frobnicate"):
        load(save(tflite_builder.finish([source], [goal])))


def test_builtin_that_the_converter_does_not_know(tflite_builder, save):
    source, goal = tflite_builder.tensor("x", [1, 4]), tflite_builder.tensor("y", [1, 4])
    tflite_builder.operator("GELU", [source], [goal], tflite_builder.schema.GeluOptionsT())
    with pytest.raises(errors.UnsupportedOp, match="GELU"):
        load(save(tflite_builder.finish([source], [goal])))


@pytest.mark.parametrize("contents", [b"", b"TFL3", b"\x1c\0\0\0TFL3", b"hello, no model at all"])
def test_not_a_model(save, contents):
    with pytest.raises(errors.ModelUnreadable):
        load(save(contents))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_model(tflite_builder, save, share):
    payload = tflite_builder.stored_as("float32")
    with pytest.raises(errors.ModelUnreadable):
        load(save(payload[: int(len(payload) * share)]))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("kws_ref_model_float32.tflite", (None, 49, 10, 1)),
        ("mobilenet_v1_0.25_224_float.tflite", (1, 224, 224, 3)),
    ],
)
def test_shared_model(shared, name, shape):
    source = load(str(shared(name)))
    assert source.model.inputs[0].shape == shape
    assert source.fidelity.sqnr_db > 90


def test_shared_model_gives_the_same_bytes_each_time(shared):
    first, second = (load(str(shared("kws_ref_model_float32.tflite"))).model for _ in range(2))
    assert first.payload == second.payload


def test_shared_quantized_model_is_refused(shared):
    with pytest.raises(errors.ModelError, match="quantized already"):
        load(str(shared("kws_ref_model.tflite")))


def test_files_of_the_working_folder_hide_no_package(tflite_builder, save, tmp_path, monkeypatch):
    path = save(tflite_builder.stored_as("float32"))
    for name in ("onnx.py", "numpy.py", "json.py"):
        (tmp_path / name).write_text("raise RuntimeError('the wrong file')")
    monkeypatch.chdir(tmp_path)
    assert load(path).fidelity.samples == 8
