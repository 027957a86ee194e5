"""What calibration costs, as a multiple of the forward passes that it cannot do without.

Writes a table of ratios to the floor: the same samples through a plain session, in the batch size that
is fastest for it. Everything is interleaved, and medians are taken; session creation is part of
edgepipe's and of the floor's time alike, and of ONNX Runtime's calibrators.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from common import SAMPLES, Case
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    create_calibrator,
)

from edgepipe.data import make_dataset
from edgepipe.events import silent
from edgepipe.quantize.calibration.ranges import Shared, Watch, choose_grids, observe

FURTHER = 192
"""Samples beyond `SAMPLES` for what each further one costs: without what a session costs to create."""
BATCHES = (1, 4, 16, 64)
PEERS = {
    "ONNX Runtime MinMax": CalibrationMethod.MinMax,
    "ONNX Runtime Entropy": CalibrationMethod.Entropy,
    "ONNX Runtime Percentile": CalibrationMethod.Percentile,
}


OURS = {"edgepipe min/max": False, "edgepipe all": True}
"""Whether values are counted."""


def limit_threads(threads: int) -> None:
    """Every session that is made from now on, by whomever, has as many threads; 0 is the default."""
    plain = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        made = plain()
        made.intra_op_num_threads = threads
        return made

    onnxruntime.SessionOptions = options


def table(cases: list[Case], rounds: int, peer_rounds: int, threads: int) -> str:
    """Rows of Markdown, one for each model."""
    columns = [*OURS, *(f"{name}, a further sample" for name in OURS), "auto, besides", *PEERS]
    head = f"| model | floor | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}\n"
    return head + "".join(_row(case, columns, rounds, peer_rounds, threads) for case in cases)


def _row(case: Case, columns: list[str], rounds: int, peer_rounds: int, threads: int) -> str:
    x = case.calibration(0)
    floors = {f"floor {size}": _forward(case, x, size, threads) for size in _batches(case)}
    work: dict[str, Callable[[], object]] = dict(floors)
    data = make_dataset(x, None, "benchmark")
    for name, histograms in OURS.items():
        watch = Watch(tensors=case.tensors, histograms=histograms, channel_axes=case.channel_axes)
        work[name] = lambda watch=watch: observe(case.model, data, watch, silent)
    seen = observe(case.model, data, Watch(tensors=case.tensors, histograms=True, channel_axes={}), silent)
    shared = [Shared(tensors=(name,), seen=seen[name]) for name in case.tensors]
    work["auto, besides"] = lambda: choose_grids(
        case.model, data, shared, "auto", percentile=99.99, symmetric=False, emit=silent
    )
    seconds = _interleaved(work, rounds)
    peers = {name: _peer(case, x, method) for name, method in PEERS.items()}
    if peer_rounds:
        seconds |= _interleaved(peers, peer_rounds)
    best = min(floors, key=seconds.__getitem__)
    floor = seconds[best]
    found = {name: each / floor for name, each in seconds.items()}
    found |= _further(case, int(best.split()[1]), seconds | {"floor": floor}, rounds, threads)
    ratios = [f"{found[name]:.2f}x" if name in found else "not run" for name in columns]
    print(case.name, f"{1e3 * floor:.0f} ms", ratios, flush=True)
    return f"| {case.name} | {1e3 * floor:.0f} ms | {' | '.join(ratios)} |\n"


def _further(case: Case, size: int, before: dict[str, float], rounds: int, threads: int) -> dict[str, float]:
    """What a further sample costs each way, as a multiple of what it costs the floor."""
    x = case.calibration(0, SAMPLES + FURTHER)
    data = make_dataset(x, None, "benchmark")
    work: dict[str, Callable[[], object]] = {"floor": _forward(case, x, size, threads)}
    for name, histograms in OURS.items():
        watch = Watch(tensors=case.tensors, histograms=histograms, channel_axes=case.channel_axes)
        work[name] = lambda watch=watch: observe(case.model, data, watch, silent)
    seconds = _interleaved(work, rounds)
    floor = seconds["floor"] - before["floor"]
    return {f"{name}, a further sample": (seconds[name] - before[name]) / floor for name in OURS}


def _batches(case: Case) -> tuple[int, ...]:
    fixed = case.model.inputs[0].shape[0]
    return (fixed,) if fixed else BATCHES


def _forward(case: Case, x: NDArray[np.float32], size: int, threads: int) -> Callable[[], None]:
    name = case.model.inputs[0].name

    def run() -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(case.model.payload, options, ["CPUExecutionProvider"])
        for start in range(0, len(x), size):
            session.run(None, {name: x[start : start + size]})

    return run


class _Reader(CalibrationDataReader):
    """One sample at a time, as its documentation shows."""

    def __init__(self, name: str, x: NDArray[np.float32]) -> None:
        self._samples: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: x[start : start + 1]} for start in range(len(x))
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:  # type: ignore[override]
        return next(self._samples, None)


def _peer(case: Case, x: NDArray[np.float32], method: CalibrationMethod) -> Callable[[], None]:
    def run() -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            source = Path(folder) / "model.onnx"
            source.write_bytes(case.model.payload)
            calibrator = create_calibrator(
                source, None, str(Path(folder) / "augmented.onnx"), calibrate_method=method
            )
            calibrator.collect_data(_Reader(case.model.inputs[0].name, x))
            calibrator.compute_data()

    return run


def _interleaved(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, by name, all of them in turn: what else the machine does counts little."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = time.process_time()
            run()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in taken.items()}


def machine() -> str:
    """What it ran on, as far as ratios depend on it."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown CPU",
    )
    return f"{cpu}, {os.cpu_count()} cores, onnxruntime {onnxruntime.__version__}, {SAMPLES} samples"
