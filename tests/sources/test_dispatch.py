"""What kind of source a name is, and what it imports."""

import subprocess
import sys

import pytest

from edgepipe import errors
from edgepipe.sources import load


def test_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(errors.ModelNotFound, match=r"did you mean .*model\.onnx\?"):
        load(str(tmp_path / "modle.onnx"))


@pytest.mark.parametrize("name", ["no.onnx", "no/such/folder/x.tflite", "no.py:make"])
def test_missing(tmp_path, name):
    with pytest.raises(errors.ModelNotFound):
        load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("net.py", "make_model"),
        ("w.pth", "--weights"),
        ("w.safetensors", "--weights"),
        ("model.txt", "suffix .txt"),
        ("model", "no suffix"),
        ("saved_model.pb", "name its folder"),
    ],
)
def test_not_a_model_of_a_known_kind(tmp_path, name, word):
    (tmp_path / name).write_text("")
    with pytest.raises(errors.ModelUnreadable, match=word):
        load(str(tmp_path / name))


def test_folder_that_is_no_savedmodel(tmp_path):
    with pytest.raises(errors.ModelUnreadable, match=r"saved_model\.pb"):
        load(str(tmp_path))


def test_weights_belong_to_a_factory(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(errors.UsageError, match="--weights"):
        load(str(tmp_path / "m.onnx"), weights="w.pth")


@pytest.mark.parametrize("shape", [(), (1, 0), (-1, 3)])
def test_input_shape_of_no_size(tmp_path, shape):
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(errors.UsageError, match="--input-shape"):
        load(str(tmp_path / "m.onnx"), input_shape=shape)


@pytest.mark.parametrize(
    ("package", "name"), [("torch", "m.pt2"), ("torch", "m.py:f"), ("tensorflow", "m.keras")]
)
def test_missing_package_names_its_extra(tmp_path, monkeypatch, package, name):
    (tmp_path / name.partition(":")[0]).write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtra, match=rf"pip install 'edgepipe\[{package}\]'"):
        load(str(tmp_path / name))


def test_onnx_and_tflite_need_neither_torch_nor_tensorflow(tmp_path, tflite_builder, cnn, save_onnx):
    (tmp_path / "m.tflite").write_bytes(tflite_builder.stored_as("float32"))
    code = (
        "import sys; sys.modules.update(torch=None, tensorflow=None)\n"
        "from edgepipe.sources import load\n"
        f"load({str(tmp_path / 'm.tflite')!r}); load({save_onnx(cnn(opset=13))!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
