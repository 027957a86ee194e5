"""This machine as a device: programs run in a folder that serves as home, in a clean environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edgepipe.device.transport import Channel, Transport
from edgepipe.errors import DeviceError

_READ_BYTES = 1 << 16
_GRACE_S = 2.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def clean_environment(home: Path) -> dict[str, str]:
    """What a program sees there: nothing of the caller's environment.

    The folder of the running interpreter comes first on PATH, so that `python3` is the Python that has
    the runtimes which edgepipe itself was installed with.
    """
    interpreter_folder = str(Path(sys.executable).parent)
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LOGNAME": "edgepipe",
        "PATH": f"{interpreter_folder}:{_SYSTEM_PATH}",
        "SHELL": "/bin/sh",
        "USER": "edgepipe",
    }


class LocalTransport(Transport):
    """Runs programs on this machine with `root` as their home and working folder.

    The command line always goes by SSH, to its embedded device too; this is for programs that use
    edgepipe as a library, and for tests.

    Args:
        root: Created where it does not exist.
        environment: Replaces that of `clean_environment`.
    """

    def __init__(self, root: Path, environment: dict[str, str] | None = None) -> None:
        self.description = "this machine"
        self._root = root.absolute()
        self._root.mkdir(parents=True, exist_ok=True)
        self._environment = environment if environment is not None else clean_environment(self._root)
        self._open: list[_LocalPipes] = []

    def open(self, argv: Sequence[str]) -> Channel:
        """Starts a program in the root folder.

        Raises:
            DeviceError: There is no such program.
        """
        pipes = _LocalPipes(argv, self._root, self._environment)
        self._open = [other for other in self._open if not other.closed] + [pipes]
        return Channel(pipes, self.description)

    def close(self) -> None:
        """Ends every program that still runs."""
        for pipes in self._open:
            pipes.close()


class _LocalPipes:
    def __init__(self, argv: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        # A shell of its own, as a login over SSH would have one: 127 says that there is no such program.
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", 'exec "$@"', "sh", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(
                "this machine cannot start a shell", where=str(folder), got=str(error)
            ) from error
        self.closed = False

    def write(self, data: bytes) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise BrokenPipeError
        view = memoryview(data)
        while view:
            view = view[os.write(stdin.fileno(), view) :]

    def close_stdin(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def read_stdout(self) -> bytes:
        return _read(self._process.stdout)

    def read_stderr(self) -> bytes:
        return _read(self._process.stderr)

    def exit_status(self, timeout_s: float) -> int:
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        return -1 if status < 0 else status

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.close_stdin()
        for signum in (signal.SIGHUP, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)


def _read(stream: IO[bytes] | None) -> bytes:
    if stream is None or stream.closed:
        return b""
    data = os.read(stream.fileno(), _READ_BYTES)
    if not data:
        stream.close()
    return data
