"""What becomes of SIGTERM and SIGHUP: the program ends in order, as on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Makes both signals unwind the work that is under way, so that nothing half-done stays behind.

    The process ends with 128 plus the signal's number, as shells say it. A signal that somebody set aside,
    as nohup does with SIGHUP, stays so.

    Raises:
        SystemExit: One of the signals came.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in ENDING}
    taken = [signum for signum, handler in before.items() if handler is signal.SIG_DFL]

    def unwind(signum: int, _frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the first one's unwinding short
        raise SystemExit(128 + signum)

    for signum in taken:
        signal.signal(signum, unwind)
    try:
        yield
    finally:
        for signum in taken:
            signal.signal(signum, before[signum])
