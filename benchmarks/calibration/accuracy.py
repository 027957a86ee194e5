"""What each way of choosing ranges leaves of the float model's outputs, on samples it has not seen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
from common import Case
from numpy.typing import NDArray

from edgepipe.data import make_dataset
from edgepipe.evaluate import sqnr_db
from edgepipe.passes import Context
from edgepipe.quantize.calibration.ranges import Algorithm, RangeChoice
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import open_session
from edgepipe.target import load_target


def table(cases: list[Case], draws: int, evaluated: int) -> str:
    """Rows of Markdown, one for each model and draw."""
    ways: tuple[RangeChoice, ...] = (*get_args(Algorithm), "auto")
    head = f"| model | draw | {' | '.join(ways)} |\n|---|---|{'---|' * len(ways)}\n"
    rows = []
    for case in cases:
        for draw in range(draws):
            x = case.evaluation(draw, evaluated)
            real = _outputs(case.model.payload, x)
            cells = [_cell(case, way, draw, x, real) for way in ways]
            print(case.name, draw, dict(zip(ways, cells, strict=True)), flush=True)
            rows.append(f"| {case.name} | {draw} | {' | '.join(cells)} |\n")
    return head + "".join(rows)


def _cell(case: Case, way: RangeChoice, draw: int, x: NDArray[np.float32], real: NDArray[np.float32]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            target=load_target("x86"),
            calibration=make_dataset(case.calibration(draw), None, "benchmark"),
            work=Path(folder),
        )
        quantized = QuantizeStatic(ranges=way).apply(case.model, context)
    integer = _outputs(quantized.payload, x)
    agreement = np.mean(real.argmax(1) == integer.argmax(1))
    return f"{sqnr_db(real, integer):.1f} / {100 * agreement:.1f}"


def _outputs(payload: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = open_session(payload, "onnx")
    size = 8 if session.dynamic_batch else 1
    return np.concatenate([session.run([x[start : start + size]])[0] for start in range(0, len(x), size)])
