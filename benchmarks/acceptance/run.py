"""Deploys the four reference models on the embedded device and checks what edgepipe promises of them.

    python benchmarks/acceptance/run.py --data ../shared/data

writes results.md beside this file; exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from prepare import Case, cases

HERE = Path(__file__).parent
FLOAT_OPS = {"QUANTIZE", "DEQUANTIZE", "TRANSPOSE"}
HEADER = """\
# Acceptance: the four reference models

`edgepipe deploy MODEL --target x86 --emulate`, on the embedded device ({cpu}, edgepipe {version}).
Calibration and evaluation samples never overlap. Latencies are this CPU's, one process after the other,
here to compare the artifacts of one row, not boards.

| model | samples | float accuracy | INT8 TFLite: accuracy (difference, 95 % interval) \
| agreement with float | SQNR | \
INT8 ONNX: accuracy | agreement | SQNR | TFLite = ONNX | size float → INT8 TFLite | \
median float32.onnx | int8.onnx | float32.tflite | int8.tflite | seconds in all | holds |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


class Outcome(NamedTuple):
    """One case's run with what was promised and did not hold."""

    case: Case
    run: dict[str, Any]
    seconds: float
    broken: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", help="names that contain this text")
    arguments = parser.parse_args()
    outcomes = []
    for case in cases(arguments.data.resolve()):
        if arguments.only and arguments.only not in case.name:
            continue
        outcomes.append(deploy(case))
        print(case.name, "holds" if not outcomes[-1].broken else outcomes[-1].broken, flush=True)
    if not arguments.only:
        (HERE / "results.md").write_text(table(outcomes))
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def deploy(case: Case) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        x, y = case.data()
        np.savez(data, x=x, y=y)
        command = [
            "edgepipe",
            "deploy",
            *case.arguments,
            "--target",
            "x86",
            "--emulate",
            "--data",
            str(data),
            "--json",
        ]
        start = time.monotonic()
        done = subprocess.run([*command, "--json"], cwd=folder, stdout=subprocess.PIPE, check=True)
        seconds = time.monotonic() - start
        run = json.loads(done.stdout)
        floats = float_tensors(Path(folder) / "runs" / run["id"] / "bundle" / "int8.tflite")
    broken = broken_promises(case, run) + [f"int8.tflite holds float tensors: {', '.join(floats)}"] * bool(
        floats
    )
    return Outcome(case, run, seconds, broken)


def float_tensors(path: Path) -> list[str]:
    """Names of the tensors of a TFLite file that are float."""
    floats = {schema.TensorType.FLOAT16, schema.TensorType.FLOAT32}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    return [
        tensor.name.decode() for graph in model.subgraphs for tensor in graph.tensors if tensor.type in floats
    ]


def broken_promises(case: Case, run: dict[str, Any]) -> list[str]:
    results = by_name(run)
    broken = []
    for name in ("int8.tflite", "int8.onnx"):
        comparison = results[name]["evaluation"]["comparison"]
        if -100 * comparison["difference"]["value"] > case.accuracy_drop:
            broken.append(f"{name} loses {-100 * comparison['difference']['value']:.1f} points")
        if comparison["agreement"]["value"] < case.agreement:
            broken.append(f"{name} agrees with float on {100 * comparison['agreement']['value']:.1f} %")
        if results[name]["measurement"]["outcome"] != "ok" or not results[name]["verification"]["ok"]:
            broken.append(f"{name} was not verified and measured")
    if between_artifacts(run) < case.agreement_of_artifacts:
        broken.append(f"the artifacts agree on {100 * between_artifacts(run):.1f} %")
    artifact = results["int8.tflite"]["artifact"]
    if stray := FLOAT_OPS & artifact["op_counts"].keys():
        broken.append(f"int8.tflite holds {', '.join(sorted(stray))}")
    if any(port["dtype"] != "int8" for port in artifact["inputs"] + artifact["outputs"]):
        broken.append("int8.tflite has float ports")
    return broken


def by_name(run: dict[str, Any]) -> dict[str, Any]:
    return {result["artifact"]["name"]: result for result in run["results"]}


def between_artifacts(run: dict[str, Any]) -> float:
    (estimate,) = (value for names, value in run["agreement"].items() if "int8.onnx" in names)
    return estimate["value"]


def table(outcomes: list[Outcome]) -> str:
    cpu = outcomes[0].run["device"]["cpu"]["model"]
    text = HEADER.format(cpu=cpu, version=outcomes[0].run["edgepipe_version"])
    return text + "".join(row(outcome) for outcome in outcomes)


def row(outcome: Outcome) -> str:
    results = by_name(outcome.run)
    cells = [outcome.case.name, str(outcome.run["data"]["samples"])]
    cells.append(percent(results["int8.tflite"]["evaluation"]["comparison"]["reference_accuracy"]["value"]))
    for name in ("int8.tflite", "int8.onnx"):
        evaluation = results[name]["evaluation"]
        comparison = evaluation["comparison"]
        difference = comparison["difference"]
        interval = ", ".join(f"{100 * difference[end]:+.1f}" for end in ("low", "high"))
        cells.append(
            f"{percent(comparison['accuracy']['value'])} ({100 * difference['value']:+.1f}; {interval})"
        )
        cells.append(percent(comparison["agreement"]["value"]))
        cells.append(f"{min(each['sqnr_db'] for each in evaluation['fidelity']):.1f} dB")
    cells.append(percent(between_artifacts(outcome.run)))
    sizes = [results[name]["artifact"]["size_bytes"] / 1024 for name in ("float32.tflite", "int8.tflite")]
    cells.append(f"{sizes[0]:.0f} → {sizes[1]:.0f} KiB")
    cells += [
        f"{np.median(results[name]['measurement']['latencies_ns']) / 1e6:.3g} ms"
        for name in ("float32.onnx", "int8.onnx", "float32.tflite", "int8.tflite")
    ]
    cells += [f"{outcome.seconds:.0f}", "yes" if not outcome.broken else "; ".join(outcome.broken)]
    return f"| {' | '.join(cells)} |\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
