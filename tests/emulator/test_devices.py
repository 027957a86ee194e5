"""What the engine says of containers, read and shown; and what is said where a device cannot be."""

import json

import pytest

from edgepipe import cli
from edgepipe.emulator import device
from edgepipe.emulator.access import access_to, owner
from edgepipe.errors import EmulatorFailed

DOCKER = {"ServerVersion": "28.2.2", "NCPU": 8, "MemTotal": 16 << 30}
INSPECTED = [
    {
        "Name": "/edgepipe-raspberrypi4-0123abcd",
        "State": {"Status": "running"},
        "Config": {
            "Image": "localhost/edgepipe-device:aarch64-77",
            "Labels": {"edgepipe.target": "raspberrypi4"},
        },
        "HostConfig": {"NanoCpus": 4_000_000_000, "Memory": 4 << 30},
        "NetworkSettings": {"Ports": {"22/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32768"}]}},
    }
]


@pytest.fixture
def one_device(engines):
    return engines("docker", stdout=DOCKER, ps="abc123\n", container=INSPECTED)


def run(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        cli.main(list(argv))
    told = capsys.readouterr()
    return end.value.code or 0, told.out, told.err


def test_a_container_is_read(one_device):
    [found] = device.devices()
    assert (found.target, found.state, found.port, found.cpus) == ("raspberrypi4", "running", 32768, 4.0)
    assert found.image == "edgepipe-device:aarch64-77"
    assert str(found.host) == "edge@127.0.0.1:32768"
    assert found.access == access_to("raspberrypi4")
    assert f"label=edgepipe.owner={owner()}" in one_device.read_text()


def test_list_as_a_table_and_as_json(one_device, capsys):
    code, table, _ = run(capsys, "emulator", "list")
    assert code == 0
    assert "raspberrypi4" in table
    assert "4.00 GiB" in table
    code, text, _ = run(capsys, "emulator", "list", "--json")
    assert code == 0
    assert json.loads(text)[0]["port"] == 32768


def test_a_stopped_container_has_no_address(engines):
    stopped = [{**INSPECTED[0], "State": {"Status": "exited"}, "NetworkSettings": {"Ports": {}}}]
    engines("docker", stdout=DOCKER, ps="abc123\n", container=stopped)
    [found] = device.devices()
    assert (found.state, found.port) == ("exited", 0)


def test_no_device_says_how_to_start_one(engines, capsys):
    engines("docker", stdout=DOCKER, ps="")
    assert "edgepipe emulator up" in run(capsys, "emulator", "list")[1]
    assert run(capsys, "emulator", "down", "--json")[1] == '{\n "down": []\n}\n'


def test_down_removes_the_container_and_its_keys(one_device):
    access = access_to("raspberrypi4")
    access.folder.mkdir(parents=True)
    access.identity.write_text("secret")
    assert device.down("raspberrypi3") == ()
    assert access.identity.exists()
    assert device.down("raspberrypi4") == ("raspberrypi4",)
    assert not access.folder.exists()
    assert "rm --force --volumes edgepipe-raspberrypi4-0123abcd" in one_device.read_text()


def test_without_an_engine_the_command_line_says_what_to_install(engines, capsys):
    code, _, message = run(capsys, "emulator", "up", "--target", "raspberrypi4")
    assert code == 52
    assert "no container engine is installed" in message
    assert "--emulator native" in message


def test_a_base_that_cannot_be_pulled_names_the_script_that_makes_it(engines, monkeypatch):
    from edgepipe.target import load_target

    engines("docker", stdout=DOCKER, image="[]", container="[]", pull="")
    monkeypatch.setattr("edgepipe.emulator.engine.Engine.attempt", refuse_pulls)
    with pytest.raises(EmulatorFailed, match="cannot be pulled") as caught:
        device.up(load_target("raspberrypi4"))
    assert "make-base.py trixie arm64" in caught.value.remedy
    assert caught.value.got == "no such host"


def refuse_pulls(self, *arguments, timeout_s=60.0):
    import subprocess

    if arguments[0] == "pull":
        return subprocess.CompletedProcess(arguments, 1, "", "no such host")
    return subprocess.CompletedProcess(arguments, 1, "[]", "Error: No such object")


def test_the_project_file_names_the_target(engines, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgepipe.toml").write_text('target = "jetson-nano"\n')
    code, _, message = run(capsys, "emulator", "up")
    assert code == 30
    assert "jetson-nano" in message
    (tmp_path / "edgepipe.toml").unlink()
    code, _, message = run(capsys, "emulator", "up")
    assert code == 2
    assert "--target" in message
