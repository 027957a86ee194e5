"""Exceptions and deaths of the child, sorted into the protocol's kinds of failure."""

import errno
import traceback
from typing import Dict, Optional, Tuple, Type

from device_agent.protocol import Failed
from device_agent.runtimes import RuntimeMissing, RuntimeTooOld
from device_agent.tensors import TensorMismatch

_DETAIL_CHARACTERS = 4000
_SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM", 31: "SIGSYS",
}  # fmt: skip

# What runtimes say when C++ cannot allocate.
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory")


class BadRequest(Exception):
    """The request asks for something that the agent will not do."""


_KINDS: Dict[str, Tuple[Type[Exception], ...]] = {
    "bad-request": (BadRequest, TensorMismatch),
    "runtime-missing": (RuntimeMissing,),
    "runtime-too-old": (RuntimeTooOld,),
}


def failure_of(error: BaseException) -> Failed:
    """Sorts an exception that ended a request."""
    text = str(error)
    detail = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    detail = detail[-_DETAIL_CHARACTERS:]
    for kind, classes in _KINDS.items():
        if isinstance(error, classes):
            return Failed(kind, text)
    if isinstance(error, FileNotFoundError):
        return Failed("file-missing", "no such file: {}".format(error.filename or text))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed("disk-full", "no room left on the device: {}".format(error.filename or text))
    if isinstance(error, MemoryError) or any(phrase in text for phrase in _OUT_OF_MEMORY):
        return Failed("out-of-memory", "the process could not allocate memory: {}".format(text), detail)
    return Failed("python-error", "{}: {}".format(type(error).__name__, text), detail)


def death_of(returncode: int, oom_kills: Optional[int], log: str) -> Failed:
    """Sorts the end of a child that gave no answer.

    Args:
        returncode: As of `subprocess`: negative for a signal.
        oom_kills: Processes that the kernel killed for want of memory meanwhile; None if unknown.
        log: The last lines of its standard error.
    """
    log = log[-_DETAIL_CHARACTERS:]
    if any(phrase in log for phrase in _OUT_OF_MEMORY):
        return Failed("out-of-memory", "the process could not allocate memory", log)
    if returncode == -9 and oom_kills != 0:
        reason = "the kernel counted such a kill" if oom_kills else "by SIGKILL, which little else sends"
        return Failed("out-of-memory", "the process was killed for want of memory ({})".format(reason), log)
    if returncode == -9:
        text = "the process was killed with SIGKILL, and not by the kernel for want of memory"
        return Failed("crashed", text, log)
    if returncode < 0:
        name = _SIGNALS.get(-returncode, "signal {}".format(-returncode))
        return Failed("crashed", "the process died of {}".format(name), log)
    return Failed("crashed", "the process ended with status {} and no answer".format(returncode), log)
