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
from edgepipe.device.transport import last_lines
from edgepipe.errors import DeviceError, MissingExtra, OutputError
from edgepipe.host import Host

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

    def __init__(self, server: subprocess.Popen[bytes], port: int, settings: Settings) -> None:
        keys = Path(settings.keys)
        self.host = Host(hostname="127.0.0.1", user=USER, port=port, alias="embedded")
        self.ssh_options = SshOptions(
            config_path=keys / "config",
            known_hosts_path=keys / "known_hosts",
            identity_files=(keys / "id_ed25519",),
            use_agent=False,
        )
        self.root = Path(settings.root)
        self.description = f"embedded device on {cpu_name()}"
        self._server = server
        self._settings = settings

    @classmethod
    def start(cls, root: Path | None = None) -> Self:
        """Starts a device.

        Args:
            root: Its home, which is created where need be and stays afterwards; None for a temporary one.

        Raises:
            MissingExtra: asyncssh is not installed.
            OutputError: There is no room for its files.
            DeviceError: The server does not start.
        """
        if importlib.util.find_spec("asyncssh") is None:
            raise MissingExtra(
                "the embedded device needs asyncssh",
                remedy="pip install 'edgepipe[emulator]'",
            )
        settings = _make_folders(root)
        try:
            server = _start_server(Path(settings.keys) / _LOG)
        except BaseException:
            _remove_folders(settings)
            raise
        try:
            return cls(server, _handshake(server, settings), settings)
        except BaseException:
            _stop(server, settings)
            raise

    def stop(self) -> None:
        """Ends the server, everything that runs in it, and its keys. May be called twice."""
        _stop(self._server, self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def _make_folders(root: Path | None) -> Settings:
    """Makes the home and the folder of the keys."""
    made = []
    try:
        if root is None:
            made.append(tempfile.mkdtemp(prefix="edgepipe-device-"))
        else:
            root.mkdir(parents=True, exist_ok=True)
        keys = tempfile.mkdtemp(prefix="edgepipe-keys-")
    except OSError as error:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        raise _no_room(error) from error
    home = made[0] if root is None else str(root.absolute())
    return Settings(root=home, keys=keys, temporary=root is None)


def _start_server(log: Path) -> subprocess.Popen[bytes]:
    try:
        with log.open("wb") as written:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "edgepipe.device.embedded_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                start_new_session=True,  # Ctrl-C is for edgepipe, which then ends the server in order
            )
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> OutputError:
    return OutputError(
        "the embedded device has no room for its files",
        where=str(error.filename or "the folder of temporary files"),
        got=error.strerror or str(error),
        remedy="free some space there, or name another folder: TMPDIR=/path edgepipe ...",
    )


def _remove_folders(settings: Settings) -> None:
    shutil.rmtree(settings.keys, ignore_errors=True)
    if settings.temporary:
        shutil.rmtree(settings.root, ignore_errors=True)


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


def _stop(server: subprocess.Popen[bytes], settings: Settings) -> None:
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
    _remove_folders(settings)


def cpu_name() -> str:
    """The name that this machine's CPU gives itself, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "") or platform.processor() or platform.machine()
