"""What host and agent say to each other: one JSON object a line, the one schema of both sides.

The host writes requests to the agent's standard input, the agent writes events to its standard
output. A line is ``{"v": 1, "type": "probe", ...fields}``. The agent answers requests one after the
other: any number of events, the last of which is Done or Failed. Decoding is strict: an unknown
version, type or field, a missing field and a value of the wrong type are all a ProtocolError.

Quantities carry their unit in their name. Times named ``t_ns`` and windows are readings of the
device's CLOCK_MONOTONIC, the same clock in every process of the device.
"""

import json
from typing import Any, Dict, NamedTuple, Optional, Tuple, Type, Union

from device_agent.codec import ProtocolError, build, check, parse, plain
from device_agent.records import (
    POWER_SOURCES,
    RUNTIMES,
    THROTTLE_SOURCES,
    ChildMemory,
    Clock,
    CpuFacts,
    CpuPolicy,
    Facts,
    FileDigest,
    Measurement,
    MemoryFacts,
    OutputDifference,
    Plan,
    Port,
    Power,
    PythonFacts,
    Reading,
    RuntimeFacts,
    Sample,
    SensorFacts,
    SystemFacts,
    Window,
)

VERSION = 1
MAX_LINE_BYTES = 1 << 20
"""No line is longer, newline included; long series are sent in chunks."""

CHUNK = 2000
"""Values in one Latencies or Samples event."""

FAILURES = (
    "bad-request",  # the line was not of the protocol, or asked for something impossible
    "file-missing",  # a file that the request names is not there
    "runtime-missing",  # the runtime is not installed, or cannot be imported
    "runtime-too-old",  # the runtime does not know an op version of the model
    "python-error",  # an exception in the runtime or the agent
    "crashed",  # the child process died of a signal
    "out-of-memory",  # the child process was killed for want of memory, or could not allocate
    "timeout",  # the child process did not finish in the time allowed
    "disk-full",  # the device's file system is full
)
"""Every `Failed.kind`."""


__all__ = [
    "CHUNK",
    "EVENTS",
    "FAILURES",
    "MAX_LINE_BYTES",
    "POWER_SOURCES",
    "REQUESTS",
    "RUNTIMES",
    "THROTTLE_SOURCES",
    "VERSION",
    "Bench",
    "ChildMemory",
    "Clock",
    "CpuFacts",
    "CpuPolicy",
    "Digest",
    "Digests",
    "Done",
    "Event",
    "Facts",
    "Failed",
    "FileDigest",
    "FreeSpace",
    "Hello",
    "Latencies",
    "Measurement",
    "MemoryFacts",
    "OutputDifference",
    "Plan",
    "Port",
    "Power",
    "Probe",
    "Progress",
    "ProtocolError",
    "PythonFacts",
    "Quit",
    "Reading",
    "Remove",
    "Removed",
    "Request",
    "RuntimeFacts",
    "Sample",
    "Samples",
    "SensorFacts",
    "Space",
    "SystemFacts",
    "Verification",
    "Verify",
    "Welcome",
    "Window",
    "decode_event",
    "decode_request",
    "encode",
]


# --- requests ------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """Asks who is there. Answered by Welcome."""


class Probe(NamedTuple):
    """Asks what the device is and has. Answered by Facts.

    Attributes:
        import_runtimes: Also import each runtime in a child process to see whether that works.
    """

    import_runtimes: bool = False


class Verify(NamedTuple):
    """Runs the golden samples in a child process and compares. Answered by Verification.

    Attributes:
        plan: What to run.
        tolerance_steps: Greatest difference allowed on ports with a scale, in steps.
        tolerance_relative: Greatest difference allowed on other ports, over the output's range.
        timeout_ns: Time for all of it.
    """

    plan: Plan
    tolerance_steps: float = 1.0
    tolerance_relative: float = 1e-3
    timeout_ns: int = 300000000000


class Bench(NamedTuple):
    """Measures in a fresh child process. Answered by Latencies, Samples and one Measurement.

    Attributes:
        plan: What to run; its samples are fed in turn, in an order drawn with `seed`.
        warmup_runs: Least number of warm-up runs, after the first inference ...
        warmup_ns: ... and least duration of them: warm-up ends when both are reached.
        min_runs: Least number of timed runs ...
        min_duration_ns: ... and least duration of them.
        max_runs: Stop here, whatever the duration; 0 for no such limit.
        seed: Of the order of samples.
        power_sources: Names of POWER_SOURCES to try, in order; the first that reads is used.
        idle_ns: How long to sample power before the child starts; used only with a power source.
        timeout_ns: Time for all of the child's work.
    """

    plan: Plan
    warmup_runs: int = 3
    warmup_ns: int = 500000000
    min_runs: int = 64
    min_duration_ns: int = 3000000000
    max_runs: int = 0
    seed: int = 0
    power_sources: Tuple[str, ...] = ()
    idle_ns: int = 2000000000
    timeout_ns: int = 600000000000


class Digest(NamedTuple):
    """Asks for size and sha256 of files. Answered by Digests."""

    paths: Tuple[str, ...]


class Space(NamedTuple):
    """Asks for the room on the file system of `path`. Answered by FreeSpace."""

    path: str = "."


class Remove(NamedTuple):
    """Removes a file or folder below the agent's root. Answered by Removed."""

    path: str


class Quit(NamedTuple):
    """Ends the session in order: what was asked before is still answered.

    Without it, the end of standard input counts as a lost host and stops the running measurement.
    """


# --- events --------------------------------------------------------------------------------------


class Welcome(NamedTuple):
    """Who is there.

    Attributes:
        python: Version of the interpreter: "3.9.2".
        executable: Its path.
        pid: The agent's process.
        root: Folder that relative paths start from, and the only one where Remove works.
    """

    python: str
    executable: str
    pid: int
    root: str


