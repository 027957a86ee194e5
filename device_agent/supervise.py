"""Starts a child, passes on what it says, and makes sure that it ends."""

import os
import signal
import subprocess
import sys
from typing import Any, Callable, List, Optional, Union

from device_agent.clock import now_ns
from device_agent.failures import death_of
from device_agent.host import Host
from device_agent.machine import Machine
from device_agent.memory import count_oom_kills
from device_agent.protocol import (
    Bench,
    Event,
    Failed,
    Measurement,
    ProtocolError,
    Verification,
    Verify,
    decode_event,
    encode,
)

_LOG_BYTES = 8000

Answer = Union[Verification, Measurement, Failed]


def supervise(request: Union[Verify, Bench], host: Host, pass_on: Callable[[Event], None]) -> Answer:
    """Runs `request` in a child process.

    Args:
        request: Its folder must be absolute.
        host: Watched meanwhile, so that the child does not outlive its interest.
        pass_on: Is handed every event but the answer.

    Returns:
        The child's answer, or what its end without one means.

    Raises:
        HostGone: The host hung up; the child is dead.
    """
    oom_kills = count_oom_kills(Machine())
    with _Child(request) as child:
        answer = child.listen(host, pass_on)
    if answer is not None:
        return answer
    after = count_oom_kills(Machine())
    new_kills = None if oom_kills is None or after is None else after - oom_kills
    return death_of(child.returncode, new_kills, child.log)


def _child_command() -> List[str]:
    """How to start a child of this very agent, be it a zip file or a folder."""
    location = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.isfile(location):
        return [sys.executable, location, "--child"]
    return [sys.executable, os.path.join(location, "device_agent", "__main__.py"), "--child"]


class _Child:
    """A running child process; leaving the context kills what is left of it."""

    def __init__(self, request: Union[Verify, Bench]) -> None:
        self._request = request
        self._deadline_ns = now_ns() + request.timeout_ns
        self._out = b""
        self._err = b""
        self._answer: Optional[Answer] = None
        self._process: Any = None  # any: mypy cannot know that its streams are pipes

    def __enter__(self) -> "_Child":
        self._process = subprocess.Popen(
            _child_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own, so that its own children die with it
        )
        try:
            self._process.stdin.write(encode(self._request).encode("ascii") + b"\n")
            self._process.stdin.close()
        except OSError:
            pass  # it died at once; how will show
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except OSError:
            pass  # it ended by itself
        self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()

    @property
    def returncode(self) -> int:
        """As of `subprocess`: negative for a signal."""
        return int(self._process.returncode)

    @property
    def log(self) -> str:
        """The end of its standard error."""
        return self._err.decode("utf-8", "replace")

    def listen(self, host: Host, pass_on: Callable[[Event], None]) -> Optional[Answer]:
        """Passes events on until the answer comes; None where the child ends without one."""
        out, err = self._process.stdout.fileno(), self._process.stderr.fileno()
        open_fds = (out, err)
        while out in open_fds and self._answer is None:
            left_ns = self._deadline_ns - now_ns()
            if left_ns <= 0:
                seconds = self._request.timeout_ns / 1e9
                return Failed("timeout", "not done within {:g} s".format(seconds), self.log)
            for fd in host.wait(open_fds, left_ns / 1e9):
                data = os.read(fd, 65536)
                if not data:
                    open_fds = tuple(each for each in open_fds if each != fd)
                elif fd == err:
                    self._keep_log(data)
                else:
                    self._hear(data, pass_on)
        self._drain(err if err in open_fds else None)
        return self._answer

    def _hear(self, data: bytes, pass_on: Callable[[Event], None]) -> None:
        *lines, self._out = (self._out + data).split(b"\n")
        for line in lines:
            try:
                event = decode_event(line)
            except ProtocolError as error:
                self._answer = Failed("crashed", "the child broke the protocol: {}".format(error), self.log)
                return
            if isinstance(event, (Verification, Measurement, Failed)):
                self._answer = event
                return
            pass_on(event)

    def _keep_log(self, data: bytes) -> None:
        self._err = (self._err + data)[-_LOG_BYTES:]
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()

    def _drain(self, err: Optional[int]) -> None:
        """Lets the child end by itself, which takes a moment after its last word, and reads its log."""
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return
        if err is not None:
            os.set_blocking(err, False)  # a grandchild may hold the pipe open
            try:
                self._keep_log(os.read(err, 65536))
            except OSError:
                pass
