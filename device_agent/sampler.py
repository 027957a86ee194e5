"""Reads a sensor again and again on a thread of the agent, outside of the measured process."""

import threading
from typing import Callable, Generic, List, TypeVar

from device_agent.clock import now_ns

T = TypeVar("T")


class Sampler(Generic[T]):
    """A running series; `stop` ends it.

    Attributes:
        t_ns: When each value was read: the middle of the reading, as some sensors take long to answer.
        values: What was read.
        missed: Readings that failed.
    """

    def __init__(self, read: Callable[[], T], period_ns: int) -> None:
        self.t_ns: List[int] = []
        self.values: List[T] = []
        self.missed = 0
        self._read = read
        self._period_ns = period_ns
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler")
        self._thread.daemon = True  # an unresponsive sensor must not keep the agent alive

    def start(self) -> None:
        """Begins reading, at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends reading; what was read stays. A reading under way gets a second to end."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _sample(self) -> None:
        due_ns = now_ns()
        while not self._ending.is_set():
            start_ns = now_ns()
            try:
                value = self._read()
            except (OSError, ValueError):
                self.missed += 1
            else:
                end_ns = now_ns()
                self.t_ns.append((start_ns + end_ns) // 2)
                self.values.append(value)
            # A late reading moves the next ones instead of bunching them up.
            due_ns = max(due_ns + self._period_ns, now_ns())
            self._ending.wait(max(0.0, (due_ns - now_ns()) / 1e9))
