"""How an adapter is spoken to: a request file as its argument, one JSON line as its last line of output.

Needs nothing but numpy, so that it runs in every tool's own environment.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Request(NamedTuple):
    """What to quantize, and how.

    Attributes:
        onnx: The float model.
        simplified: The same with constants folded, for tools that cannot follow computed shapes.
        tflite: The same as float TFLite.
        torch: Factory file and checkpoint, where the model comes from torch; None otherwise.
        input: Name of the ONNX model's input.
        tflite_input_axes: Axes of the samples in the order of the TFLite model's input.
        x: Calibration samples, in the layout of the ONNX model: float32 [n, ...].
        y: Their labels: int64 [n].
        folder: Where artifacts go.
        settings: What is particular to this row of the table.
    """

    onnx: Path
    simplified: Path
    tflite: Path
    torch: tuple[str, str] | None
    input: str
    tflite_input_axes: tuple[int, ...]
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    folder: Path
    settings: dict[str, Any]

    def feeds(self, batch: int = 1) -> list[dict[str, NDArray[np.float32]]]:
        """The calibration samples as feeds of the ONNX model."""
        return [{self.input: self.x[i : i + batch]} for i in range(0, len(self.x), batch)]


class Reply(NamedTuple):
    """What an adapter made.

    Attributes:
        artifacts: Path of each artifact, by format: "onnx", "tflite".
        detail: More for the record: other times, what was chosen.
    """

    artifacts: dict[str, Path]
    detail: dict[str, Any]


def serve(packages: tuple[str, ...], quantize: Callable[[Request], Reply]) -> None:
    """Answers the request that is named on the command line.

    The time runs from the float model on disk to the artifacts on disk; imports and the reading of
    samples are not in it.

    Args:
        packages: What to tell the versions of.
        quantize: Does the work.
    """
    request = _read(Path(sys.argv[1]))
    answer: dict[str, Any] = {"versions": {package: version(package) for package in packages}}
    started, began = time.perf_counter(), time.process_time()
    try:
        reply = quantize(request)
    except Exception as error:  # noqa: BLE001  whatever a tool fails with is its row in the table
        traceback.print_exc()
        answer["error"] = f"{type(error).__name__}: {str(error).strip()[:500]}"
    else:
        answer["seconds"] = reply.detail.pop("seconds", time.perf_counter() - started)
        answer["cpu_seconds"] = reply.detail.pop("cpu_seconds", time.process_time() - began)
        answer["artifacts"] = {name: str(path) for name, path in reply.artifacts.items()}
        answer["detail"] = reply.detail
    print("\n" + json.dumps(answer), flush=True)


def _read(path: Path) -> Request:
    content = json.loads(path.read_text())
    samples = np.load(content["calibration"])
    return Request(
        onnx=Path(content["onnx"]),
        simplified=Path(content.get("simplified", content["onnx"])),
        tflite=Path(content["tflite"]),
        torch=content["torch"] and tuple(content["torch"]),
        input=content["input"],
        tflite_input_axes=tuple(content["tflite_input_axes"]),
        x=samples["x"],
        y=samples["y"],
        folder=Path(content["folder"]),
        settings=content["settings"],
    )
