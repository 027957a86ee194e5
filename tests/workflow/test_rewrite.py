"""Changes of format alone."""

import msgspec
import pytest

from edgepipe.convert import tflite
from edgepipe.errors import ModelUnreadable
from edgepipe.job import SourceSpec
from edgepipe.workflow.rewrite import convert


def test_a_file_that_its_runtime_refuses_is_not_written(tiny_onnx, tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(tiny_onnx(batch=None).payload)
    real = tflite.emit
    monkeypatch.setattr(
        tflite, "emit", lambda *args, **options: msgspec.structs.replace(real(*args, **options), payload=b"x")
    )
    output = tmp_path / "m.tflite"
    output.write_bytes(b"the older one")
    with pytest.raises(ModelUnreadable, match="LiteRT"):
        convert(SourceSpec(model=str(tmp_path / "m.onnx")), "tflite", output)
    assert output.read_bytes() == b"the older one"
    assert not list(tmp_path.glob(".*.part"))
