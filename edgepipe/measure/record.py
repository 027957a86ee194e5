"""What was measured on a device, raw: the record that a run keeps, built from what the agent said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from device_agent import protocol
from edgepipe.errors import AgentFailed

Kind = Literal["board", "embedded", "emulated"]
"""Where a figure comes from: a real board; a process on the host, at the host's speed; an emulated CPU."""

Outcome = Literal[
    "ok",
    "bad-request",
    "file-missing",
    "runtime-missing",
    "runtime-too-old",
    "python-error",
    "crashed",
    "out-of-memory",
    "timeout",
    "disk-full",
]


class Window(msgspec.Struct, frozen=True):
    """A span of the device's monotonic clock."""

    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        """Its length."""
        return self.end_ns - self.start_ns


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Readings over time, on the same clock as the window.

    Attributes:
        name: "power", "clock:policy0", "temperature:cpu-thermal".
        unit: "mw", "uj", "khz" or "mc" (thousandths of a degree Celsius).
        t_ns: When each was read.
        values: What was read.
    """

    name: str
    unit: str
    t_ns: tuple[int, ...]
    values: tuple[float, ...]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A throttle flag or counter.

    Attributes:
        source: The reader: "rpi", "jetson-oc", ...
        name: What is read: "under-voltage-now".
        value: The value.
        unit: "count", "flag", "level" (of cooling), "khz", "mc" or "us".
    """

    source: str
    name: str
    value: int
    unit: str


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of the measuring process; 0 where the system does not tell.

    Attributes:
        start_bytes: Before the runtime was imported.
        runtime_bytes: With the runtime, before the model was loaded.
        loaded_bytes: With the model, before its first inference.
        peak_bytes: The most, from loading to the last inference.
        source: Where the peak comes from.
    """

    start_bytes: int
    runtime_bytes: int
    loaded_bytes: int
    peak_bytes: int
    source: str

    @property
    def model_bytes(self) -> int | None:
        """What the model cost beyond the runtime: peak minus baseline; None where either is unknown."""
        if not self.peak_bytes or not self.runtime_bytes:
            return None
        return max(0, self.peak_bytes - self.runtime_bytes)


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """The power source of a measurement; its samples are the series "power".

    Attributes:
        source: Name of the agent's reader, or "none".
        kind: "sampled" (mw), "counter" (uj, counting up) or "none".
        coverage: What the figure includes: "soc", "board", "wall", or "".
        rails: The rails that are summed.
        idle: Window before the measuring process was started; None without one.
        wrap_uj: The counter restarts from 0 past this; 0 for a sampled source.
        note: Why there is none, or what to know of it.
    """

    source: str = "none"
    kind: str = "none"
    coverage: str = ""
    rails: tuple[str, ...] = ()
    idle: Window | None = None
    wrap_uj: int = 0
    note: str = ""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact on one device, raw. A failed one has an outcome, a message and no figures.

    Attributes:
        kind: What was measured on; it brands every figure.
        emulation: What emulates the device, for people; "" for a board.
        outcome: "ok", or how it failed.
        message: What failed, in a sentence; "" when ok.
        detail: Signal, traceback or last log lines of the failure.
        runtime: "onnxruntime", "litert" or "tflite-runtime".
        runtime_version: Its version there; "" if it failed before that was known.
        providers: What it ran on; empty if it failed before that was known.
        providers_asked: Execution providers asked for, the preferred one first; empty for a runtime without.
        threads: Inference threads asked for.
        affinity: Cores that the process was allowed to use.
        latencies_ns: Every timed run, in order.
        timed: What is inside one latency, for people.
        clock: The clock that latencies were read from.
        clock_resolution_ns: Least time between two readings of it: its step, or what a reading costs.
        window: From the start of the first timed run to the end of the last.
        import_ns: Import of the runtime.
        load_ns: From the file to a model ready to run.
        first_ns: The first inference.
        warmup_runs: Runs discarded before the window.
        memory: Of the measuring process.
        cpu_ns: Its CPU time within the window, all threads.
        involuntary_switches: How often another process took a core from it in the window.
        power: The power source.
        series: Power, clock and temperature over time.
        throttle_before: Throttle flags and counters before.
        throttle_after: The same after.
        governors: CPU frequency governor by policy.
        load_average: Runnable processes when the device was probed.
        cores: Cores of the device.
    """

    kind: Kind
    emulation: str = ""
    outcome: Outcome = "ok"
    message: str = ""
    detail: str = ""
    runtime: str
    runtime_version: str = ""
    providers: tuple[str, ...] = ()
    providers_asked: tuple[str, ...] = ()
    threads: int
    affinity: tuple[int, ...] = ()
    latencies_ns: tuple[int, ...] = ()
    timed: str = ""
    clock: str = ""
    clock_resolution_ns: float = 0.0
    window: Window | None = None
    import_ns: int | None = None
    load_ns: int | None = None
    first_ns: int | None = None
    warmup_runs: int = 0
    memory: Memory | None = None
    cpu_ns: int = 0
    involuntary_switches: int = 0
    power: Power = Power()
    series: tuple[Series, ...] = ()
    throttle_before: tuple[Reading, ...] = ()
    throttle_after: tuple[Reading, ...] = ()
    governors: dict[str, str] = {}
    load_average: float = 0.0
    cores: int = 0

    def series_named(self, prefix: str) -> tuple[Series, ...]:
        """The series whose name is `prefix`, or starts with it and a colon."""
        return tuple(s for s in self.series if s.name == prefix or s.name.startswith(f"{prefix}:"))


