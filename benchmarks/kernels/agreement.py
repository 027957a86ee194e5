"""How far the TFLite and the ONNX artifact of one bundle agree, on the four models of the acceptance run.

    python benchmarks/kernels/agreement.py --data ../shared/data

writes agreement.md beside this file. The data is what benchmarks/acceptance/README.md describes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepipe.bundle import Artifact, Bundle
from edgepipe.job import Job
from edgepipe.runtime import infer, open_session
from edgepipe.workflow.make import compress

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "acceptance"))
from prepare import Case, cases  # noqa: E402  it lies beside, in no package

CALIBRATION = 64
EVALUATION = 500
HEADER = """\
# The artifacts of one bundle beside each other

Recipe int8 for target x86; calibrated on 64 samples, evaluated on others. Written by agreement.py.

| model | samples | TFLite and ONNX | each with float | outputs that are equal | within one step |
|---|---|---|---|---|---|
"""
Outputs = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    rows = []
    for case in cases(parser.parse_args().data.resolve()):
        rows.append(row(case))
        print(rows[-1], flush=True)
    (HERE / "agreement.md").write_text(HEADER + "\n".join(rows) + "\n")


def row(case: Case) -> str:
    with tempfile.TemporaryDirectory() as folder:
        job, others = job_of(case, Path(folder))
        made = compress(job, Path(folder) / "bundle").bundle
        found = {each.name: outputs(made, each, others[:EVALUATION]) for each in made.manifest.artifacts}
    step = next(each.outputs[0].scale for each in made.manifest.artifacts if each.name == "int8.tflite")
    off = np.rint(np.abs(found["int8.tflite"] - found["int8.onnx"]) / step)
    exact = found["float32.onnx"]
    between = "equal" if not off.any() else f"{decibels(found['int8.onnx'], found['int8.tflite']):.1f} dB"
    fidelity = [decibels(exact, found[name]) for name in ("int8.tflite", "int8.onnx")]
    return (
        f"| {case.name} | {len(exact)} | {between} | {fidelity[0]:.1f} and {fidelity[1]:.1f} dB "
        f"| {100 * (off == 0).mean():.2f} % | {100 * (off <= 1).mean():.2f} % |"
    )


def job_of(case: Case, folder: Path, recipe: str = "int8") -> tuple[Job, NDArray[np.float32]]:
    """A job that calibrates on every seventh sample, and the samples that it does not see."""
    x, y = case.data()
    chosen = np.zeros(len(x), bool)
    chosen[np.arange(len(x))[::7][: CALIBRATION + 1]] = True  # and one that compress keeps for itself
    data = folder / "calibration.npz"
    np.savez(data, x=x[chosen], y=y[chosen])
    weights = Path(case.arguments[2]) if "--weights" in case.arguments else None
    job = Job(
        model=case.arguments[0], target="x86", data=data, recipe=recipe,
        calibration_samples=CALIBRATION, weights=weights,
    )  # fmt: skip
    return job, x[~chosen]


def outputs(bundle: Bundle, artifact: Artifact, x: NDArray[np.float32]) -> Outputs:
    """What an artifact gives for the samples, off its grid."""
    session = open_session(bundle.read(artifact.name), artifact.format)
    return infer(session, artifact.inputs, artifact.outputs, x)[0]


def decibels(reference: Outputs, other: Outputs) -> float:
    """Signal to noise of one set of outputs against another."""
    noise = np.square(reference.astype(np.float64) - other).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / noise))


if __name__ == "__main__":
    main()
