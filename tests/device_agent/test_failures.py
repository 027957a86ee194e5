"""How exceptions and deaths are sorted."""

import errno

import pytest

from device_agent.failures import BadRequest, death_of, failure_of
from device_agent.runtimes import RuntimeMissing, RuntimeTooOld
from device_agent.tensors import TensorMismatch


@pytest.mark.parametrize(
    ("returncode", "oom_kills", "log", "kind", "message"),
    [
        (-11, 0, "", "crashed", "SIGSEGV"),
        (-4, 0, "", "crashed", "SIGILL"),
        (-6, 0, "", "crashed", "SIGABRT"),
        (-6, 0, "terminate called after throwing 'std::bad_alloc'", "out-of-memory", "could not allocate"),
        (-9, 1, "", "out-of-memory", "the kernel counted such a kill"),
        (-9, None, "", "out-of-memory", "which little else sends"),
        (-9, 0, "", "crashed", "not by the kernel for want of memory"),
        (-64, 0, "", "crashed", "signal 64"),
        (0, 0, "", "crashed", "status 0 and no answer"),
        (2, 5, "can't open file", "crashed", "status 2"),
    ],
)
def test_deaths(returncode, oom_kills, log, kind, message):
    failed = death_of(returncode, oom_kills, log)
    assert failed.kind == kind
    assert message in failed.message
    assert failed.detail == log


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BadRequest("no"), "bad-request", "no"),
        (TensorMismatch("4 bytes"), "bad-request", "4 bytes"),
        (RuntimeMissing("import x"), "runtime-missing", "import x"),
        (RuntimeTooOld("op 9"), "runtime-too-old", "op 9"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), "file-missing", "no such file: /a"),
        (OSError(errno.ENOSPC, "No space left", "/b"), "disk-full", "no room left on the device: /b"),
        (OSError(errno.EDQUOT, "Quota exceeded", "/b"), "disk-full", "no room left on the device: /b"),
        (PermissionError(errno.EACCES, "Permission denied", "/c"), "python-error", "/c"),
        (MemoryError(), "out-of-memory", "could not allocate"),
        (RuntimeError("std::bad_alloc"), "out-of-memory", "std::bad_alloc"),
        (ValueError("other"), "python-error", "ValueError: other"),
    ],
)
def test_exceptions(error, kind, message):
    failed = failure_of(error)
    assert failed.kind == kind
    assert message in failed.message


def test_long_logs_are_cut_to_their_end():
    assert death_of(-11, 0, "x" * 100_000 + "the end").detail.endswith("the end")
    assert len(death_of(-11, 0, "x" * 100_000).detail) < 10_000
