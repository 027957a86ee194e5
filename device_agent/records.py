"""The records that messages are made of; `device_agent.protocol` names them all.

Quantities carry their unit in their name. Times named ``t_ns`` and windows are readings of the
device's CLOCK_MONOTONIC, the same clock in every process of the device.
"""

from typing import NamedTuple, Optional, Tuple

RUNTIMES = ("onnxruntime", "litert", "tflite-runtime")
POWER_SOURCES = ("rapl", "ina3221", "rpi-pmic", "hwmon-ina", "battery")
THROTTLE_SOURCES = ("rpi", "jetson-oc", "thermal")


class Port(NamedTuple):
    """An input or output of the artifact.

    Attributes:
        name: The tensor's name in the artifact.
        dtype: NumPy's name of its type: "int8", "uint8", "int32", "int64", "float16", "float32".
        shape: Its dimensions.
        scale: Step of an integer port, or of a float port whose values lie on a grid; else None.
        zero_point: The integer that stands for 0.0.
    """

    name: str
    dtype: str
    shape: Tuple[int, ...]
    scale: Optional[float] = None
    zero_point: int = 0


class Sample(NamedTuple):
    """A golden sample: files below the plan's folder, raw little-endian tensors in C order.

    Attributes:
        inputs: One file for each input port.
        outputs: One file for each output port: what the host's runtime computed.
    """

    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]


class Plan(NamedTuple):
    """What to run and how.

    Attributes:
        folder: Folder of the bundle: absolute, or relative to the agent's root.
        artifact: The model file, below the folder.
        runtime: One of RUNTIMES.
        threads: Threads inside one operator.
        inputs: Input ports in the order of the runtime.
        outputs: Output ports likewise.
        samples: At least one.
        providers: ONNX Runtime's execution providers in order of preference; empty for its CPU.
    """

    folder: str
    artifact: str
    runtime: str
    threads: int
    inputs: Tuple[Port, ...]
    outputs: Tuple[Port, ...]
    samples: Tuple[Sample, ...]
    providers: Tuple[str, ...] = ()

    def problem(self) -> str:
        """What is wrong with the values, or ""."""
        if self.runtime not in RUNTIMES:
            return "unknown runtime {!r}; known: {}".format(self.runtime, ", ".join(RUNTIMES))
        if not self.samples:
            return "at least one sample is needed"
        if self.threads < 1:
            return "at least one thread is needed"
        if any(len(sample.inputs) != len(self.inputs) for sample in self.samples):
            return "every sample needs one file for each input port"
        if any(len(sample.outputs) != len(self.outputs) for sample in self.samples):
            return "every sample needs one file for each output port"
        return ""


class Window(NamedTuple):
    """A span of the device's monotonic clock."""

    start_ns: int
    end_ns: int


class Clock(NamedTuple):
    """The clock that latencies were read from.

    Attributes:
        name: The call: "time.perf_counter_ns".
        resolution_ns: The least time that two readings in a row lay apart: the clock's step, or what
            a reading costs, the greater. Nothing shorter can be timed.
    """

    name: str
    resolution_ns: float


class Reading(NamedTuple):
    """One value of a sensor or counter.

    Attributes:
        source: The reader: one of THROTTLE_SOURCES, "cpufreq" or "temperature".
        name: What is read there: "under-voltage-now", "oc1", "policy0", "cpu-thermal".
        value: The value.
        unit: "count" (since boot), "flag" (0 or 1), "level" (of a cooling device, 0 for none), "khz"
            or "mc" (thousandths of a degree Celsius).
    """

    source: str
    name: str
    value: int
    unit: str


class ChildMemory(NamedTuple):
    """Resident memory of the measuring process, in bytes; 0 where the system does not tell.

    Attributes:
        start_bytes: Before the runtime was imported.
        runtime_bytes: With the runtime imported, before the model was loaded.
        loaded_bytes: With the model loaded, before its first inference.
        peak_bytes: The most from the start of loading to the end of the warm-up; the timed runs are
            left out, as the agent's own list of latencies grows in them.
        source: Where the peak comes from: "VmHWM, reset before loading", "VmHWM", "ru_maxrss".
    """

    start_bytes: int
    runtime_bytes: int
    loaded_bytes: int
    peak_bytes: int
    source: str


class Power(NamedTuple):
    """The power source of a measurement; its samples come as the series "power".

    Attributes:
        source: Name of the reader, or "none".
        kind: "sampled" (values in mw), "counter" (values in uj, counting up), or "none".
        coverage: What the figure includes: "soc", "board", "wall", or "" without a source.
        rails: The rails that are summed.
        idle: Window measured before the child was started; None without a source.
        wrap_uj: Where the device's counter restarts from 0 (the agent has undone that in the samples,
            which never go down); 0 for a sampled source.
        note: Why there is none, or what the user should know of it.
    """

    source: str
    kind: str
    coverage: str
    rails: Tuple[str, ...]
    idle: Optional[Window]
    wrap_uj: int
    note: str


class OutputDifference(NamedTuple):
    """How one output port differs from what the host expects, over all samples.

    Attributes:
        name: The port.
        elements: Elements compared, all samples together.
        differing: Elements that are not bit-equal.
        worst_steps: Greatest difference in steps of the port's scale; None for a port without one.
        worst_absolute: Greatest absolute difference, in the port's own numbers.
        worst_relative: The same over the range (max - min) of the expected output.
        worst_sample: Index of the sample with the greatest difference.
        argmax_equal: Samples whose greatest element is at the same place.
        not_finite: Elements that are NaN or infinite where the host's are not.
    """

    name: str
    elements: int
    differing: int
    worst_steps: Optional[float]
    worst_absolute: float
    worst_relative: float
    worst_sample: int
    argmax_equal: int
    not_finite: int


