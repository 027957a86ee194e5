from pathlib import Path

import pytest

from edgepipe.errors import UsageError
from edgepipe.job import Place
from edgepipe.workflow.place import check_place


def test_a_private_key_that_is_not_there_is_told_before_anything_is_connected(tmp_path):
    key = tmp_path / "key"
    with pytest.raises(UsageError, match="private key") as error:
        check_place(Place(host="pi@board.invalid", identity=key))
    assert str(key) in error.value.got
    key.write_text("")
    check_place(Place(host="pi@board.invalid", identity=key))


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text("")
    check_place(Place(emulate=True, identity=Path("~/key")))


def test_a_password_is_not_repeated_whatever_else_is_wrong():
    with pytest.raises(UsageError) as error:
        check_place(Place(host="root:hunter2@board", emulate=True))
    assert "hunter2" not in str(error.value)
