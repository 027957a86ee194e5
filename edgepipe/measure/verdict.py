"""Whether a measurement may be quoted: VALID or INVALID with reasons, and warnings, each with advice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np

from edgepipe.measure.energy import energy_of
from edgepipe.measure.record import Measurement, Reading
from edgepipe.measure.statistics import RUNS_NEEDED, Latency, bimodality, drift, latency_of
from edgepipe.units import format_ns, format_share

MAX_SPREAD = 0.10
MAX_CLOCK_CHANGE = 0.05
MAX_DRIFT = 0.05
MAX_SWITCHES_HZ = 20
MIN_CPU_SHARE = 0.9
_CPU_PROVIDERS = {"CPUExecutionProvider", "XNNPACK", "built-in kernels"}


class Finding(msgspec.Struct, frozen=True):
    """Something to know about a measurement.

    Attributes:
        text: What was seen.
        advice: What to do about it.
    """

    text: str
    advice: str


class Verdict(msgspec.Struct, frozen=True):
    """Whether the figures may be quoted.

    Attributes:
        state: "VALID", or "INVALID" if there is a reason.
        reasons: Why the figures may not be quoted.
        warnings: What weakens them.
    """

    state: Literal["VALID", "INVALID"]
    reasons: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def verdict_of(measurement: Measurement, latency: Latency | None = None) -> Verdict:
    """Judges a measurement by its raw samples and the conditions it was made under.

    Args:
        measurement: What was measured.
        latency: Its `latency_of`, where the caller has it already.
    """
    latency = latency or latency_of(measurement)
    reasons = tuple(_reasons(measurement, latency))
    emulated = measurement.kind == "emulated"
    warnings = tuple(_warnings(measurement, latency)) if latency and not emulated else ()
    return Verdict("INVALID" if reasons else "VALID", reasons, warnings)


def throttled(measurement: Measurement) -> tuple[Reading, ...]:
    """Throttle counters and cooling levels that rose, and flags that were up, during the measurement.

    A fan's level may rise: it cools without slowing anything.
    """
    before = {(r.source, r.name): r.value for r in measurement.throttle_before}
    return tuple(
        reading
        for reading in measurement.throttle_after
        if (reading.value > before.get((reading.source, reading.name), 0) and not _is_fan(reading))
        or (reading.unit == "flag" and reading.value and reading.name.endswith("-now"))
    )


def core_share(measurement: Measurement) -> float | None:
    """CPU time of the measuring process over the length of the window; None where either is unknown."""
    window = measurement.window
    if window is None or window.duration_ns <= 0 or measurement.cpu_ns <= 0:
        return None
    return measurement.cpu_ns / window.duration_ns


def starved(measurement: Measurement) -> bool:
    """Whether other processes kept the measuring one from the core that it wanted all the time.

    Of several threads, one at least runs at any time, so that less than one core is too little for any
    number of them. Only where the CPU computes: a process that waits for an accelerator wants less.
    """
    share = core_share(measurement)
    on_cpu = all(provider in _CPU_PROVIDERS for provider in measurement.providers)
    return on_cpu and share is not None and share < MIN_CPU_SHARE


def _is_fan(reading: Reading) -> bool:
    return reading.unit == "level" and "fan" in reading.name.lower()


def _reasons(measurement: Measurement, latency: Latency | None) -> Iterator[Finding]:
    if measurement.outcome != "ok":
        yield Finding(f"{measurement.outcome}: {measurement.message}", _OUTCOME_ADVICE[measurement.outcome])
        return
    needed = RUNS_NEEDED[0.9]
    if measurement.kind == "emulated":
        yield Finding(
            f"emulated: {measurement.emulation or 'not the device itself'}",
            "outputs were checked; an emulator's time says nothing about a device's: measure on the board",
        )
    elif latency is None or latency.runs < needed:
        runs = latency.runs if latency else 0
        yield Finding(
            f"{runs} runs; the 90th percentile needs {needed}", "measure longer, or ask for more runs"
        )
    for reading in throttled(measurement):
        yield Finding(
            f"the device throttled: {reading.source} {reading.name}",
            "cool it, check its power supply, and measure again",
        )


def _warnings(measurement: Measurement, latency: Latency) -> Iterator[Finding]:
    if measurement.kind == "embedded":
        yield Finding(
            measurement.emulation or "embedded device: a process on the host",
            "these are the host CPU's figures; use --host to measure a board",
        )
    yield from _fallen_back(measurement)
    yield from _unsteady(measurement, latency)
    yield from _disturbed(measurement)
    if energy_of(measurement).missing == "too short":
        yield Finding("too short for energy", "measure for 10 s at least, with 50 updates of the sensor")


def _fallen_back(measurement: Measurement) -> Iterator[Finding]:
    """ONNX Runtime goes on without a provider that its build lacks, or that fails to start."""
    lacking = [name for name in measurement.providers_asked if name not in measurement.providers]
    if lacking:
        yield Finding(
            f"asked for {', '.join(lacking)}, ran on {', '.join(measurement.providers)}",
            "install the ONNX Runtime that the board's vendor builds; the one of PyPI is for the CPU",
        )


def _unsteady(measurement: Measurement, latency: Latency) -> Iterator[Finding]:
    """What the samples themselves tell."""
    if latency.stdev_ns >= MAX_SPREAD * latency.mean_ns:
        spread = format_share(latency.stdev_ns / latency.mean_ns)
        yield Finding(
            f"the standard deviation is {spread} of the mean", "quiet the device, or measure longer"
        )
    latencies = np.asarray(measurement.latencies_ns, np.float64)
    middle = float(np.median(latencies))
    if measurement.clock_resolution_ns >= 0.01 * middle:
        times = middle / measurement.clock_resolution_ns
        yield Finding(
            f"one inference takes only {times:.3g} times what lies between two readings of the clock, "
            f"{format_ns(measurement.clock_resolution_ns)}",
            "read nothing into small differences: part of each figure is the clock's own",
        )
    change, chance = drift(latencies)
    if abs(change) >= MAX_DRIFT and chance < 0.01:
        word = "slower" if change > 0 else "faster"
        yield Finding(
            f"the last third is {format_share(abs(change))} {word} than the first",
            "warm up longer, or cool the device",
        )
    modes = bimodality(latencies)
    if modes and modes[1] - modes[0] >= MAX_DRIFT * middle:
        yield Finding(
            f"two clusters, around {format_ns(modes[0])} and {format_ns(modes[1])}",
            "pin the threads and the clock; big and little cores or two clock rates mix",
        )


def _disturbed(measurement: Measurement) -> Iterator[Finding]:
    """What the device's state tells."""
    window = measurement.window
    if window is None:
        return
    for series in measurement.series_named("clock"):
        inside = [
            v
            for t, v in zip(series.t_ns, series.values, strict=True)
            if window.start_ns <= t <= window.end_ns
        ]
        if inside and max(inside) - min(inside) >= MAX_CLOCK_CHANGE * max(inside):
            low, high = min(inside) / 1e6, max(inside) / 1e6
            yield Finding(
                f"the clock moved: {series.name.partition(':')[2]} {low:.2f} to {high:.2f} GHz", _PIN_CLOCK
            )
    loose = sorted({g for g in measurement.governors.values() if g and g != "performance"})
    if loose:
        yield Finding(f"the CPU frequency governor is {', '.join(loose)}, not performance", _PIN_CLOCK)
    if measurement.cores and measurement.load_average > measurement.cores:
        load = f"{measurement.load_average:.1f} on {measurement.cores} cores"
        yield Finding(f"the load average was {load} before the start", "stop what else runs on the device")
    switches_hz = measurement.involuntary_switches / max(window.duration_ns / 1e9, 1e-9)
    if switches_hz > MAX_SWITCHES_HZ or starved(measurement):
        share = core_share(measurement)
        cores = "" if share is None else f", {format_share(share)} of a core"
        yield Finding(
            f"other load: {switches_hz:.0f} involuntary switches a second{cores}",
            "stop what else runs on the device",
        )
    if measurement.cores and measurement.threads > measurement.cores:
        yield Finding(
            f"more threads than cores: {measurement.threads} on {measurement.cores}",
            "threads that share a core wait for each other; ask for no more than there are cores",
        )


_PIN_CLOCK = "fix it: `cpupower frequency-set -g performance`, on a Jetson also `jetson_clocks`"

_OUTCOME_ADVICE = {
    "bad-request": "report it: host and agent disagree",
    "file-missing": "push the bundle again",
    "runtime-missing": "install the runtime on the device",
    "runtime-too-old": "upgrade the runtime on the device, or take the other artifact",
    "python-error": "read the traceback in the run's detail",
    "crashed": "try another version of the runtime, or the other artifact",
    "out-of-memory": "free memory, use fewer threads, or make the model smaller",
    "timeout": "allow more time, or make the model smaller",
    "disk-full": "free space on the device",
}