class Progress(NamedTuple):
    """A sign of life, at least every second or so while a child works.

    Attributes:
        stage: "probe", "idle", "load", "warm-up", "run", "verify".
        done: Units finished: runs, samples, or nanoseconds of an idle window.
        total: Units in all, None where unknown; for runs an estimate by the pace so far.
    """

    stage: str
    done: int
    total: Optional[int] = None


class Verification(NamedTuple):
    """What the comparison found.

    Attributes:
        ok: True where every output is within the tolerance and finite.
        samples: Samples compared.
        outputs: One for each output port.
        runtime_version: Version of the runtime that computed.
        providers: What it ran on: ["CPUExecutionProvider"], ["XNNPACK"].
        digests: sha256 of each raw output that was computed: for each sample, one for each port.
    """

    ok: bool
    samples: int
    outputs: Tuple[OutputDifference, ...]
    runtime_version: str
    providers: Tuple[str, ...]
    digests: Tuple[Tuple[str, ...], ...] = ()


class Latencies(NamedTuple):
    """A chunk of raw latencies, in the order of the runs; `first` is the index of its first run."""

    first: int
    values_ns: Tuple[int, ...]


class Samples(NamedTuple):
    """A chunk of a series taken while the child ran (and, for power, in the idle window).

    Attributes:
        series: "power", "clock:policy0", "temperature:cpu-thermal".
        unit: "mw", "uj", "khz" or "mc".
        t_ns: When each was read.
        values: What was read.
    """

    series: str
    unit: str
    t_ns: Tuple[int, ...]
    values: Tuple[float, ...]

    def problem(self) -> str:
        """What is wrong with the values, or ""."""
        return "" if len(self.t_ns) == len(self.values) else "as many times as values are needed"


class Digests(NamedTuple):
    """One for each path asked for, in that order."""

    files: Tuple[FileDigest, ...]


class FreeSpace(NamedTuple):
    """Room that the agent's user may fill, and the size of the file system."""

    path: str
    free_bytes: int
    total_bytes: int


class Removed(NamedTuple):
    """The path is gone; `existed` tells whether it was there."""

    path: str
    existed: bool


class Failed(NamedTuple):
    """The request could not be carried out. Ends the answer; the agent goes on with the next.

    Attributes:
        kind: One of FAILURES.
        message: One sentence for the user.
        detail: Traceback, last lines of the child's log, or the signal: for the curious.
    """

    kind: str
    message: str
    detail: str = ""

    def problem(self) -> str:
        """What is wrong with the values, or ""."""
        return "" if self.kind in FAILURES else "unknown kind {!r}".format(self.kind)


class Done(NamedTuple):
    """The request was carried out. Ends the answer."""


Request = Union[Hello, Probe, Verify, Bench, Digest, Space, Remove, Quit]
Event = Union[
    Welcome,
    Facts,
    Progress,
    Verification,
    Latencies,
    Samples,
    Measurement,
    Digests,
    FreeSpace,
    Removed,
    Failed,
    Done,
]

REQUESTS: Dict[str, Type[Any]] = {
    "hello": Hello,
    "probe": Probe,
    "verify": Verify,
    "bench": Bench,
    "digest": Digest,
    "space": Space,
    "remove": Remove,
    "quit": Quit,
}

EVENTS: Dict[str, Type[Any]] = {
    "welcome": Welcome,
    "facts": Facts,
    "progress": Progress,
    "verification": Verification,
    "latencies": Latencies,
    "samples": Samples,
    "measurement": Measurement,
    "digests": Digests,
    "free-space": FreeSpace,
    "removed": Removed,
    "failed": Failed,
    "done": Done,
}

_TAGS = {cls: tag for table in (REQUESTS, EVENTS) for tag, cls in table.items()}


# --- lines ---------------------------------------------------------------------------------------


def encode(message: Union[Request, Event]) -> str:
    """Writes a message as one line of ASCII JSON, without the newline.

    Raises:
        ProtocolError: It is no message, a field has the wrong type, a number is not finite, or the
            line would be longer than MAX_LINE_BYTES.
    """
    tag = _TAGS.get(type(message))
    if tag is None:
        raise ProtocolError("{} is no message".format(type(message).__name__))
    check(message, type(message), tag)
    fields: Dict[str, Any] = {"v": VERSION, "type": tag}
    fields.update(plain(message))
    try:
        line = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise ProtocolError("{}: {}".format(tag, error)) from None
    if len(line) >= MAX_LINE_BYTES:
        raise ProtocolError("{}: a line of {} bytes is too long".format(tag, len(line)))
    return line


def decode_request(line: Union[str, bytes]) -> Request:
    """Reads a line that the host wrote.

    Raises:
        ProtocolError: It is not a request of this version.
    """
    return _decode(line, REQUESTS)  # type: ignore[no-any-return]


def decode_event(line: Union[str, bytes]) -> Event:
    """Reads a line that the agent wrote.

    Raises:
        ProtocolError: It is not an event of this version.
    """
    return _decode(line, EVENTS)  # type: ignore[no-any-return]


def _decode(line: Union[str, bytes], table: Dict[str, Type[Any]]) -> Any:
    if len(line) >= MAX_LINE_BYTES:
        raise ProtocolError("a line of {} bytes is too long".format(len(line)))
    fields = parse(line)
    version = fields.pop("v", None)
    if isinstance(version, bool) or version != VERSION:
        raise ProtocolError("version {!r} of the protocol; this side speaks {}".format(version, VERSION))
    tag = fields.pop("type", None)
    if not isinstance(tag, str) or tag not in table:
        raise ProtocolError("unknown type {!r}; known: {}".format(tag, ", ".join(table)))
    return build(fields, table[tag], tag)
