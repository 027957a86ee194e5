"""Keras files and SavedModel folders as sources. TensorFlow is slow to start, so these are few."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from edgepipe import errors
from edgepipe.runtime import open_session
from edgepipe.sources import load
from edgepipe.sources.child import run_child

MAKE = """
import sys, keras, numpy as np
from keras import layers
keras.utils.set_random_seed(0)
model = keras.Sequential([
    layers.Input((6, 6, 2)), layers.Conv2D(3, 3, padding="same", strides=2, activation="relu"),
    layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax"),
])
folder = sys.argv[1]
model.save(folder + "/net.keras")
model.export(folder + "/net_saved", verbose=False)
x = np.random.default_rng(0).standard_normal((3, 6, 6, 2)).astype("float32")
np.savez(folder + "/want.npz", x=x, y=model(x).numpy())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    made = tmp_path_factory.mktemp("keras")
    subprocess.run([sys.executable, "-c", MAKE, str(made)], check=True, capture_output=True)
    return made


@pytest.mark.parametrize(("name", "kind"), [("net.keras", "keras"), ("net_saved", "savedmodel")])
def test_computes_what_keras_computes(folder, name, kind, capfd):
    source = load(str(folder / name))
    assert source.kind == kind
    assert source.model.inputs[0].shape == (None, 6, 6, 2)  # NHWC stays NHWC
    assert source.model.outputs[0].shape == (None, 4)
    assert source.model.to_onnx().opset_import[0].version == 18
    assert source.fidelity.reference.startswith("TensorFlow ")
    with np.load(folder / "want.npz") as want:
        got = open_session(source.model.payload, "onnx").run([want["x"]])[0]
        np.testing.assert_allclose(got, want["y"], rtol=1e-4, atol=1e-5)
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_older_savedmodel_whose_objects_do_not_come_back(shared, needs):
    needs("tensorflow")
    source = load(str(shared("kws_savedmodel")))
    assert source.model.inputs[0].shape == (None, 49, 10, 1)
    assert source.fidelity.sqnr_db > 90


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "x.hdf5"])
@pytest.mark.parametrize("contents", [b"", b"no model"])
def test_not_a_keras_file(tmp_path, needs, name, contents):
    needs("tensorflow")
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(errors.ModelUnreadable, match=name):
        load(str(tmp_path / name))


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Makes a module of the given code that `run_child` can start."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(code):
        (tmp_path / "fake_child.py").write_text(code)
        return "fake_child"

    return make


@pytest.mark.parametrize(
    ("kind", "message", "error"),
    [
        ("Unreadable", "ValueError: no such format", errors.ModelUnreadable),
        ("NotImplementedError", "op Foo (foo_1) is not supported", errors.UnsupportedOp),
        ("KeyError", "3", errors.ModelError),
    ],
)
def test_what_a_child_reports(child, kind, message, error):
    report = json.dumps({"error": kind, "message": message})
    module = child(f"import sys; print('noise'); print({report!r}); sys.exit(1)")
    with pytest.raises(error) as caught:
        run_child(module, [], "model.x")
    assert type(caught.value) is error
    assert caught.value.where == "model.x"
    assert message in caught.value.got


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("import os; os.kill(os.getpid(), 9)", "exit status -9"),
        ("raise MemoryError('too much')", "too much"),
        ("print('{}'); raise SystemExit(3)", "exit status 3"),
    ],
)
def test_child_that_dies(child, code, word):
    with pytest.raises(errors.ModelError, match=word):
        run_child(child(code), [], "model.x")
