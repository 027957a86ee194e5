"""Real SSH servers on the loopback: OpenSSH's sshd, and the embedded device; and a place to cut wires."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import pytest

from edgepipe.device.embedded import EmbeddedDevice
from edgepipe.device.local import LocalTransport
from edgepipe.device.ssh import connect
from edgepipe.device.ssh_config import SshOptions
from edgepipe.device.transport import Host

SSHD = Path("/usr/sbin/sshd")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_key(path, *, kind="ed25519", passphrase=""):
    """Makes a key pair by OpenSSH: small, and with its passphrase stretched little, for speed."""
    size = ["-b", "2048"] if kind == "rsa" else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *size, "-a", "1", "-N", passphrase, "-f", path], check=True
    )
    return path


@pytest.fixture
def keygen():
    """`make_key`."""
    return make_key


class OpenSsh:
    """An sshd of this machine's OpenSSH, with its own keys, whose one user's home is `root`."""

    def __init__(self, folder, **settings):
        if not SSHD.exists():
            pytest.skip("needs OpenSSH's server: apt-get install openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.root = folder, folder / "home"
        self.root.mkdir()
        self.key = make_key(folder / "user_key")
        self.host_key = make_key(folder / "host_key")
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self.port = free_port()
        self._settings = settings
        self.write_known_hosts()
        self.start()

    def write_known_hosts(self):
        public = self.host_key.with_name("host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}")

    @property
    def host(self):
        return Host(hostname="127.0.0.1", user=getpass.getuser(), port=self.port)

    @property
    def ssh_options(self):
        return SshOptions(
            config_path=self.folder / "ssh_config",
            known_hosts_path=self.folder / "known_hosts",
            identity_files=(self.key,),
            use_agent=False,
            connect_timeout_s=10,
        )

    def start(self):
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.host_key,
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": "100",
            "SetEnv": f"HOME={self.root}",
            "ForceCommand": 'cd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"',
            **self._settings,
        }
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        with (self.folder / "log").open("wb") as log:
            self._server = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=log
            )
        for _ in range(200):
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection(("127.0.0.1", self.port)),
            ):
                return
            time.sleep(0.02)
        pytest.fail("sshd does not start: " + (self.folder / "log").read_text())

    def stop(self):
        self._server.terminate()
        self._server.wait()


@pytest.fixture(scope="session")
def openssh(tmp_path_factory):
    server = OpenSsh(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def start_openssh(tmp_path):
    """Starts an sshd with settings of its own, stopped after the test."""
    started = []

    def start(**settings):
        started.append(OpenSsh(tmp_path / f"sshd{len(started)}", **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    with EmbeddedDevice.start(tmp_path_factory.mktemp("embedded") / "home") as device:
        yield device


def _emptied(device):
    for entry in device.root.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return device


@pytest.fixture(params=["openssh", "embedded"])
def device(request):
    """A device with `host`, `ssh_options` and `root`, over each of the two servers."""
    return _emptied(request.getfixturevalue(request.param))


@pytest.fixture(params=["openssh", "embedded", "local"])
def place(request, tmp_path):
    """A transport of each kind, and the folder that is home there."""
    if request.param == "local":
        with LocalTransport(tmp_path / "home") as transport:
            yield transport, tmp_path / "home"
        return
    device = _emptied(request.getfixturevalue(request.param))
    with connect(device.host, device.ssh_options) as transport:
        yield transport, device.root


class Wire:
    """A TCP relay to a port of the loopback that can be cut after so many bytes to the server."""

    def __init__(self, port):
        self.cut_after = None
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def options(self, device, tmp_path):
        """The device's options for a connection through this relay."""
        return msgspec.structs.replace(
            device.ssh_options, known_hosts_path=tmp_path / "wire_hosts", accept_new_host_key=True
        )

    def host(self, device):
        return msgspec.structs.replace(device.host, port=self.port)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                threading.Thread(target=self._relay, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._relay, args=(far, near, False), daemon=True).start()

    def _relay(self, source, sink, counted):
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                passed += len(data)
                if counted and self.cut_after is not None and passed >= self.cut_after:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Ends every connection at once."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.cut()
        self._listener.close()
        for one in self._sockets:
            one.close()


@pytest.fixture
def cut_wire():
    """Makes a `Wire` to a device."""
    wires = []

    def make(device):
        wires.append(Wire(device.host.port))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()


def processes_naming(text):
    """Processes of this machine whose command line holds `text`, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def eventually(condition, seconds=10):
    """Waits until the condition holds; gives whether it came to that."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def no_process_names():
    """Asserts that within seconds no process names a text any more."""
    return lambda text: eventually(lambda: not processes_naming(text))
