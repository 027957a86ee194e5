"""The process that runs a model: one request in, its events out, then it ends.

The agent starts one for each measurement, so that a crash or an out-of-memory kill is an answer.
"""

import os
import signal
import sys
from typing import NoReturn

from device_agent.bench import bench
from device_agent.failures import failure_of
from device_agent.protocol import Bench, Event, Failed, Verify, decode_request, encode
from device_agent.verify import verify

_PR_SET_PDEATHSIG = 1


def run_child(out_fd: int) -> NoReturn:
    """Reads one request from standard input, writes its events to `out_fd`, and ends the process."""
    parent = os.getppid()
    _die_with_parent()
    _die_first()

    def emit(event: Event) -> None:
        _write(out_fd, encode(event))

    try:
        request = decode_request(sys.stdin.buffer.readline())
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the kernel knew that we want to go with it
        if isinstance(request, Verify):
            verify(request, emit)
        elif isinstance(request, Bench):
            bench(request, emit)
        else:
            emit(Failed("bad-request", "a child can only verify or bench"))
    except BaseException as error:  # noqa: BLE001  whatever it is, it is this request's answer
        emit(failure_of(error))
    sys.stderr.flush()
    # Destructors of runtimes are known to crash, and nobody needs them here.
    os._exit(0)


def _write(out_fd: int, line: str) -> None:
    data = line.encode("ascii") + b"\n"
    while data:
        data = data[os.write(out_fd, data) :]


def _die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent ends (prctl(2), Linux)."""
    try:
        import ctypes  # some small systems' Python lacks it

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # then the next write to the closed pipe ends it


def _die_first() -> None:
    """Makes this process the one to go when memory runs out, rather than the agent or the board's sshd."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # then the kernel chooses by size alone, and this is likely the largest
