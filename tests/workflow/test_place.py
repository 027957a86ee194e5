from pathlib import Path

import pytest

from edgepipe.errors import EngineMissing, TargetError, UsageError
from edgepipe.job import Place
from edgepipe.target import load_target
from edgepipe.workflow.place import check_place, open_device


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


def opened(place, target=None):
    with open_device(place, lambda event: None, target) as device:
        return device.kind


@pytest.fixture
def without_engine(monkeypatch):
    monkeypatch.setenv("EDGEPIPE_ENGINE", "no-such-engine")


def test_x86_on_x86_is_this_machine_and_needs_no_engine(without_engine, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert opened(Place(emulate=True), load_target("x86")) == "embedded"
    assert opened(Place(emulate=True)) == "embedded"


def test_an_arm_board_is_never_silently_this_machine(without_engine):
    with pytest.raises(EngineMissing, match="container engine") as caught:
        opened(Place(emulate=True), load_target("raspberrypi4"))
    assert "--emulator native" in caught.value.remedy
    assert opened(Place(emulate="native"), load_target("raspberrypi4")) == "embedded"


def test_x86_elsewhere_or_as_a_container_needs_an_engine(without_engine, monkeypatch):
    with pytest.raises(EngineMissing):
        opened(Place(emulate="docker"), load_target("x86"))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(EngineMissing):
        opened(Place(emulate=True), load_target("x86"))


def test_a_target_without_an_emulated_device_says_so_and_names_others(without_engine):
    with pytest.raises(TargetError, match="no emulated device") as caught:
        opened(Place(emulate=True), load_target("jetson-nano"))
    assert "raspberrypi4" in caught.value.remedy
    assert "--emulator native" in caught.value.remedy
