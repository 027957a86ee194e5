import numpy as np
import pytest

from edgepipe.errors import DataEmpty, DataShapeMismatch, ModelError
from edgepipe.golden import SAMPLES, seal
from edgepipe.model import digest_bytes
from edgepipe.runtime import open_session


@pytest.fixture
def samples():
    return np.random.default_rng(0).uniform(-14, 14, size=(9, 3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, None])
def test_golden_files_hold_what_the_runtime_takes_and_gives(tiny_tflite, samples, batch):
    emission = tiny_tflite(batch=batch)
    artifact, files = seal(emission, samples)
    assert len(artifact.golden) == SAMPLES
    session = open_session(emission.payload, "tflite")
    for index, golden in enumerate(artifact.golden):
        fed = np.frombuffer(files[golden.inputs[0]], np.int8).reshape(1, 4, 5, 3)
        kept = np.frombuffer(files[golden.outputs[0]], np.int8).reshape(1, 4, 5, 3)
        np.testing.assert_array_equal(session.run([fed])[0], kept)
        # Independently: the sample in the other layout, on the grid of step 0.1.
        steps = np.clip(np.rint(samples[index] / np.float32(0.1)), -128, 127).transpose(1, 2, 0)
        np.testing.assert_array_equal(fed[0], steps)


def test_the_record_describes_the_emission(tiny_onnx, samples):
    emission = tiny_onnx(batch=None)
    artifact, files = seal(emission, samples)
    assert (artifact.name, artifact.size_bytes) == ("float32.onnx", len(emission.payload))
    assert files[artifact.name] == emission.payload
    assert artifact.digest == digest_bytes(emission.payload)
    for golden in artifact.golden:
        assert set(golden.digests) == {*golden.inputs, *golden.outputs}
        assert all(digest_bytes(files[name]) == digest for name, digest in golden.digests.items())


def test_the_same_samples_give_the_same_bytes(tiny_onnx, samples):
    assert seal(tiny_onnx(batch=None), samples) == seal(tiny_onnx(batch=None), samples.copy())


def test_fewer_samples_give_fewer_golden_ones(tiny_onnx, samples):
    assert len(seal(tiny_onnx(batch=None), samples[:2])[0].golden) == 2


def test_bad_samples_are_refused(tiny_onnx, samples):
    with pytest.raises(DataEmpty):
        seal(tiny_onnx(batch=None), samples[:0])
    with pytest.raises(DataShapeMismatch):
        seal(tiny_onnx(batch=None), samples[:, :2])


def test_two_inputs_are_refused(tiny_onnx, samples):
    import msgspec

    emission = tiny_onnx(batch=None)
    with pytest.raises(ModelError, match="one input"):
        seal(msgspec.structs.replace(emission, inputs=emission.inputs * 2), samples)
