"""The embedded device: a loopback SSH server that edgepipe starts and stops, for want of a board.

It stands in for the way to a device (SSH, keys, upload, agent), not for a device's speed: programs run
natively on this machine's CPU, and results are marked with that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import msgspec

from edgepipe.device.embedded_server import USER, Address, Settings
from edgepipe.device.ssh_config import SshOptions
from edgepipe.device.transport import Host, last_lines
from edgepipe.errors import DeviceError, MissingExtra

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_LOG = "log"


class EmbeddedDevice:
    """A running embedded device. A context manager that stops it and removes its keys.

    Attributes:
        host: Where to connect to.
        ssh_options: How to: its own key and known_hosts, nothing of the user's.
        root: The folder that serves as home there.
        description: What results call it: "embedded device on AMD EPYC 7B13".
    """

    def __init__(self, server: subprocess.Popen[bytes], port: int, root: Path, keys: Path) -> None:
        self.host = Host(hostname="127.0.0.1", user=USER, port=port, alias="embedded")
        self.ssh_options = SshOptions(
            config_path=keys / "config",
            known_hosts_path=keys / "known_hosts",
            identity_files=(keys / "id_ed25519",),
            use_agent=False,
        )
        self.root = root
        self.description = f"embedded device on {cpu_name()}"
        self._server = server
        self._keys = keys

    @classmethod
    def start(cls, root: Path) -> Self:
        """Starts a device whose home is `root`, which is created where need be and stays afterwards.

        Raises:
            MissingExtra: asyncssh is not installed.
            DeviceError: The server does not start.
        """
        if importlib.util.find_spec("asyncssh") is None:
            raise MissingExtra(
                "the embedded device needs asyncssh",
                remedy="pip install 'edgepipe[emulator]'",
            )
        root = root.absolute()
        root.mkdir(parents=True, exist_ok=True)
        keys = Path(tempfile.mkdtemp(prefix="edgepipe-keys-"))
        with (keys / _LOG).open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgepipe.device.embedded_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for edgepipe, which then ends the server in order
            )
        try:
            port = _handshake(server, Settings(str(root), str(keys)))
            return cls(server, port, root, keys)
        except BaseException:
            _stop(server, keys)
            raise

    def stop(self) -> None:
        """Ends the server, everything that runs in it, and its keys. May be called twice."""
        _stop(self._server, self._keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _handshake(server: subprocess.Popen[bytes], settings: Settings) -> int:
    """Hands the settings over and gives the port."""
    if server.stdin is None or server.stdout is None:
        raise TypeError("the server was started without pipes")
    try:
        server.stdin.write(msgspec.json.encode(settings) + b"\n")
        server.stdin.flush()
        ready, _, _ = select.select([server.stdout], [], [], _START_TIMEOUT_S)
        return msgspec.json.decode(server.stdout.readline() if ready else b"", type=Address).port
    except (OSError, msgspec.DecodeError) as error:
        server.kill()
        raise DeviceError(
            "the embedded device does not start",
            where="edgepipe.device.embedded_server",
            got=last_lines((Path(settings.keys) / _LOG).read_bytes()) or "no message",
            remedy="see whether programs may listen on 127.0.0.1 here",
        ) from error


def _stop(server: subprocess.Popen[bytes], keys: Path) -> None:
    if server.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            server.stdin.close()  # the server's sign to end its sessions and itself
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if server.stdout is not None:
        server.stdout.close()
    shutil.rmtree(keys, ignore_errors=True)


def cpu_name() -> str:
    """The name that this machine's CPU gives itself, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "") or platform.processor() or platform.machine()
