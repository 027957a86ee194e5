"""The way to a device: programs started there, and their pipes.

A `Transport` has three verbs: `run` a program to its end, `open` one to talk with, `close`. Programs
start in the home folder of the device's user, so every relative path is relative to that.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, Self

import msgspec

from edgepipe.errors import AgentFailed, DeviceTimeout

DEFAULT_TIMEOUT_S = 60.0
_STDERR_TAIL_CHUNKS = 64
_MAX_LINE_BYTES = 1 << 22


class Completed(msgspec.Struct, frozen=True):
    """What a program left: its exit status (-1 where a signal ended it) and its output."""

    exit_status: int
    stdout: bytes
    stderr: bytes


class Pipes(Protocol):
    """What a transport must offer for a started program; reads block in threads of their own."""

    def write(self, data: bytes) -> None:
        """Writes all of `data` to stdin; BrokenPipeError where the program no longer reads."""

    def close_stdin(self) -> None:
        """Tells the program that nothing more comes."""

    def read_stdout(self) -> bytes:
        """Blocks until output is there; b"" at its end."""

    def read_stderr(self) -> bytes:
        """Likewise for stderr."""

    def exit_status(self, timeout_s: float) -> int:
        """Waits for the program's end: its status, -1 where a signal ended it; TimeoutError."""

    def close(self) -> None:
        """Ends the program where it still runs, and frees the pipes. May be called twice."""


class Channel:
    """A running program on the device, spoken to line by line. A context manager that ends it.

    Both outputs are drained by threads, so that a program that talks a lot can never block.
    """

    def __init__(self, pipes: Pipes, description: str) -> None:
        self.description = description
        self._pipes = pipes
        self._chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._stderr: deque[bytes] = deque(maxlen=_STDERR_TAIL_CHUNKS)
        self._buffer = bytearray()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._drain_stdout, daemon=True),
            threading.Thread(target=self._drain_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Sends bytes to the program's stdin.

        Raises:
            BrokenPipeError: The program no longer reads.
            DeviceTimeout: The device took nothing for a long while.
        """
        self._pipes.write(data)

    def write_line(self, line: bytes) -> None:
        """Sends a line, to which the newline is added; raises as `write`."""
        self.write(line + b"\n")

    def close_stdin(self) -> None:
        """Tells the program that nothing more comes."""
        self._pipes.close_stdin()

    def read(self, timeout_s: float) -> bytes:
        """The next bytes of stdout, b"" at its end.

        Raises:
            DeviceTimeout: Nothing came in time.
        """
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        return self._next_chunk(timeout_s)

    def read_line(self, timeout_s: float) -> bytes | None:
        """The next line without its newline; None at the end of stdout.

        A line that does not end is cut at some MiB.

        Raises:
            DeviceTimeout: No whole line came in time.
        """
        deadline = time.monotonic() + timeout_s
        while (newline := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE_BYTES:
                newline = len(self._buffer)
                break
            chunk = self._next_chunk(max(0.0, deadline - time.monotonic()))
            if not chunk:
                line = bytes(self._buffer)
                self._buffer.clear()
                return line or None
            self._buffer += chunk
        line = bytes(self._buffer[:newline])
        del self._buffer[: newline + 1]
        return line

    def wait(self, timeout_s: float) -> int:
        """Waits for the program's end and gives its exit status, -1 where a signal ended it.

        Raises:
            DeviceTimeout: It still runs.
            HostUnreachable: The connection was lost.
        """
        try:
            return self._pipes.exit_status(timeout_s)
        except TimeoutError:
            raise self._timed_out(timeout_s) from None

    @property
    def stderr_tail(self) -> bytes:
        """The last of what the program wrote to stderr; complete once `wait` has returned."""
        return b"".join(self._stderr)

    def settle(self, timeout_s: float = 1.0) -> None:
        """Waits until stderr is drained too, for a message that wants to quote it."""
        for thread in self._threads:
            thread.join(timeout_s)

    def close(self) -> None:
        """Ends the program where it still runs. May be called twice."""
        self._pipes.close()

    def kill(self) -> None:
        """Same as `close`: over SSH a program ends because its pipes do."""
        self.close()

    def _next_chunk(self, timeout_s: float) -> bytes:
        if self._ended:
            return b""
        try:
            chunk = self._chunks.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            raise self._timed_out(timeout_s) from None
        self._ended = not chunk
        return chunk

    def _drain_stdout(self) -> None:
        while chunk := self._pipes.read_stdout():
            self._chunks.put(chunk)
        self._chunks.put(b"")

    def _drain_stderr(self) -> None:
        while chunk := self._pipes.read_stderr():
            self._stderr.append(chunk)

    def _timed_out(self, timeout_s: float) -> DeviceTimeout:
        return DeviceTimeout(
            "the device did not answer in time",
            where=self.description,
            got=f"nothing for {timeout_s:.0f} s",
            remedy="see whether the device is busy or out of memory, then try again",
        )


class Transport(ABC):
    """A connection to a device, or to this machine as if it were one. A context manager."""

    description: str
    """The device as messages name it: ``nvidia@10.0.0.7``."""

    @abstractmethod
    def open(self, argv: Sequence[str]) -> Channel:
        """Starts a program in the home folder and gives its pipes.

        Raises:
            HostUnreachable: The connection was lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the connection. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Iterable[bytes] = b"",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Completed:
        """Runs a program to its end.

        A program that stops reading before `stdin` is used up is no error here: its exit status says why.

        Args:
            argv: Program and arguments, not yet quoted.
            stdin: What it reads: bytes, or chunks that are taken as the connection swallows them.
            timeout_s: How long it may take after it has read everything.

        Raises:
            DeviceTimeout: It did not end in time. Over SSH it ends when it next uses its pipes.
            HostUnreachable: The connection was lost.
        """
        with self.open(argv) as channel:
            try:
                for chunk in (stdin,) if isinstance(stdin, bytes) else stdin:
                    channel.write(chunk)
                channel.close_stdin()
            except BrokenPipeError:
                pass
            deadline = time.monotonic() + timeout_s
            output = bytearray()
            while chunk := channel.read(deadline - time.monotonic()):
                output += chunk
            exit_status = channel.wait(max(deadline - time.monotonic(), 1.0))
            channel.settle()
            return Completed(exit_status, bytes(output), channel.stderr_tail)

    def check(self, argv: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bytes:
        """Runs a program that must succeed, and gives its output.

        Raises:
            AgentFailed: It ended with another status than 0.
            DeviceTimeout: It did not end in time.
            HostUnreachable: The connection was lost.
        """
        completed = self.run(argv, timeout_s=timeout_s)
        if completed.exit_status != 0:
            raise AgentFailed(
                f"a command failed on the device with exit status {completed.exit_status}",
                where=self.description,
                got=last_lines(completed.stderr) or "no message",
                remedy=f"try it there by hand: {argv[0]}",
            )
        return completed.stdout


def last_lines(output: bytes, count: int = 5) -> str:
    """The last lines of a program's output as text for a message."""
    return "\n".join(output.decode(errors="replace").strip().splitlines()[-count:])
