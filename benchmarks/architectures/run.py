"""The reference models' artifacts on several architectures: exact, or how far from this host's outputs.

Makes one bundle for each model and runs it with `edgepipe outputs`; README.md says how.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.measure.outputs import steps

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "acceptance"))
from prepare import cases  # noqa: E402  it stands beside, and is no package

TARGETS = ("x86", "raspberrypi4", "raspberrypi5", "raspberrypi3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of the models and their data")
    parser.add_argument("work", type=Path, help="folder for prepared data and bundles, which are kept")
    parser.add_argument("--models", nargs="*", help="names, or their first letters; by default all")
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--made-for", default="raspberrypi4", help="target of the bundles")
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    stored = HERE / "results.json"
    results = json.loads(stored.read_text()) if stored.is_file() else {}
    for case in cases(options.root):
        if options.models and not any(case.name.startswith(name) for name in options.models):
            continue
        folder = options.work / case.name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data.npz"
        if not data.is_file():
            x, y = case.data()
            np.savez(data, x=x, y=y)
        bundle = folder / f"bundle-{options.made_for}"
        if not bundle.is_dir():
            edgepipe("compress", *case.arguments, "--target", options.made_for, "--data", data, "-o", bundle)
        targets = [word for target in options.targets for word in ("--target", target)]
        sampling = ("--data", data, "--samples", options.samples, "--json")
        report = json.loads(edgepipe("outputs", bundle, *targets, *sampling))
        results[case.name] = slim(report, options.made_for)
        stored.write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "results.md").write_text(table(results))


def edgepipe(*words: object) -> str:
    command = [sys.executable, "-c", "from edgepipe.cli import main; main()", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def slim(report: dict[str, Any], made_for: str) -> dict[str, Any]:
    """The report without digests, which nobody reads in a table."""
    for each in report["results"]:
        for name in ("digests", "layers", "first_layer", "disturbed"):
            del each[name]
    return {**report, "made_for": made_for, "date": datetime.now(UTC).date().isoformat()}


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | artifact | architecture | device | runtime | outputs |",
        "|---|---|---|---|---|---|",
    ]
    for name, report in results.items():
        sites = {site["name"]: site for site in report["sites"]}
        order = list(dict.fromkeys(each["artifact"] for each in report["results"]))
        for each in sorted(report["results"], key=lambda each: order.index(each["artifact"])):
            site = sites[each["site"]]
            where = f"{each['site']}, {site['kind']}"
            runtime = f"{each['runtime']} {each['runtime_version']}".strip() or "–"
            cells = (name, each["artifact"], site["architecture"], where, runtime, words(each))
            lines.append(f"| {' | '.join(cells)} |")
    dates = sorted({report["date"] for report in results.values()})
    references = sorted({report["reference"] for report in results.values()})
    note = f"{', '.join(dates)}; compared with {'; '.join(references)}.\n"
    return "\n".join([*lines, "", note])


def words(found: dict[str, Any]) -> str:
    """``exact``, or the worst difference and how much of the outputs differs."""
    if found["reason"]:
        return (
            "does not run: no runtime of its format" if "no runtime" in found["reason"] else found["reason"]
        )
    if found["exact"]:
        return f"exact, {found['samples']} samples"
    far = f"{found['worst_relative']:.0e} of the range"
    if found["worst_steps"] is not None:
        far = steps(found["worst_steps"])
    share = 100 * found["differing"] / found["elements"]
    values = f"{share:.1f} %" if share >= 0.1 else "<0.1 %"
    same = f"same top class on {found['argmax_equal']}"
    where = f"{values} of values, on {found['differing_samples']} of {found['samples']} samples"
    return f"≤ {far}, {where}; {same}"


if __name__ == "__main__":
    main()
