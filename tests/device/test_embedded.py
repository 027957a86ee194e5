"""The embedded device: closed to all but its one user, and gone without a trace."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from edgepipe.device import embedded as embedded_module
from edgepipe.device.embedded import EmbeddedDevice
from edgepipe.device.ssh import connect
from edgepipe.errors import AuthenticationFailed, DeviceError, HostUnreachable, MissingExtra, OutputError


def keys_of(device):
    return device.ssh_options.known_hosts_path.parent


def test_commands_run_in_its_folder_with_a_clean_environment(embedded, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    with connect(embedded.host, embedded.ssh_options) as transport:
        environment = transport.check(["env", "-0"]).decode().rstrip("\0").split("\0")
        python = transport.check(["sh", "-c", "command -v python3"]).decode().strip()
    names = {entry.partition("=")[0] for entry in environment}
    assert names <= {
        "EDGEPIPE_EMBEDDED",
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "PWD",
        "OLDPWD",
        "SHELL",
        "SHLVL",
        "USER",
        "_",
    }
    assert f"HOME={embedded.root}" in environment
    assert Path(python).parent == Path(sys.executable).parent


def test_the_host_environment_stays_out(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    with (
        EmbeddedDevice.start(tmp_path / "home") as device,
        connect(device.host, device.ssh_options) as transport,
    ):
        assert b"SECRET_OF_THE_HOST" not in transport.check(["env"])


def test_it_listens_on_the_loopback_alone(embedded):
    listening = (
        Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    )
    suffix = f":{embedded.host.port:04X}"
    addresses = {
        line.split()[1]
        for line in listening[1:]
        if line.split()[1].endswith(suffix) and line.split()[3] == "0A"
    }
    assert addresses == {"0100007F" + suffix}


def test_its_keys_are_private_and_its_own(embedded, tmp_path):
    keys = keys_of(embedded)
    assert keys.stat().st_mode & 0o777 == 0o700
    assert (keys / "id_ed25519").stat().st_mode & 0o777 == 0o600
    with EmbeddedDevice.start(tmp_path / "home") as other:
        stranger = msgspec.structs.replace(
            embedded.ssh_options, identity_files=other.ssh_options.identity_files
        )
        with pytest.raises(AuthenticationFailed):
            connect(embedded.host, stranger)


@pytest.mark.parametrize("kind", ["session", "direct-tcpip"])
def test_it_offers_commands_and_nothing_else(embedded, kind):
    import paramiko

    with connect(embedded.host, embedded.ssh_options) as transport:
        link = transport._links[-1]
        if kind == "direct-tcpip":
            with pytest.raises(paramiko.ChannelException):
                link.open_channel(kind, ("127.0.0.1", embedded.host.port), ("127.0.0.1", 0))
            return
        session = link.open_session()
        session.invoke_shell()
        session.settimeout(5)
        assert b"no interactive shell" in session.recv_stderr(1000)
        assert session.recv_exit_status() == 1


def test_sftp_is_not_served(embedded):
    import paramiko

    with connect(embedded.host, embedded.ssh_options) as transport:
        session = transport._links[-1].open_session()
        with pytest.raises(paramiko.SSHException):
            session.invoke_subsystem("sftp")


def test_a_signal_is_told_as_one(embedded):
    with connect(embedded.host, embedded.ssh_options) as transport:
        assert transport.run(["sh", "-c", "kill -9 $$"]).exit_status in {-1, 137}


def test_stopping_ends_everything_and_removes_the_keys(tmp_path, no_process_names, marker):
    device = EmbeddedDevice.start(tmp_path / "home")
    (device.root / "kept").write_text("x")
    with (
        connect(device.host, device.ssh_options) as transport,
        transport.open(["sh", "-c", f"sleep 60 & echo up; wait; : {marker}"]) as channel,
    ):
        assert channel.read_line(10) == b"up"
        device.stop()
        device.stop()
        with pytest.raises(HostUnreachable):
            connect(device.host, device.ssh_options)
    assert no_process_names(marker)
    assert not keys_of(device).exists()
    assert (device.root / "kept").exists()


PARENT = """
import json, sys, time
from pathlib import Path
from edgepipe.device.embedded import EmbeddedDevice
from edgepipe.device.ssh import connect
device = EmbeddedDevice.start(Path(sys.argv[1]))
transport = connect(device.host, device.ssh_options)
channel = transport.open(["sh", "-c", "sleep 60 & echo up; wait; : " + sys.argv[2]])
channel.read_line(10)
keys = str(device.ssh_options.known_hosts_path.parent)
print(json.dumps({"keys": keys, "server": device._server.pid}), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_dies_with_its_parent(tmp_path, no_process_names, marker, signum):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "home", marker],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        said = json.loads(parent.stdout.readline())
        assert Path(said["keys"]).exists()
        parent.send_signal(signum)
        parent.wait(20)
    assert no_process_names(marker)
    assert eventually_gone(Path(f"/proc/{said['server']}"))
    assert eventually_gone(Path(said["keys"]))


def eventually_gone(path):
    deadline = time.monotonic() + 10
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not path.exists()


def test_without_asyncssh_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        EmbeddedDevice.start(tmp_path / "home")
    assert "edgepipe[emulator]" in error.value.remedy
    assert not (tmp_path / "home").exists()


def test_a_server_that_does_not_start(monkeypatch, tmp_path):
    made = []
    real = tempfile.mkdtemp

    def mkdtemp(**keywords):
        made.append(Path(real(dir=tmp_path, **keywords)))
        return str(made[-1])

    monkeypatch.setattr(embedded_module.tempfile, "mkdtemp", mkdtemp)
    incomplete = msgspec.defstruct("Incomplete", ["keys"])
    handshake = embedded_module._handshake
    monkeypatch.setattr(
        embedded_module,
        "_handshake",
        lambda server, settings: handshake(server, incomplete(settings.keys)),
    )
    with pytest.raises(DeviceError, match="does not start") as error:
        EmbeddedDevice.start(tmp_path / "home")
    assert "ValidationError" in error.value.got
    assert not made[0].exists()


def test_a_temporary_home_goes_with_the_device():
    with EmbeddedDevice.start() as device:
        root = device.root
        assert root.is_dir()
    assert not root.exists()


def test_no_room_for_temporary_files_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match="no room") as error:
        EmbeddedDevice.start()
    assert str(tmp_path / "gone") in error.value.where
    assert "TMPDIR" in error.value.remedy
