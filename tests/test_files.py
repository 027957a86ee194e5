"""A file is written whole or not at all."""

import errno
from pathlib import Path

import pytest

from edgepipe.errors import OutputError
from edgepipe.files import write_whole
from edgepipe.project import write_project


def refuse(*_arguments, **_named):
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for contents in (b"one", b"two"):
        write_whole(path, contents)
        assert path.read_bytes() == contents
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="no luck") as error:
        write_whole(path, b"new", what="no luck", remedy="try again")
    assert (error.value.where, error.value.got) == (str(path), "Read-only file system")
    assert error.value.remedy == "try again"
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path, goal):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_a_folder_where_nothing_can_be_removed_either_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match="project file"):
        write_project(tmp_path / "edgepipe.toml")
