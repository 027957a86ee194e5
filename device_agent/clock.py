"""The device's monotonic clock, in integer nanoseconds on every Python from 3.6 on."""

import sys
import time

from device_agent.records import Clock

if sys.version_info >= (3, 7):
    # On Linux perf_counter is CLOCK_MONOTONIC, whose readings compare across processes.
    now_ns = time.perf_counter_ns  # novermin
    _NAME = "time.perf_counter_ns"
else:

    def now_ns() -> int:
        """The clock's reading."""
        return int(time.perf_counter() * 1e9)

    _NAME = "time.perf_counter"


def read_clock() -> Clock:
    """Names the clock and finds the least time that it can tell apart, its own cost included."""
    steps = []
    for _ in range(200):
        start = now_ns()
        end = now_ns()
        while end == start:
            end = now_ns()
        steps.append(end - start)
    resolution_ns = time.get_clock_info("perf_counter").resolution * 1e9
    return Clock(name=_NAME, resolution_ns=max(resolution_ns, float(min(steps))))
