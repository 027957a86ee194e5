"""Writes results.md from results.json."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from tools import SHOWN, TOOLS, Tool
from verdicts import FLOAT, ratio, verdicts

HERE = Path(__file__).parent
TITLES = {
    "int8": "INT8, a scale for each channel of a weight",
    "per-tensor": "INT8, one scale for each weight tensor",
    "4-bit": "Weights of 4 bits, or of 4 on average; activations of 8",
}
HEADER = """\
# Quantization, side by side

edgepipe and its peers on the same models with the same {calibration} calibration samples, judged by the same
code on the same evaluation samples, none of which is a calibration sample. Made by [run.py](run.py) on {cpu},
{cores} cores; the [README](README.md) says what each row is and how each figure is measured.

- *agreement*: share of samples for which the artifact names the class that the float model names, with
  its 95 % Wilson interval.
- *SQNR*: of the output scores against the float model's.
- **bold** is the first of a model's rows; `≈` is within noise of it: McNemar's exact test for agreement
  (p ≥ 0.05), a paired bootstrap over samples for SQNR (95 % interval of the difference holds 0). Artifacts
  that leave convolutions or matrix products in float are told apart, and not ranked.
- *latency*: share of the float model's on the same runtime, one thread; below 1 is faster. All artifacts of a
  model take turns in one process; median of the turns' ratios.
- *quantize*: seconds from the float model on disk to the artifact on disk; *× forward*: as a multiple of bare
  forward passes over the calibration samples in the same minute; *× CPU*: the same of the processor's
  seconds, all threads together, which other work on the machine touches less. Median of *n* runs. One run of
  edgepipe writes both artifacts.
- *memory*: the most that the process held, its imports included.

"""
VERDICTS = "What is claimed of edgepipe, decided by these figures:"
BUSY = """\
**The machine was busy while some of this was timed** (load up to {load:.0f}): read no more than orders of
magnitude from *quantize* where a load stands beside it. `--timings` repeats the timings.

"""
COLUMNS = (
    "tool", "runtime", "top-1 (lost)", "agreement", "SQNR", "size", "latency / float",
    "quantize", "× forward", "× CPU", "n", "memory",
)  # fmt: skip


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    calibration = {case["samples"][0] for case in results["cases"].values()}
    text = HEADER.format(
        calibration="/".join(map(str, sorted(calibration))), cpu=_cpu(), cores=os.cpu_count()
    )
    loads = [run["load"] for row in results["rows"].values() for run in row.get("runs", ()) if "load" in run]
    if loads and max(loads) > _quiet():
        text += BUSY.format(load=max(loads))
    for table, title in TITLES.items():
        sections = [_section(results, table, model) for model in SHOWN[table]]
        if any(sections):
            text += f"## {title}\n\n" + "".join(sections)
    (HERE / "results.md").write_text(text.rstrip() + "\n")


def _section(results: dict[str, Any], table: str, model: str) -> str:
    """One model of one table; nothing where nothing was run."""
    tools = [tool for tool in TOOLS if tool.table == table and f"{model}|{tool.name}" in results["rows"]]
    if not tools or model not in results["cases"]:
        return ""
    case = results["cases"][model]
    latency = {kind: found["turns_ms"] for kind, found in results.get("latency", {}).get(model, {}).items()}
    rows = [_float_row(case, kind, latency) for kind in ("onnx", "tflite")]
    failed = []
    ranks = results.get("ranks", {}).get(f"{table}|{model}", {})
    for tool in tools:
        row = results["rows"][f"{model}|{tool.name}"]
        if "error" in row:
            versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
            reason = " ".join(row["error"].split())[:300]
            failed.append(f"- **{tool.name}** did not run ({versions or 'no version'}): {reason}\n")
        else:
            rows += [_row(tool, row, kind, ranks, latency) for kind in row["artifacts"]]
    missing = [
        tool.name
        for tool in TOOLS
        if tool.table == table and model in tool.settings and f"{model}|{tool.name}" not in results["rows"]
    ]
    if missing:
        failed.append(f"- not run yet: {'; '.join(missing)}\n")
    text = f"### {model} ({case['samples'][1]} evaluation samples)\n\n"
    text += f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    text += "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    text += "\n" + ("".join(failed) + "\n" if failed else "")
    said = "".join(map(str, verdicts(results, table, model, tools)))
    return text + (f"{VERDICTS}\n\n{said}\n" if said else "")


def _float_row(case: dict[str, Any], kind: str, latency: dict[str, Any]) -> list[str]:
    found = case["floats"][kind]
    times = latency.get(kind, {}).get(FLOAT)
    return [
        "float", _runtime(kind), f"{100 * found['accuracy']:.1f} %", "", "", _size(found["size_bytes"]),
        f"{statistics.median(times):.3g} ms" if times else "", *[""] * 5,
    ]  # fmt: skip


def _row(
    tool: Tool, row: dict[str, Any], kind: str, ranks: dict[str, Any], latency: dict[str, Any]
) -> list[str]:
    found = row["artifacts"][kind]
    rank = ranks.get(f"{tool.name}|{kind}")
    value, low, high = (100 * share for share in found["agreement"])
    sqnr = "exact" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
    if found["not_finite"]:
        sqnr = f"{found['not_finite']} NaN or infinite"
    layers = found.get("float_layers", 0)
    if layers:  # it is in another race
        rank = None
    first = rank is not None and rank["first_in_agreement"]
    near = rank is not None and rank["agreement_p_value"] >= 0.05
    interval = rank["sqnr_behind_db"] if rank is not None else None
    turns = latency.get(kind, {})
    runs = row["runs"]
    quantize = [""] * 5
    if kind == tool.formats[0]:
        quantize = [
            f"{statistics.median(run['seconds'] for run in runs):.3g} s{_load(runs)}",
            f"{statistics.median(run['seconds'] / run['floor_seconds'] for run in runs):.3g}",
            f"{statistics.median(_cpu_ratio(run) for run in runs):.3g}".replace("nan", ""),
            str(len(runs)),
            f"{statistics.median(run['peak_bytes'] for run in runs) / 2**20:.0f} MiB",
        ]
    return [
        tool.name + (f" ({layers} layers in float)" if layers else ""),
        _runtime(kind),
        f"{100 * found['accuracy']:.1f} % ({found['lost_points']:+.1f})".replace("+-", "-"),
        _marked(f"{value:.1f} %", first, near) + f" [{low:.1f}, {high:.1f}]",
        _marked(sqnr, rank is not None and rank["first_in_sqnr"], interval is not None and interval[0] <= 0),
        _size(found["size_bytes"]),
        f"{ratio(turns, tool.name, FLOAT).value:.2f}" if tool.name in turns else "",
        *quantize,
    ]


def _load(runs: list[dict[str, Any]]) -> str:
    """The machine's load during the runs, where they did not have it to themselves."""
    load = statistics.median(run.get("load", math.inf) for run in runs)
    if load <= _quiet():
        return ""
    return f" (load {load:.0f})" if math.isfinite(load) else " (load unknown)"


def _quiet() -> float:
    """The most that the load is while the benchmark has the machine to itself."""
    return (os.cpu_count() or 1) + 1


def _cpu_ratio(run: dict[str, Any]) -> float:
    ratio: float = run.get("cpu_seconds", math.nan) / run.get("floor_cpu_seconds", math.nan)
    return ratio


def _marked(text: str, first: bool, near: bool) -> str:
    return f"**{text}**" if first else f"{text} ≈" if near else text


def _runtime(kind: str) -> str:
    return {"onnx": "ORT", "tflite": "LiteRT"}[kind]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024:.0f} KiB"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
