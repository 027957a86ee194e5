"""Quantizes four models with edgepipe and its peers, side by side, and writes results.json and results.md.

    python benchmarks/quantization/run.py --data ../shared/data

Run by edgepipe's Python. Results are kept after every step: what is there already is not done again, unless
--fresh says so. Tools take turns on each model; --rounds repeats the timings of those that need less than a
minute, in turns as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environments import default_cache, python_of
from tools import MODELS, SHOWN, TOOLS, Tool
from verdicts import FLOAT, OWN

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
REPEATED_BELOW_S = 2.0
"""Tools that need longer are timed once."""
RETIMED_BELOW_S = 30.0
"""Tools that needed more of the processor keep their first time, and the load that it was measured under."""


def main() -> int:
    arguments = _arguments()
    run = Run(arguments)
    for model in MODELS:
        if any(_chosen(arguments, model, tool) for tool in TOOLS):
            run.model(model)
    run.write_table()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="environments, models, artifacts")
    parser.add_argument("--rounds", type=int, default=3, help="of timings")
    only = 'rows and models whose "MODEL/NAME" contains this; several: all of them'
    parser.add_argument("--only", default=[], action="append", metavar="TEXT", help=only)
    parser.add_argument("--skip", default=[], action="append", metavar="TEXT", help="leave those out")
    parser.add_argument("--fresh", action="store_true", help="do the chosen rows again")
    parser.add_argument("--retry", action="store_true", help="do the chosen rows that failed again")
    parser.add_argument("--timings", action="store_true", help="only time what is there again")
    parser.add_argument(
        "--retime-below",
        type=float,
        default=RETIMED_BELOW_S,
        metavar="SECONDS",
        help="--timings quantizes again only what needed less of the processor; of others it repeats latency",
    )
    parser.add_argument(
        "--no-latency", action="store_true", help="leave it, and `compress`, to a quieter time"
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a tool may take for a model")
    arguments = parser.parse_args()
    arguments.data, arguments.cache = arguments.data.absolute(), arguments.cache.absolute()
    return arguments


def _chosen(arguments: argparse.Namespace, model: str, tool: Tool) -> bool:
    name = f"{model}/{tool.name}".lower()
    return (
        model in tool.settings
        and all(text.lower() in name for text in arguments.only)
        and not any(text.lower() in name for text in arguments.skip)
    )


class Run:
    """The benchmark: results so far, and what is still to do."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.results: dict[str, Any] = {"cases": {}, "rows": {}}
        if RESULTS.is_file():
            self.results = json.loads(RESULTS.read_text())
        current = {_key(model, tool) for tool in TOOLS for model in tool.settings}
        for key in self.results["rows"].keys() - current:  # of rows that rows.toml no longer has
            del self.results["rows"][key]

    def model(self, model: str) -> None:
        """Everything on one model: quantization in turns, then judgement, then latency."""
        case = self._case(model)
        tools = [tool for tool in TOOLS if _chosen(self.arguments, model, tool)]
        for number in range(1, self.arguments.rounds + 1):
            for tool in tools:
                if self._is_due(model, tool, number):
                    self._say(model, tool, f"round {number}")
                    self._quantize(model, tool, case, number)
        for tool in tools:
            self._predict(model, tool, case)
        self._rank(model, case)
        if not self.arguments.no_latency:
            self._latency(model, case)

    def _case(self, model: str) -> dict[str, Any]:
        """Files of a model, with the float model's own results."""
        folder = self.arguments.cache / "cases" / model
        script, data = str(HERE / "cases.py"), str(self.arguments.data)
        command = [sys.executable, script, model, "--data", data, "--folder", str(folder)]
        answer = _child(command, folder.parent / f"{model}.log", 600).answer
        if "onnx" not in answer:
            raise SystemExit(f"{model} cannot be prepared: {answer['error']}")
        known = self.results["cases"].get(model)
        if known is None or self.arguments.fresh or not Path(folder / "float.onnx.npy").is_file():
            floats = {}
            for kind in ("onnx", "tflite"):
                floats[kind] = self._ask("predict", folder, answer | {
                    "path": answer[kind], "format": kind, "outputs": str(folder / f"float.{kind}.npy"),
                    "reference": None if kind == "onnx" else str(folder / "float.onnx.npy"),
                })  # fmt: skip
            self.results["cases"][model] = {"samples": answer["samples"], "floats": floats}
            self._keep()
        return answer

    def _is_due(self, model: str, tool: Tool, number: int) -> bool:
        row = self.results["rows"].get(_key(model, tool))
        if self.arguments.timings and not self.arguments.fresh:
            return row is not None and self._is_timed_again(row, number)
        if number == 1 and row is not None and (self.arguments.fresh or self._is_retried(row)):
            del self.results["rows"][_key(model, tool)]
            row = None
        if row is None:
            return True
        return "error" not in row and _is_repeated(row, number)

    def _is_timed_again(self, row: dict[str, Any], number: int) -> bool:
        if "error" in row:
            return False
        if number > 1:
            return _is_repeated(row, number)
        needed_s = min(run.get("cpu_seconds", run["seconds"]) for run in row["runs"])
        return bool(needed_s <= self.arguments.retime_below)

    def _is_retried(self, row: dict[str, Any]) -> bool:
        return self.arguments.retry and "error" in row

    def _quantize(self, model: str, tool: Tool, case: dict[str, Any], number: int) -> None:
        """One run of a tool, beside the bare forward passes of the same minute."""
        folder = self._folder(model, tool)
        folder.mkdir(parents=True, exist_ok=True)
        settings = tool.settings[model] | (
            {"compress": False} if number > 1 or self.arguments.no_latency else {}
        )
        request = folder / "request.json"
        request.write_text(json.dumps(case | {"folder": str(folder), "settings": settings}))
        floor = self._ask("floor", folder, case | {"path": case["onnx"]})
        try:
            python = python_of(tool.environment, self.arguments.cache)
        except subprocess.CalledProcessError as error:
            self._fail(model, tool, f"its environment cannot be made: {error}")
            return
        script = HERE / "adapters" / f"with_{tool.environment}.py"
        done = _child([str(python), str(script), str(request)], folder / "log.txt", self.arguments.timeout)
        if "error" in done.answer:
            self._fail(model, tool, done.answer["error"], done.answer.get("versions", {}))
            return
        row = self.results["rows"].setdefault(_key(model, tool), {"runs": [], "artifacts": {}})
        digests = {kind: _digest(Path(path)) for kind, path in done.answer["artifacts"].items()}
        if row.get("digests") != digests:
            row["artifacts"] = {}  # another artifact than the one that was judged
        row["digests"] = digests
        row["versions"], row["settings"] = done.answer["versions"], settings
        if number == 1:
            row["detail"], row["runs"] = done.answer["detail"], []
        row["runs"].append({
            "seconds": done.answer["seconds"],
            "passes": done.answer["detail"].get("passes"),
            "cpu_seconds": done.answer["cpu_seconds"],
            "floor_seconds": floor["seconds"],
            "floor_cpu_seconds": floor["cpu_seconds"],
            "peak_bytes": done.peak_bytes,
            "load": round(os.getloadavg()[0], 1),
        })  # fmt: skip
        row["files"] = {kind: Path(path).name for kind, path in done.answer["artifacts"].items()}
        self._keep()

    def _fail(self, model: str, tool: Tool, reason: str, versions: dict[str, str] | None = None) -> None:
        for place in (self.arguments.cache, HERE, Path.home()):
            reason = reason.replace(f"{place}/", "")  # results are published; folders of this machine are not
        self._say(model, tool, f"failed: {reason.splitlines()[0][:150]}")
        known = self.results["rows"].get(_key(model, tool))
        if known is None or not known.get("artifacts"):
            self.results["rows"][_key(model, tool)] = {"error": reason, "versions": versions or {}}
        self._keep()

    def _predict(self, model: str, tool: Tool, case: dict[str, Any]) -> None:
        row = self.results["rows"].get(_key(model, tool), {"error": ""})
        if "error" in row or row["artifacts"]:
            return
        self._say(model, tool, "evaluated")
        folder = self._folder(model, tool)
        for kind, name in row["files"].items():
            answer = self._ask("predict", folder, case | {
                "path": str(folder / name), "format": kind, "outputs": str(folder / f"{kind}.npy"),
                "reference": str(Path(case["onnx"]).parent / "float.onnx.npy"),
            })  # fmt: skip
            if "error" in answer:
                self._fail(model, tool, f"its {kind} artifact: {answer['error']}", row["versions"])
                return
            row["artifacts"][kind] = answer
        self._keep()

    def _rank(self, model: str, case: dict[str, Any]) -> None:
        """Who is first, and who within noise of it, in each table."""
        for table in SHOWN:
            outputs, partly_float = {}, []
            for tool in TOOLS:
                row = self.results["rows"].get(_key(model, tool), {})
                if tool.table == table and row.get("artifacts"):
                    folder = self._folder(model, tool)
                    outputs |= {
                        f"{tool.name}|{each}": str(folder / f"{each}.npy") for each in row["artifacts"]
                    }
                    partly_float += [
                        f"{tool.name}|{each}"
                        for each, artifact in row["artifacts"].items()
                        if artifact.get("float_layers")
                    ]
            if not outputs or not all(Path(path).is_file() for path in outputs.values()):
                continue
            reference = str(Path(case["onnx"]).parent / "float.onnx.npy")
            ranks = self._ask("rank", Path(reference).parent, {
                "reference": reference, "outputs": outputs, "partly_float": partly_float
            })  # fmt: skip
            self.results.setdefault("ranks", {})[f"{table}|{model}"] = ranks
            own = f"{OWN[table]}|onnx"
            if own in outputs:
                self.results.setdefault("against", {})[f"{table}|{model}"] = self._ask(
                    "against",
                    Path(reference).parent,
                    {"reference": reference, "outputs": outputs, "own": own},
                )
        self._keep()

    def _latency(self, model: str, case: dict[str, Any]) -> None:
        """Latency of all artifacts of a model, chosen or not: only those of one go can be compared."""
        for kind in ("onnx", "tflite"):
            made = {
                tool.name: self._folder(model, tool) / row["files"][kind]
                for tool in TOOLS
                if kind in (row := self.results["rows"].get(_key(model, tool), {})).get("artifacts", {})
            }
            digests = {name: _digest(path) for name, path in made.items()}
            kept = self.results.setdefault("latency", {}).setdefault(model, {})
            again = self.arguments.timings or self.arguments.fresh
            if not made or (kept.get(kind, {}).get("digests") == digests and not again):
                continue
            print(f"{_now()} {model}: latency of {len(made)} {kind} artifacts", flush=True)
            paths = {FLOAT: case[kind]} | {name: str(path) for name, path in made.items()}
            artifacts = {name: {"path": path, "format": kind} for name, path in paths.items()}
            answer = self._ask("latency", Path(case["onnx"]).parent, case | {"artifacts": artifacts})
            if "error" in answer:
                raise SystemExit(f"latencies cannot be measured: {answer['error']}")
            kept[kind] = answer | {"digests": digests, "load": round(os.getloadavg()[0], 1)}
            self._keep()

    def _ask(self, question: str, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
        path = folder / f"{question}.json"
        path.write_text(json.dumps(request))
        command = [sys.executable, str(HERE / "judge.py"), question, str(path)]
        return _child(command, folder / f"{question}.log", 1200).answer

    def _folder(self, model: str, tool: Tool) -> Path:
        """Where a tool's artifact of a model is kept, with its log and its outputs."""
        return self.arguments.cache / "artifacts" / model / tool.name

    def write_table(self) -> None:
        """Writes results.md from what is known."""
        subprocess.run([sys.executable, str(HERE / "table.py")], check=True)

    def _keep(self) -> None:
        part = RESULTS.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1, sort_keys=True) + "\n")
        part.replace(RESULTS)

    @staticmethod
    def _say(model: str, tool: Tool, what: str) -> None:
        print(f"{_now()} {model} / {tool.name}: {what}", flush=True)


