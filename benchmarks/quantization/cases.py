"""The four models of the benchmark as files: float ONNX, float TFLite, calibration and evaluation samples.

Runs in edgepipe's own environment and prints one JSON line. Every tool gets the same files, so that
none gains by a conversion of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
import prepare

CALIBRATION_SAMPLES = 64
STRIDE = 7
"""Every seventh sample, until there are enough, is calibrated on; the others are evaluated on."""


class Source(NamedTuple):
    """Where a model comes from.

    Attributes:
        case: Start of the acceptance run's name of it, which knows its data.
        torch: A factory and a checkpoint in torch, for tools that take nothing else; None where the
            model is brought into torch from ONNX.
    """

    case: str
    torch: tuple[str, str] | None = None


SOURCES = {
    "DS-CNN": Source("DS-CNN"),
    "MobileNetV1-0.25": Source("MobileNetV1"),
    "EfficientNet-Lite0": Source("EfficientNet"),
    "ResNet-20": Source("ResNet-20", ("resnet20.py", "resnet20-12fca82f.th")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=SOURCES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    print(json.dumps(write(arguments.model, arguments.data.resolve(), arguments.folder.resolve())))


def write(name: str, data: Path, folder: Path) -> dict[str, object]:
    """Writes the files of one model, unless they are there, and describes them."""
    described = folder / "case.json"
    if described.is_file():
        found: dict[str, object] = json.loads(described.read_text())
        return found
    from edgepipe import sources
    from edgepipe.convert import tflite
    from edgepipe.graph.simplify import simplify

    folder.mkdir(parents=True, exist_ok=True)
    case = next(each for each in prepare.cases(data) if each.name.startswith(SOURCES[name].case))
    x, y = case.data()
    chosen = np.arange(0, len(x), STRIDE)[:CALIBRATION_SAMPLES]
    others = np.setdiff1d(np.arange(len(x)), chosen)
    np.savez(folder / "calibration.npz", x=x[chosen], y=y[chosen])
    np.savez(folder / "evaluation.npz", x=x[others], y=y[others])
    weights = case.arguments[2] if len(case.arguments) > 1 else None
    model = sources.load(case.arguments[0], weights=weights, sample=x[chosen[:8]]).model
    original = Path(case.arguments[0])
    (folder / "float.onnx").write_bytes(
        original.read_bytes() if original.suffix == ".onnx" else model.payload
    )
    # Constants folded, for what brings ONNX into torch: it cannot follow shapes that are computed.
    (folder / "simplified.onnx").write_bytes(simplify(model).payload)
    emission = tflite.emit(model)
    # Not the original, even where that is TFLite: litert-quantizer needs a signature, which those lack.
    (folder / "float.tflite").write_bytes(emission.payload)
    torch = SOURCES[name].torch
    case_record = {
        "model": name,
        "onnx": str(folder / "float.onnx"),
        "simplified": str(folder / "simplified.onnx"),
        "tflite": str(folder / "float.tflite"),
        "torch": None
        if torch is None
        else [str(Path(prepare.__file__).parent / torch[0]), str(data / torch[1])],
        "input": model.inputs[0].name,
        "tflite_input_axes": list(emission.inputs[0].permutation),
        "calibration": str(folder / "calibration.npz"),
        "evaluation": str(folder / "evaluation.npz"),
        "samples": [len(chosen), len(others)],
    }
    part = folder / "case.part"
    part.write_text(json.dumps(case_record))
    part.replace(described)
    return case_record


if __name__ == "__main__":
    main()
