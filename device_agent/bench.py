"""Measures a model inside the child process."""

import array
import gc
import os
import random
import resource
from typing import Any, Callable, List, NamedTuple, Tuple

from device_agent.clock import now_ns, read_clock
from device_agent.machine import Machine
from device_agent.memory import peak_resident_bytes, reset_peak, resident_bytes
from device_agent.protocol import (
    CHUNK,
    Bench,
    ChildMemory,
    Event,
    Latencies,
    Measurement,
    Plan,
    Power,
    Progress,
    Window,
)
from device_agent.runtimes import Session, load
from device_agent.samples import artifact_path, read_inputs

_BEAT_NS = 500000000
_WITHOUT_POWER = Power("none", "none", "", (), None, 0, "")

Emit = Callable[[Event], None]


def bench(request: Bench, emit: Emit) -> None:
    """Loads, warms up and measures; emits Progress, Latencies and one Measurement.

    The power source and the throttle readings of the Measurement are left to the agent, which
    watches from outside.

    Raises:
        Exception: Whatever the files and the runtime raise; `failures.failure_of` sorts it.
    """
    loaded = _load(request.plan, emit)
    session = loaded.session
    first_ns = _time_once(session, loaded.prepared[0])
    random.Random(request.seed).shuffle(loaded.prepared)  # noqa: S311  an order, not a secret
    warmup_runs = _warm_up(session, loaded.prepared, request, emit)
    # Read before the timed runs, whose growing list of latencies is not the model's memory.
    memory = loaded.memory._replace(peak_bytes=_peak_bytes())
    timed = _time_runs(session, loaded.prepared, request, emit)
    _emit_latencies(timed.latencies_ns, emit)
    emit(
        Measurement(
            load_ns=loaded.load_ns,
            import_ns=loaded.import_ns,
            first_inference_ns=first_ns,
            warmup_runs=warmup_runs,
            runs=len(timed.latencies_ns),
            window=timed.window,
            timed=session.timed,
            clock=read_clock(),
            memory=memory,
            cpu_ns=timed.cpu_ns,
            involuntary_switches=timed.involuntary_switches,
            power=_WITHOUT_POWER,
            throttle_before=(),
            throttle_after=(),
            runtime_version=loaded.runtime_version,
            providers=session.providers,
            threads=request.plan.threads,
            affinity=_affinity(),
        )
    )


class _Loaded(NamedTuple):
    session: Session
    prepared: List[Any]
    runtime_version: str
    import_ns: int
    load_ns: int
    memory: ChildMemory


def _load(plan: Plan, emit: Emit) -> _Loaded:
    """Reads the inputs, imports the runtime and loads the model, each timed and weighed by itself."""
    emit(Progress("load", 0))
    machine = Machine()
    path = artifact_path(plan)
    tensors = [read_inputs(plan, index) for index in range(len(plan.samples))]
    start_bytes = resident_bytes(machine)
    started_ns = now_ns()
    runtime = load(plan.runtime)
    imported_ns = now_ns()
    runtime_bytes = resident_bytes(machine)
    source = "VmHWM, reset before loading" if reset_peak(machine) else "VmHWM"
    opening_ns = now_ns()
    session = runtime.open(path, plan)
    opened_ns = now_ns()
    if not peak_resident_bytes(machine):
        source = "ru_maxrss"
    return _Loaded(
        session=session,
        prepared=[session.prepare(each) for each in tensors],
        runtime_version=runtime.version,
        import_ns=imported_ns - started_ns,
        load_ns=opened_ns - opening_ns,
        memory=ChildMemory(start_bytes, runtime_bytes, resident_bytes(machine), 0, source),
    )


class _Timed(NamedTuple):
    latencies_ns: Any
    window: Window
    cpu_ns: int
    involuntary_switches: int


def _time_once(session: Session, prepared: Any) -> int:
    session.feed(prepared)
    start_ns = now_ns()
    session.invoke()
    return now_ns() - start_ns


def _warm_up(session: Session, prepared: List[Any], request: Bench, emit: Emit) -> int:
    start_ns = beat_ns = now_ns()
    runs = 0
    while runs < request.warmup_runs or now_ns() - start_ns < request.warmup_ns:
        _time_once(session, prepared[runs % len(prepared)])
        runs += 1
        if now_ns() - beat_ns >= _BEAT_NS:
            beat_ns = now_ns()
            emit(Progress("warm-up", runs))
    return runs


def _time_runs(session: Session, prepared: List[Any], request: Bench, emit: Emit) -> _Timed:
    """The timed loop: nothing is collected, written or allocated between the two clock readings."""
    latencies_ns = array.array("q")
    samples = len(prepared)
    emit(Progress("run", 0))
    gc.collect()
    gc.disable()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    window_start_ns = beat_ns = end_ns = now_ns()
    runs = 0
    while True:
        session.feed(prepared[runs % samples])
        start_ns = now_ns()
        session.invoke()
        end_ns = now_ns()
        latencies_ns.append(end_ns - start_ns)
        runs += 1
        if runs == request.max_runs:
            break
        if runs >= request.min_runs and end_ns - window_start_ns >= request.min_duration_ns:
            break
        if end_ns - beat_ns >= _BEAT_NS:
            beat_ns = end_ns
            emit(Progress("run", runs, _expected_runs(runs, end_ns - window_start_ns, request)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    gc.enable()
    cpu_s = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return _Timed(
        latencies_ns, Window(window_start_ns, end_ns), int(cpu_s * 1e9), after.ru_nivcsw - usage.ru_nivcsw
    )


def _expected_runs(runs: int, elapsed_ns: int, request: Bench) -> int:
    """How many there will be, at the pace so far."""
    expected = max(runs, request.min_runs, runs * request.min_duration_ns // elapsed_ns)
    return min(expected, request.max_runs) if request.max_runs else expected


def _emit_latencies(latencies_ns: Any, emit: Emit) -> None:
    for first in range(0, len(latencies_ns), CHUNK):
        emit(Latencies(first, tuple(latencies_ns[first : first + CHUNK])))


def _peak_bytes() -> int:
    return peak_resident_bytes(Machine()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _affinity() -> Tuple[int, ...]:
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        return ()
