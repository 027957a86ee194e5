"""What each scheme costs and brings: bytes, SQNR, agreement and latency of the artifacts of shipped recipes.

    python benchmarks/kernels/schemes.py --data ../shared/data

writes schemes.md beside this file. The data is what benchmarks/acceptance/README.md describes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from agreement import CALIBRATION, Case, Outputs, cases, decibels, job_of, outputs
from numpy.typing import NDArray

from edgepipe.bundle import Artifact, Bundle
from edgepipe.runtime import open_session, to_port
from edgepipe.workflow.make import compress

HERE = Path(__file__).parent
MODELS = {"EfficientNet-Lite0": 120, "ResNet-20": 400}
"""How many samples each is evaluated on."""
RECIPES = ("int8", "int4", "int16", "dynamic", "float16")
TURNS, CALLS = 15, 5
HEADER = f"""\
# Schemes beside each other

Shipped recipes for target x86: {CALIBRATION} calibration samples; SQNR and agreement with the float model
on others ({", ".join(f"{name}: {count}" for name, count in MODELS.items())}); latency on one thread as a
share of the float model's on the same runtime, {CALLS} calls of each in turn, {TURNS} turns.
ONNX / TFLite. Written by schemes.py.

| model | recipe | kB | SQNR, dB | agreement, % | latency |
|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    rows = []
    for case in cases(parser.parse_args().data.resolve()):
        if case.name in MODELS:
            rows += model_rows(case)
            print("\n".join(rows), flush=True)
    (HERE / "schemes.md").write_text(HEADER + "\n".join(rows) + "\n")


def model_rows(case: Case) -> list[str]:
    """A row for each recipe."""
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for recipe in RECIPES:
            job, others = job_of(case, Path(folder), recipe)
            made[recipe] = compress(job, Path(folder) / recipe).bundle
        others = others[: MODELS[case.name]]
        times = {kind: latencies(made, kind, others[:1]) for kind in ("onnx", "tflite")}
        floats = find(made["int8"], "onnx", floats=True)
        assert floats is not None
        exact = outputs(made["int8"], floats, others)
        return [row(case.name, recipe, made[recipe], others, exact, times) for recipe in RECIPES]


def row(
    model: str,
    recipe: str,
    bundle: Bundle,
    x: NDArray[Any],
    exact: Outputs,
    times: dict[str, dict[str, float]],
) -> str:
    """What both artifacts of a recipe are worth."""
    cells: list[list[str]] = [[], [], [], []]
    for kind in ("onnx", "tflite"):
        artifact = find(bundle, kind)
        if artifact is None:  # the recipe makes none for this runtime
            for cell in cells:
                cell.append("–")
            continue
        found = outputs(bundle, artifact, x)
        agreement = 100 * float((found.argmax(1) == exact.argmax(1)).mean())
        values = (
            f"{len(bundle.read(artifact.name)) / 1000:.0f}", f"{decibels(exact, found):.1f}",
            f"{agreement:.1f}", f"{times[kind][recipe]:.3g}",
        )  # fmt: skip
        for cell, value in zip(cells, values, strict=True):
            cell.append(value)
    return f"| {model} | {recipe} | {' | '.join(' / '.join(cell) for cell in cells)} |"


def find(bundle: Bundle, kind: str, *, floats: bool = False) -> Artifact | None:
    """The artifact of a runtime: that of the recipe, or the float one; None where there is none."""
    found = (each for each in bundle.manifest.artifacts if each.format == kind)
    return next((each for each in found if (each.precision == "float32") == floats), None)


def latencies(made: dict[str, Bundle], kind: str, x: NDArray[Any]) -> dict[str, float]:
    """Share of the float model's latency that each recipe's artifact takes on one thread."""
    artifacts = {recipe: (bundle, find(bundle, kind)) for recipe, bundle in made.items()}
    artifacts["float32"] = made["int8"], find(made["int8"], kind, floats=True)
    calls = {
        name: call(bundle, artifact, x)
        for name, (bundle, artifact) in artifacts.items()
        if artifact is not None
    }
    times: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, run in calls.items():
            run()  # the one before has left the caches to itself
            started = time.perf_counter_ns()
            for _ in range(CALLS):
                run()
            times[name].append(time.perf_counter_ns() - started)
    base = np.array(times.pop("float32"))
    return {name: float(np.median(np.array(found) / base)) for name, found in times.items()}


def call(bundle: Bundle, artifact: Artifact, x: NDArray[Any]) -> Callable[[], object]:
    """One inference of an artifact on one thread, warm."""
    session = open_session(bundle.read(artifact.name), artifact.format)
    sample = to_port(x, artifact.inputs[0])
    session.run([sample])
    return lambda: session.run([sample])


if __name__ == "__main__":
    main()