def from_protocol(
    events: Iterable[protocol.Event], plan: protocol.Plan, facts: protocol.Facts, *, kind: Kind
) -> Measurement:
    """Builds the record from the events that answered a `protocol.Bench`.

    Args:
        events: Latencies, Samples and a Measurement, or Failed; others are ignored.
        plan: What the agent was asked to run.
        facts: What the device said of itself.
        kind: What the device is; a "board" that turns out to be emulated is recorded as "emulated".

    Raises:
        AgentFailed: The events hold no outcome, or latencies are missing.
    """
    latencies: list[int] = []
    series: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    measured: protocol.Measurement | None = None
    failed: protocol.Failed | None = None
    for event in events:
        if isinstance(event, protocol.Latencies):
            if event.first != len(latencies):
                raise AgentFailed(
                    "the agent's latencies have a gap", got=f"{len(latencies)}, then {event.first}"
                )
            latencies += event.values_ns
        elif isinstance(event, protocol.Samples):
            times, values = series.setdefault((event.series, event.unit), ([], []))
            times += event.t_ns
            values += event.values
        elif isinstance(event, protocol.Measurement):
            measured = event
        elif isinstance(event, protocol.Failed):
            failed = event
    base = _conditions(plan, facts, kind)
    if failed is not None:
        return msgspec.structs.replace(
            base, outcome=failed.kind, message=failed.message, detail=failed.detail
        )
    if measured is None or measured.runs != len(latencies):
        raise AgentFailed(
            "the agent's measurement is incomplete",
            got=f"{len(latencies)} latencies of {measured.runs if measured else 'an unknown number'}",
            remedy="measure again; if it stays, report it with the agent's log",
        )
    joined = tuple(
        Series(name=name, unit=unit, t_ns=tuple(times), values=tuple(values))
        for (name, unit), (times, values) in series.items()
    )
    return _with_figures(base, measured, tuple(latencies), joined)


def _conditions(plan: protocol.Plan, facts: protocol.Facts, kind: Kind) -> Measurement:
    return Measurement(
        kind="emulated" if facts.emulated and kind == "board" else kind,
        emulation=facts.emulation,
        runtime=plan.runtime,
        threads=plan.threads,
        providers_asked=plan.providers,
        governors={policy.name: policy.governor for policy in facts.cpu.policies},
        load_average=facts.load_average,
        cores=facts.cpu.cores,
    )


def _with_figures(
    base: Measurement, said: protocol.Measurement, latencies: tuple[int, ...], series: tuple[Series, ...]
) -> Measurement:
    idle = said.power.idle
    return msgspec.structs.replace(
        base,
        runtime_version=said.runtime_version,
        providers=said.providers,
        threads=said.threads,
        affinity=said.affinity,
        latencies_ns=latencies,
        timed=said.timed,
        clock=said.clock.name,
        clock_resolution_ns=said.clock.resolution_ns,
        window=Window(*said.window),
        import_ns=said.import_ns,
        load_ns=said.load_ns,
        first_ns=said.first_inference_ns,
        warmup_runs=said.warmup_runs,
        memory=Memory(**said.memory._asdict()),
        cpu_ns=said.cpu_ns,
        involuntary_switches=said.involuntary_switches,
        power=Power(**{**said.power._asdict(), "idle": Window(*idle) if idle else None}),
        series=series,
        throttle_before=tuple(Reading(**reading._asdict()) for reading in said.throttle_before),
        throttle_after=tuple(Reading(**reading._asdict()) for reading in said.throttle_after),
    )
