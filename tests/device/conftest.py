"""Devices on the loopback: OpenSSH's sshd, and the embedded device; and a place to cut wires."""

import contextlib
import shutil
import socket
import threading
import uuid

import msgspec
import pytest

from edgepipe.device.embedded import EmbeddedDevice
from edgepipe.device.local import LocalTransport
from edgepipe.device.ssh import connect


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


@pytest.fixture
def marker():
    """A word that no other process names, however many tests run at once."""
    return f"marker-{uuid.uuid4().hex}"


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