class Done:
    """A child that has ended.

    Attributes:
        answer: The JSON object that is its last line; {"error": ...} where there is none.
        peak_bytes: The most memory that it held at once. The kernel counts that from the parent's size
            on, so this script stays small: it imports neither numpy nor a runtime.
    """

    def __init__(self, answer: dict[str, Any], peak_bytes: int) -> None:
        self.answer, self.peak_bytes = answer, peak_bytes


def _child(command: list[str], log: Path, timeout: float) -> Done:
    log.parent.mkdir(parents=True, exist_ok=True)
    output = log.with_suffix(".out")
    environment = os.environ | {
        "ORT_DISABLE_TELEMETRY": "1",
        "NNCF_TELEMETRY_DISABLED": "1",
        "TQDM_DISABLE": "1",
    }
    with output.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment, cwd=log.parent)
        status, peak_bytes = _wait(process, timeout)
    if status is None:
        return Done({"error": f"stopped after {timeout:.0f} s"}, peak_bytes)
    lines = output.read_text(errors="replace").strip().splitlines()
    try:
        return Done(json.loads(lines[-1]), peak_bytes)
    except (IndexError, json.JSONDecodeError):
        said = log.read_text(errors="replace").strip().splitlines()
        return Done({"error": f"ended with status {status}: {said[-1] if said else 'silent'}"}, peak_bytes)


def _wait(process: subprocess.Popen[bytes], timeout: float) -> tuple[int | None, int]:
    """Exit status, None for a child that was stopped, and the most memory that it held."""
    deadline = time.monotonic() + timeout
    stopped = False
    while True:
        found, status, usage = os.wait4(process.pid, os.WNOHANG)
        if found:
            process.returncode = os.waitstatus_to_exitcode(status)
            return None if stopped else process.returncode, usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            process.kill()
            stopped = True
        time.sleep(0.05)


def _is_repeated(row: dict[str, Any], number: int) -> bool:
    return len(row["runs"]) < number and all(run["seconds"] < REPEATED_BELOW_S for run in row["runs"])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _key(model: str, tool: Tool) -> str:
    return f"{model}|{tool.name}"


def _now() -> str:
    return time.strftime("%H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
