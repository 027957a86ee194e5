"""The agent's line to the host: requests in, events out, and the moment when the host is gone."""

import os
import select
import signal
import time
from typing import Any, List, Optional, Tuple

from device_agent.protocol import (
    MAX_LINE_BYTES,
    Done,
    Event,
    Failed,
    Progress,
    ProtocolError,
    Quit,
    decode_request,
    encode,
)

_BEAT_S = 1.0
_NOTHING_DONE = Progress("load", 0)
_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


class HostGone(BaseException):
    """Nobody listens any more; `status` is what the agent shall exit with.

    No Exception, so that nothing on the way takes it for the failure of a request.
    """

    def __init__(self, status: int) -> None:
        super().__init__("the host is gone")
        self.status = status


def raise_on_signals() -> None:
    """Turns the first SIGHUP, SIGTERM or SIGINT into HostGone in the main thread; later ones do nothing."""

    def leave(number: int, _frame: Any) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise HostGone(128 + number)

    for number in _SIGNALS:
        signal.signal(number, leave)


class Host:
    """The two ends of the conversation, as file descriptors."""

    def __init__(self, in_fd: int, out_fd: int) -> None:
        self._in_fd = in_fd
        self._out_fd = out_fd
        self._lines: List[bytes] = []
        self._rest = b""
        self._ended = False
        self._sent_s = time.monotonic()
        self._progress = _NOTHING_DONE

    def send(self, event: Event) -> None:
        """Writes an event.

        Raises:
            HostGone: Nobody reads.
        """
        data = encode(event).encode("ascii") + b"\n"
        try:
            while data:
                data = data[os.write(self._out_fd, data) :]
        except OSError:
            raise HostGone(128 + signal.SIGHUP) from None
        self._sent_s = time.monotonic()
        if isinstance(event, Progress):
            self._progress = event
        elif isinstance(event, (Done, Failed)):
            self._progress = _NOTHING_DONE

    def read_line(self) -> Optional[bytes]:
        """Waits for the next line; None after the last."""
        while not self._lines and not self._ended:
            self._receive()
        return self._lines.pop(0) if self._lines else None

    def wait(self, fds: Tuple[int, ...], timeout_s: float) -> List[int]:
        """Waits until one of `fds` can be read, and gives those that can; [] after the timeout.

        Meanwhile it repeats the last progress once a second, as a sign of life.

        Raises:
            HostGone: The host closed its end without saying that it would.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            if self._ended and not self._is_quitting():
                raise HostGone(128 + signal.SIGHUP)
            now_s = time.monotonic()
            if now_s - self._sent_s >= _BEAT_S:
                self.send(self._progress)
            watched = list(fds) if self._ended else [self._in_fd, *fds]
            pause_s = min(deadline_s - now_s, _BEAT_S)
            ready = select.select(watched, [], [], max(0.0, pause_s))[0]
            if self._in_fd in ready:
                self._receive()
                ready.remove(self._in_fd)
            if ready or time.monotonic() >= deadline_s:
                return ready

    def _receive(self) -> None:
        data = os.read(self._in_fd, 65536)
        if not data:
            self._ended = True
            if self._rest:
                self._lines.append(self._rest)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [line for line in lines if line.strip()]
        if len(self._rest) > MAX_LINE_BYTES:
            # Enough of it to be refused as too long; the remainder of the line will be refused too.
            self._lines.append(self._rest)
            self._rest = b""

    def _is_quitting(self) -> bool:
        try:
            return bool(self._lines) and isinstance(decode_request(self._lines[-1]), Quit)
        except ProtocolError:
            return False
