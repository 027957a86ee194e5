"""Accuracy against average weight bits: one width for all layers, and mixed precision in two kinds.

    python benchmarks/mixed_precision/run.py --data ../shared/data

writes results.json (one entry a measurement; what is there already is not measured again), results.md and,
where matplotlib is installed, results.png beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from table import write_table

from edgepipe import sources
from edgepipe.data import make_dataset
from edgepipe.events import Event, StageEnded, Warned
from edgepipe.files import write_whole
from edgepipe.graph.simplify import simplify
from edgepipe.model import Model
from edgepipe.passes import Context
from edgepipe.quantize.mixed.allocate import QuantizeMixed, overrides_for
from edgepipe.quantize.mixed.budget import allocate
from edgepipe.quantize.mixed.resources import average_bits
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.target import load_target

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "acceptance"))
from prepare import cases  # noqa: E402 - the folder has to be on the path first

MODELS = ("EfficientNet-Lite0", "ResNet-20")
AVERAGES = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
WIDTHS = (2, 3, 4, 5, 6, 8)
SENSITIVITIES = {"mixed": "sqnr", "gradient-weighted mixed": "gradient"}
ROUNDINGS = ("nearest", "gptq")
CALIBRATION = 64


class Samples(NamedTuple):
    """One draw: what is calibrated on, and what is evaluated on."""

    calibration: NDArray[np.float32]
    x: NDArray[np.float32]
    y: NDArray[np.int64]


class Point(NamedTuple):
    """A measurement to make: its key in results.json."""

    model: str
    rounding: str
    curve: str
    bits: float
    draw: int

    def __str__(self) -> str:
        return "/".join(map(str, self))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="points whose name contains this text")
    parser.add_argument("--draws", type=int, default=1, help="choices of the calibration samples")
    parser.add_argument("--fresh", action="store_true", help="measure what is there again")
    arguments = parser.parse_args()
    place = HERE / "results.json"
    results = {} if arguments.fresh or not place.exists() else json.loads(place.read_text())
    for case in cases(arguments.data.resolve()):
        if case.name in MODELS:
            measure_model(case, arguments, results, place)
    write_table(results, HERE)


def measure_model(case: Any, arguments: argparse.Namespace, results: dict[str, Any], place: Path) -> None:
    wanted = [
        point
        for draw in range(arguments.draws)
        for point in points(case.name, draw)
        if arguments.only in str(point) and str(point) not in results
    ]
    if not wanted:
        return
    x, y = case.data()
    source, *options = case.arguments
    settings = {"weights": options[1], "input_shape": (1, *x.shape[1:])} if options else {}
    model = simplify(sources.load(source, **settings).model)
    found: dict[tuple[str, str, int], Any] = {}
    references: dict[int, NDArray[np.float32]] = {}
    for point in wanted:
        samples = draw_samples(x, y, point.draw)
        if point.draw not in references:
            references[point.draw] = classify(model, samples.x)
        context = make_context(samples)
        started = time.monotonic()
        quantized, average = quantize(point, model, context, found)
        seconds = time.monotonic() - started
        results[str(point)] = {
            **judge(references[point.draw], classify(quantized, samples.x), samples.y),
            "average_bits": average,
            "bytes": quantized.size_bytes,
            "seconds": round(seconds, 1),
        }
        write_whole(place, json.dumps(results, indent=1, sort_keys=True).encode(), what="results", remedy="")
        print(point, results[str(point)], flush=True)


def points(model: str, draw: int) -> Iterator[Point]:
    for rounding in ROUNDINGS:
        yield from (Point(model, rounding, "single", float(bits), draw) for bits in WIDTHS)
        for curve in SENSITIVITIES:
            yield from (Point(model, rounding, curve, bits, draw) for bits in AVERAGES)


def draw_samples(x: NDArray[np.float32], y: NDArray[np.int64], draw: int) -> Samples:
    """Draw 0 takes every seventh sample for calibration; the others choose by their number."""
    if draw == 0:
        chosen = np.arange(0, len(x), 7)[:CALIBRATION]
    else:
        chosen = np.sort(np.random.default_rng(draw).permutation(len(x))[:CALIBRATION])
    others = np.setdiff1d(np.arange(len(x)), chosen)
    return Samples(x[chosen], x[others], y[others])


def make_context(samples: Samples) -> Context:
    data = make_dataset(samples.calibration, None, "calibration samples")
    work = Path(tempfile.gettempdir())
    return Context(target=load_target("x86"), calibration=data, work=work, emit=show)


def show(event: Event) -> None:
    if isinstance(event, Warned):
        print("warning:", event.text, file=sys.stderr)
    elif isinstance(event, StageEnded):
        print(f"  {event.stage}: {event.detail}", file=sys.stderr)


def quantize(
    point: Point, model: Model, context: Context, found: dict[tuple[str, str, int], Any]
) -> tuple[Model, float]:
    """The model at this point, and its bits a weight. `found` keeps sensitivities: all budgets share them."""
    if point.curve == "single":
        single = QuantizeStatic(weight_bits=int(point.bits), rounding=point.rounding)
        return single.apply(model, context), point.bits
    key = (point.rounding, point.curve, point.draw)
    if key not in found:
        mixed = QuantizeMixed(
            average_weight_bits=8,
            rounding=point.rounding,
            sensitivity=SENSITIVITIES[point.curve],
            weight_candidates=WIDTHS,
        )
        found[key] = mixed.sensitivities(model, context)
    layers, costs = found[key].layers, found[key].costs
    budget = average_bits(layers, point.bits)
    chosen = allocate(costs, [budget])
    static = QuantizeStatic(rounding=point.rounding, overrides=overrides_for(layers, chosen))
    return static.apply(model, context), budget.spent(chosen) / sum(layer.weights for layer in layers)


def classify(model: Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.payload, providers=["CPUExecutionProvider"])
    name, batch = model.inputs[0].name, 16
    return np.concatenate(
        [session.run(None, {name: x[start : start + batch]})[0] for start in range(0, len(x), batch)]
    )


def judge(
    exact: NDArray[np.float32], found: NDArray[np.float32], y: NDArray[np.int64]
) -> dict[str, float | int]:
    noise = float(np.square(exact - found, dtype=np.float64).sum())
    return {
        "samples": len(y),
        "float_accuracy": float((exact.argmax(1) == y).mean()),
        "accuracy": float((found.argmax(1) == y).mean()),
        "agreement": float((found.argmax(1) == exact.argmax(1)).mean()),
        "sqnr_db": 10 * float(np.log10(np.square(exact, dtype=np.float64).sum() / noise)),
    }


if __name__ == "__main__":
    main()
