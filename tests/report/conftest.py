"""Whole runs as a device would give them, made of seeded samples: every figure in them is made up."""

import msgspec
import numpy as np
import pytest

from edgepipe.bundle import Artifact, Calibration, Port, Step
from edgepipe.data import Dataset
from edgepipe.evaluate import evaluate, wilson
from edgepipe.measure import (
    Measurement,
    Memory,
    OutputDifference,
    Power,
    Reading,
    Series,
    Verification,
    Window,
)
from edgepipe.sources.source import Fidelity
from edgepipe.store import ArtifactResult, DataUse, Run

S = 10**9
START = 10**15


@pytest.fixture
def measure():
    """Builds a measurement around a median; `power_mw` adds a sensor."""

    def build(median_ns, *, runs=900, seed=0, power_mw=None, runtime="litert", **changes):
        rng = np.random.default_rng(seed)
        latencies = (median_ns * rng.lognormal(0, 0.02, runs)).astype(int)
        latencies[rng.integers(0, runs, runs // 60)] = (median_ns * 1.3).__int__()
        window = Window(START, START + max(int(latencies.sum()), 12 * S))
        series = [
            Series(
                name="clock:policy0",
                unit="khz",
                t_ns=tuple(range(START, window.end_ns, S)),
                values=tuple([1_500_000.0] * len(range(START, window.end_ns, S))),
            )
        ]
        power = Power(note="no power sensor was found")
        if power_mw:
            times = np.arange(START - 4 * S, window.end_ns + S, S // 20)
            values = np.where(times < START, 2100.0, power_mw) + rng.normal(0, 30, len(times))
            series.append(
                Series(name="power", unit="mw", t_ns=tuple(times.tolist()), values=tuple(values.tolist()))
            )
            power = Power(
                source="ina3221",
                kind="sampled",
                coverage="board",
                rails=("VDD_IN",),
                idle=Window(START - 3 * S, START - S),
            )
        base = Measurement(
            kind="board",
            runtime=runtime,
            runtime_version="2.3.0" if runtime == "litert" else "1.31.1",
            providers=("XNNPACK",) if runtime == "litert" else ("CPUExecutionProvider",),
            threads=4,
            affinity=(0, 1, 2, 3),
            latencies_ns=tuple(latencies.tolist()),
            timed="the runtime's invoke alone",
            clock="time.perf_counter_ns",
            clock_resolution_ns=1.0,
            window=window,
            import_ns=300_000_000,
            load_ns=42_000_000,
            first_ns=int(median_ns * 2.2),
            warmup_runs=40,
            memory=Memory(
                start_bytes=9 << 20,
                runtime_bytes=48 << 20,
                loaded_bytes=60 << 20,
                peak_bytes=71 << 20,
                source="VmHWM",
            ),
            cpu_ns=window.duration_ns * 4,
            power=power,
            series=tuple(series),
            throttle_before=(Reading(source="rpi", name="throttled-now", value=0, unit="flag"),),
            throttle_after=(Reading(source="rpi", name="throttled-now", value=0, unit="flag"),),
            governors={"policy0": "performance"},
            cores=4,
        )
        return msgspec.structs.replace(base, **changes)

    return build


def _artifact(name, size_bytes):
    precision, _, kind = name.partition(".")
    port = Port(name="x", dtype="float32", shape=(1, 1, 28, 28), permutation=(0, 1, 2, 3))
    return Artifact(
        name=name,
        format=kind,
        precision=precision,
        digest=f"{size_bytes:064x}",
        size_bytes=size_bytes,
        inputs=(port,),
        outputs=(port,),
        op_counts={"CONV_2D": 14, "DEPTHWISE_CONV_2D": 13, "ADD": 10, "FULLY_CONNECTED": 1},
        needs={"litert": "1.0"} if kind == "tflite" else {"onnxruntime": "1.15"},
    )


def _outputs(seed=0, n=1000, classes=10):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)).astype(np.float32)
    scores[np.arange(n), labels] += 4
    return labels, scores


@pytest.fixture
def make_run(measure):
    """Builds a run of four artifacts on a board, unless told otherwise."""

    def build(**changes):
        labels, scores = _outputs()
        x = np.zeros((len(labels), 1, 8, 8), np.float32)
        data = Dataset(x=x, y=labels, digest="da" * 32, source="val.npz")
        calibration = Calibration(source="val.npz", digest="ca" * 32, samples=128, random=False)
        noise = np.random.default_rng(1)
        results = []
        plan = [
            ("float32.onnx", 3_612_004, 0.0, 8.1e6, 6100, "onnxruntime"),
            ("float32.tflite", 3_560_120, 1e-6, 7.4e6, 6000, "litert"),
            ("int8.onnx", 1_020_400, 0.25, 4.2e6, 5200, "onnxruntime"),
            ("int8.tflite", 968_000, 0.26, 3.1e6, 5000, "litert"),
        ]
        for seed, (name, size, spread, median_ns, power_mw, runtime) in enumerate(plan):
            found = (
                scores + noise.normal(scale=spread, size=scores.shape).astype(np.float32)
                if spread
                else scores
            )
            difference = OutputDifference(
                name="y", elements=40, differing=2, worst_steps=1.0, worst_absolute=1.0, worst_relative=0.004,
                worst_sample=1, argmax_equal=4, not_finite=0,
            )  # fmt: skip
            results.append(
                ArtifactResult(
                    artifact=_artifact(name, size),
                    evaluation=evaluate(
                        [scores], [found], data, calibration=calibration if name.startswith("int8") else None
                    ),
                    verification=Verification(
                        ok=True,
                        samples=4,
                        outputs=(difference,),
                        runtime_version="2.3.0",
                        providers=("XNNPACK",),
                    ),
                    measurement=measure(median_ns, seed=seed, power_mw=power_mw, runtime=runtime),
                )
            )
        run = Run(
            id="20261122T143821Z-digits-cnn-raspberrypi4-1a2b",
            created="2026-11-22T14:38:21+00:00",
            edgepipe_version="0.1.0",
            command="edgepipe deploy digits-cnn.onnx --target raspberrypi4 --host pi@10.0.0.5 --data val.npz",
            model_name="digits-cnn",
            model_source="digits-cnn.onnx",
            model_digest="ab" * 32,
            source_fidelity=Fidelity(
                samples=8, sample_source="given", max_abs_error=2e-6, peak=9.1, sqnr_db=121.3,
                reference="LiteRT 2.3.0",
            ),
            target="raspberrypi4",
            recipe="int8",
            seed=0,
            bundle_digest="cd" * 32,
            steps=(
                Step(
                    use="graph.simplify", settings={}, digest_in="1" * 64, digest_out="2" * 64,
                    size_in_bytes=3_700_000, size_out_bytes=3_612_004, sqnr_db=None, seconds=0.4,
                ),
                Step(
                    use="quantize.static", settings={"method": "mse", "per_channel": True},
                    digest_in="2" * 64, digest_out="3" * 64, size_in_bytes=3_612_004,
                    size_out_bytes=1_020_400, sqnr_db=24.8, seconds=6.2,
                ),
            ),
            calibration=calibration,
            data=DataUse(source="val.npz", digest="da" * 32, samples=len(labels), random=False),
            host="pi@10.0.0.5",
            kind="board",
            device={
                "board": "Raspberry Pi 4 Model B Rev 1.4",
                "cpu": {"model": "Cortex-A72", "architecture": "aarch64", "cores": 4, "cores_online": 4},
                "memory": {"total_bytes": 4 << 30},
                "system": {"name": "Debian GNU/Linux 12 (bookworm)", "kernel": "6.6.31+rpt-rpi-v8"},
                "python": {"version": "3.11.2"},
            },
            agent_digest="ef" * 32,
            versions={"onnx": "1.23.2", "onnxruntime": "1.31.1"},
            reference=evaluate([scores], [scores], data),
            results=tuple(results),
            agreement={"int8.onnx = int8.tflite": wilson(996, 1000)},
        )  # fmt: skip
        return msgspec.structs.replace(run, **changes)

    return build


@pytest.fixture
def embedded(make_run):
    """The same on the embedded device."""
    run = make_run()
    results = tuple(
        msgspec.structs.replace(
            each,
            measurement=msgspec.structs.replace(
                each.measurement, kind="embedded", emulation="this host's CPU"
            ),
        )
        for each in run.results
    )
    return msgspec.structs.replace(
        run, kind="embedded", host="embedded device on Some CPU", results=results,
        device={"board": "", "cpu": {"model": "Some CPU"}},
    )  # fmt: skip


@pytest.fixture
def troubled(make_run, measure):
    """A board where nearly everything that can go wrong did."""
    run = make_run()
    float_onnx, float_tflite, int8_onnx, int8_tflite = run.results
    rising = np.linspace(4.0e6, 6.5e6, 900) + np.random.default_rng(9).normal(0, 6e4, 900)
    slow = measure(4.2e6, runtime="onnxruntime")
    window = slow.window
    throttled = msgspec.structs.replace(
        slow,
        latencies_ns=tuple(rising.astype(int).tolist()),
        throttle_after=(Reading(source="rpi", name="throttled-now", value=1, unit="flag"),),
        governors={"policy0": "ondemand"},
        series=(
            Series(
                name="clock:policy0", unit="khz", t_ns=(window.start_ns, window.end_ns), values=(1.5e6, 0.6e6)
            ),
        ),
    )
    dead = Measurement(
        kind="board", outcome="out-of-memory", message="the kernel killed the child", detail="SIGKILL",
        runtime="onnxruntime", threads=4,
    )  # fmt: skip
    unfit = msgspec.structs.replace(int8_tflite.evaluation, unfit=("calibrated on random data",))
    replace = msgspec.structs.replace
    return replace(
        run,
        results=(
            replace(float_onnx, measurement=dead),
            replace(float_tflite, measurement=measure(7.4e6, runs=40)),
            replace(int8_onnx, measurement=throttled),
            replace(
                int8_tflite,
                evaluation=unfit,
                verification=replace(int8_tflite.verification, ok=False),
                measurement=None,
                skipped="int8.tflite differs from the host's outputs: off by 97 steps at most",
            ),
        ),
    )
