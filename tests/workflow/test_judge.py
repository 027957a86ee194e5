"""What artifacts are compared by."""

import numpy as np
import pytest

from edgepipe.errors import LabelsOutOfRange
from edgepipe.job import Job
from edgepipe.workflow.judge import judge_bundle
from edgepipe.workflow.make import compress

BINARY = "binary (float[N, 16] x) => (float[N, 1] y) { a = MatMul(x, w) y = Sigmoid(a) }"
MAPS = "maps (float[N, 16] x) => (float[N, 5, 1, 1] y) { a = MatMul(x, w) y = Reshape(a, shape) }"
AUTOENCODER = (
    "autoencoder (float[N, 16] x) => (float[N, 16] y) { a = MatMul(x, w) h = Relu(a) y = MatMul(h, v) }"
)


@pytest.fixture
def judged(build_model, tmp_path):
    """Compresses a model of 16 inputs and evaluates its artifacts on samples of two classes."""

    def judge(text, y=None, **constants):
        rng = np.random.default_rng(0)
        weights = {"w": rng.standard_normal((16, 1)).astype(np.float32), **constants}
        (tmp_path / "m.onnx").write_bytes(build_model(text, **weights).payload)
        x = rng.standard_normal((400, 16)).astype(np.float32)
        labels = (x @ weights["w"] > 0)[:, 0].astype(np.int64) if y is None else y
        np.savez(tmp_path / "x.npz", x=x, y=labels)
        job = Job(model=str(tmp_path / "m.onnx"), target="x86", data=tmp_path / "x.npz")
        made = compress(job, tmp_path / "bundle")
        return judge_bundle(made.bundle, made.prepared.source.model, made.prepared.evaluation)

    return judge


def test_a_binary_classifier_of_one_output(judged):
    found = judged(BINARY)
    assert found.reference.comparison.accuracy.value == 1
    assert 0.9 < found.artifacts["int8.tflite"].comparison.accuracy.value <= 1
    assert found.agreement["int8.onnx = int8.tflite"].value > 0.9
    with pytest.raises(LabelsOutOfRange, match="0 to 1"):
        judged(BINARY, y=np.full(400, 2))


def test_an_autoencoder_has_no_classes_whatever_its_labels(judged):
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 16))]
    found = judged(AUTOENCODER, y=np.full(400, 70), w=weights[0], v=weights[1])
    assert {evaluation.comparison for evaluation in found.artifacts.values()} == {None}
    assert found.agreement == {}


def test_a_classifier_with_axes_of_one_has_an_agreement(judged):
    weight = np.random.default_rng(1).standard_normal((16, 5)).astype(np.float32)
    found = judged(MAPS, w=weight, shape=np.array([-1, 5, 1, 1]))
    assert found.agreement["int8.onnx = int8.tflite"].value > 0.9
