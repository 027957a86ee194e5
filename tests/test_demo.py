"""What the demo says before it trains anything."""

import pytest

from edgepipe.demo import run_demo
from edgepipe.errors import MissingExtra, OutputError


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="demo's files") as error:
        run_demo(tmp_path / "file" / "demo")
    assert "--folder" in error.value.remedy


def test_what_is_missing_is_named_without_a_version(tmp_path, monkeypatch):
    monkeypatch.setattr("edgepipe.demo.find_spec", lambda package: None)
    with pytest.raises(MissingExtra) as error:
        run_demo(tmp_path / "demo")
    assert error.value.remedy == "pip install 'edgepipe[demo]'"
    assert not list(tmp_path.iterdir())


def test_loading_pytorch_is_a_stage(tmp_path):
    def stop(event):
        raise KeyboardInterrupt(event.stage)

    pytest.importorskip("torch")
    with pytest.raises(KeyboardInterrupt, match="load PyTorch"):
        run_demo(tmp_path / "demo", emit=stop)
