"""A measurement to start from: an hour of nothing going wrong."""

import msgspec
import numpy as np
import pytest

from edgepipe.measure import Measurement, Window


@pytest.fixture
def calm():
    """A builder of measurements: steady latencies around 2 ms unless told otherwise."""

    def build(latencies_ns=None, **changes):
        if latencies_ns is None:
            latencies_ns = np.random.default_rng(0).normal(2e6, 2e4, 700).astype(int).tolist()
        base = Measurement(
            kind="board",
            runtime="onnxruntime",
            runtime_version="1.31.1",
            threads=1,
            latencies_ns=tuple(latencies_ns),
            clock="time.perf_counter_ns",
            clock_resolution_ns=1.0,
            window=Window(10**15, 10**15 + max(sum(latencies_ns), 1)),
            cpu_ns=sum(latencies_ns),
            governors={"policy0": "performance"},
        )
        return msgspec.structs.replace(base, **changes)

    return build
