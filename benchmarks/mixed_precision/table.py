"""results.md and results.png from the measurements."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

CURVES = ("single", "mixed", "gradient-weighted mixed")
HEADER = """\
# Accuracy against average weight bits

Made by [run.py](run.py); the [README](README.md) says how. Weights have 2, 3, 4, 5, 6 or 8 bits, the same
in all layers (*single*) or each layer its own (*mixed*: costs measured as noise at the outputs;
*gradient-weighted*: costs foretold from gradients); activations have 8. Calibration on 64 samples,
evaluation on all others; means over the draws of the calibration samples. A cell holds top-1 accuracy,
agreement with float, SQNR of the outputs.
"""
COLOURS = {"single": "#888888", "mixed": "#1f77b4", "gradient-weighted mixed": "#d95f02"}

Series = dict[float, dict[str, float]]


def write_table(results: dict[str, Any], folder: Path) -> None:
    """Writes results.md, and results.png where matplotlib is installed."""
    found = gather(results)
    lines = [HEADER]
    for model in sorted({model for model, _, _ in found}):
        first = next(iter(found[next(key for key in found if key[0] == model)].values()))
        lines.append(
            f"## {model} ({int(first['samples'])} samples, float {100 * first['float_accuracy']:.1f} %)\n"
        )
        for rounding in ("nearest", "gptq"):
            lines += section(found, model, rounding)
    (folder / "results.md").write_text("\n".join(lines), encoding="utf-8")
    try:
        import matplotlib as mpl
    except ImportError:
        print("no matplotlib, so no picture: pip install matplotlib")
        return
    mpl.use("Agg")
    draw(found, folder / "results.png")


def gather(results: dict[str, Any]) -> dict[tuple[str, str, str], Series]:
    """Means over the draws, by model, rounding and curve, then by bits."""
    draws: dict[tuple[str, str, str], dict[float, list[dict[str, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for name, result in results.items():
        model, rounding, curve, bits, _ = name.split("/")
        draws[model, rounding, curve][float(bits)].append(result)
    return {
        key: {
            bits: {name: fmean(each[name] for each in several) for name in several[0]}
            | {"draws": len(several)}
            for bits, several in sorted(series.items())
        }
        for key, series in draws.items()
    }


def section(found: dict[tuple[str, str, str], Series], model: str, rounding: str) -> list[str]:
    curves = {curve: found.get((model, rounding, curve), {}) for curve in CURVES}
    bits = sorted({each for series in curves.values() for each in series})
    if not bits:
        return []
    count = max(int(row["draws"]) for series in curves.values() for row in series.values())
    title = "Rounding to nearest" if rounding == "nearest" else "Rounding by the error of the outputs (GPTQ)"
    lines = [f"### {title}, {count} draw{'s' * (count > 1)}\n", "| bits | " + " | ".join(CURVES) + " |"]
    lines.append("|---" * (len(CURVES) + 1) + "|")
    for each in bits:
        cells = [cell(curves[curve].get(each)) for curve in CURVES]
        lines.append(f"| {each:g} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def cell(row: dict[str, float] | None) -> str:
    if row is None:
        return ""
    return f"{100 * row['accuracy']:.1f} %, {100 * row['agreement']:.1f} %, {row['sqnr_db']:.1f} dB"


def draw(found: dict[tuple[str, str, str], Series], place: Path) -> None:
    import matplotlib.pyplot as plt

    models = sorted({model for model, _, _ in found})
    figure, axes = plt.subplots(1, len(models), figsize=(5.2 * len(models), 4.0), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for (name, rounding, curve), series in sorted(
            found.items(), key=lambda each: CURVES.index(each[0][2])
        ):
            if name == model:
                axis.plot(
                    series.keys(),
                    [100 * row["accuracy"] for row in series.values()],
                    color=COLOURS[curve],
                    linestyle="-" if rounding == "gptq" else ":",
                    marker="o",
                    markersize=3,
                    label=f"{curve}, {'GPTQ' if rounding == 'gptq' else 'nearest'}",
                )
                float_accuracy = 100 * next(iter(series.values()))["float_accuracy"]
        axis.axhline(float_accuracy, color="black", linewidth=0.8, linestyle="--")
        axis.text(
            0.02, float_accuracy, "float", fontsize=8, va="bottom", transform=axis.get_yaxis_transform()
        )
        axis.set_title(model)
        axis.set_xlabel("average bits of a weight (activations: 8)")
        axis.set_ylabel("top-1 accuracy, %")
        axis.grid(visible=True, linewidth=0.3)
    axes[0][-1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(place, dpi=110)


if __name__ == "__main__":
    here = Path(__file__).parent
    write_table(json.loads((here / "results.json").read_text(encoding="utf-8")), here)