class FileDigest(NamedTuple):
    """A file's size and sha256 (hex); both None where there is no such file."""

    path: str
    size_bytes: Optional[int]
    sha256: Optional[str]


class CpuPolicy(NamedTuple):
    """A group of cores that share a clock; kHz, 0 where unknown."""

    name: str
    cores: str
    governor: str
    current_khz: int
    min_khz: int
    max_khz: int


class CpuFacts(NamedTuple):
    """The processor.

    Attributes:
        model: "Cortex-A72", "13th Gen Intel(R) Core(TM) i5-1340P"; kinds of core joined by " + ".
        architecture: What programs are built for: "aarch64", "armv7l", "x86_64".
        features: What every core can do, in the kernel's words.
        cores: Cores that the agent may use.
        cores_online: Cores of the board.
        policies: Groups of cores that share a clock.
    """

    model: str
    architecture: str
    features: Tuple[str, ...]
    cores: int
    cores_online: int
    policies: Tuple[CpuPolicy, ...]


class MemoryFacts(NamedTuple):
    """Main memory; `limit_bytes` is the control group's limit, None without one."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    limit_bytes: Optional[int]


class SystemFacts(NamedTuple):
    """The operating system: "Debian GNU/Linux 12 (bookworm)", "6.6.31+rpt-rpi-v8", "glibc 2.36"."""

    name: str
    kernel: str
    libc: str


class PythonFacts(NamedTuple):
    """The interpreter that runs the agent; `bits` is 32 or 64."""

    version: str
    implementation: str
    executable: str
    bits: int


class RuntimeFacts(NamedTuple):
    """An inference runtime that is installed.

    Attributes:
        name: One of RUNTIMES.
        package: The distribution found.
        version: Its version, "" where the files do not tell.
        imports: Whether importing works; None where that was not tried.
        note: The error of the import, or "".
    """

    name: str
    package: str
    version: str
    imports: Optional[bool]
    note: str


class SensorFacts(NamedTuple):
    """A power source that the agent knows: `available` only where it was read just now."""

    source: str
    available: bool
    coverage: str
    rails: Tuple[str, ...]
    note: str


class Facts(NamedTuple):
    """What the device is and has.

    Attributes:
        board: The board's model, "" where nothing tells.
        board_source: The file that told.
        cpu: The processor.
        memory: Main memory.
        system: The operating system.
        python: The interpreter.
        numpy_version: NumPy's version, None where it is missing.
        runtimes: The inference runtimes that are installed.
        sensors: Every power source that the agent knows.
        throttle: Throttle flags and counters as they stand.
        temperatures: Thermal zones as they stand.
        power_mode: The board's power mode, as nvpmodel names it; "" where there is none.
        firmware: Vendor release: "L4T R36.4.0", the Raspberry Pi bootloader's date; "" if unknown.
        disk_free_bytes: Room below the agent's root.
        load_average: Runnable processes over the last minute.
        emulated: True where this is not the hardware that it looks like, or not a device at all.
        emulation: What emulates it and how that was seen, "" for real hardware.
        container: "docker", "podman", "lxc", ... or "".
        hypervisor: The virtual machine that this runs in, "" for none seen.
    """

    board: str
    board_source: str
    cpu: CpuFacts
    memory: MemoryFacts
    system: SystemFacts
    python: PythonFacts
    numpy_version: Optional[str]
    runtimes: Tuple[RuntimeFacts, ...]
    sensors: Tuple[SensorFacts, ...]
    throttle: Tuple[Reading, ...]
    temperatures: Tuple[Reading, ...]
    power_mode: str
    firmware: str
    disk_free_bytes: int
    load_average: float
    emulated: bool
    emulation: str
    container: str
    hypervisor: str


class Measurement(NamedTuple):
    """Everything about a bench but its series, which come before it.

    Attributes:
        load_ns: From the file to a runtime ready to run; the import of the runtime is not in it.
        import_ns: The import of the runtime.
        first_inference_ns: The first inference after loading.
        warmup_runs: Warm-up runs made, the first inference not counted.
        runs: Timed runs.
        window: From the start of the first timed run to the end of the last.
        timed: What is inside one latency, for people.
        clock: What it was read from.
        memory: Of the child.
        cpu_ns: CPU time of the child within the window, all threads.
        involuntary_switches: Times that another process took a core from the child in the window.
        power: The power source.
        throttle_before: Throttle flags and counters before the child was started.
        throttle_after: The same after it ended.
        runtime_version: Version of the runtime.
        providers: What it ran on.
        threads: Threads asked for.
        affinity: Cores that the child was allowed to use.
    """

    load_ns: int
    import_ns: int
    first_inference_ns: int
    warmup_runs: int
    runs: int
    window: Window
    timed: str
    clock: Clock
    memory: ChildMemory
    cpu_ns: int
    involuntary_switches: int
    power: Power
    throttle_before: Tuple[Reading, ...]
    throttle_after: Tuple[Reading, ...]
    runtime_version: str
    providers: Tuple[str, ...]
    threads: int
    affinity: Tuple[int, ...]
