"""Runs as one HTML file: no script, no request, opens anywhere and prints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgepipe.bundle import Step
from edgepipe.files import write_whole
from edgepipe.quantize.explain.explanation import Explanation
from edgepipe.report import charts, explanation, text
from edgepipe.report.layout import short
from edgepipe.report.profile import profile
from edgepipe.report.view import RunView, notes_of, view_of
from edgepipe.store import Run
from edgepipe.units import format_bytes, format_ns, format_share

TEMPLATE = "report.html"
EXPLANATION = "explanation.html"


def write_report(runs: Sequence[Run], output: Path) -> None:
    """Writes runs as one self-contained HTML file, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    _write_page(output, render_report(runs))


def render_report(runs: Sequence[Run]) -> str:
    """The page; the same bytes for the same runs."""
    sections = [section(view_of(run)) for run in runs]
    return _environment().get_template(TEMPLATE).render(sections=sections)


def write_explanation(found: Explanation, output: Path) -> None:
    """Writes an explanation as one self-contained HTML file, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    _write_page(output, render_explanation(found))


def render_explanation(found: Explanation) -> str:
    """The page; the same bytes for the same explanation."""
    return _environment().get_template(EXPLANATION).render(e=found, drawn=profile(found))


def _write_page(output: Path, page: str) -> None:
    write_whole(
        output,
        page.encode(),
        what="the report cannot be written",
        remedy="free some space, or name another file with -o",
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("edgepipe", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "text": text,
        "format_bytes": format_bytes,
        "format_ns": format_ns,
        "format_share": format_share,
        "chart": charts,
        "shown": explanation,
        "shorten": short,
    }
    return environment


def section(view: RunView) -> dict[str, Any]:
    """What the template shows of one run."""
    differences = [
        (each.name, each.result.evaluation.comparison.difference)
        for each in view.results
        if each.result.evaluation
        and each.result.evaluation.comparison
        and each.result.evaluation.comparison.difference
    ]
    return {
        "view": view,
        "run": view.run,
        "best": view.best,
        "notes": notes_of(view),
        "size_ratio": _size_ratio(view),
        "histograms": charts.histograms(view.results),
        "traces": charts.traces(view.results),
        "forest": charts.forest(differences),
        "differences": dict(differences),
        "best_difference": dict(differences).get(view.best.name) if view.best else None,
        "largest_bytes": max((each.result.artifact.size_bytes for each in view.results), default=1),
        "facts": facts_rows(view.run.device),
        "layers": None if view.run.diagnosis is None else profile(view.run.diagnosis),
        "steps": [(step, _settings(step)) for step in view.run.steps],
    }


def facts_rows(device: dict[str, object]) -> list[tuple[str, str]]:
    """What the device said of itself, flattened: ("cpu model", "Cortex-A72")."""
    rows: list[tuple[str, str]] = []
    for name, value in device.items():
        label = name.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, dict):
            rows += [(f"{label} {inner}", each) for inner, each in facts_rows(value)]
        elif isinstance(value, list):
            rows.append((label, ", ".join(map(_brief, value))))
        else:
            rows.append((label, _scalar(name, value)))
    return [(label, value) for label, value in rows if value]


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(
            str(each) for each in value.values() if isinstance(each, str | int | float) and each != ""
        )
    return str(value)


def _scalar(name: str, value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    return str(value)


def _size_ratio(view: RunView) -> float | None:
    """How many times smaller the best artifact is than its float one."""
    best = view.best
    sizes = {each.name: each.result.artifact.size_bytes for each in view.results}
    if best is None or best.baseline not in sizes or not best.result.artifact.size_bytes:
        return None
    return sizes[best.baseline] / best.result.artifact.size_bytes


def _settings(step: Step) -> str:
    return ", ".join(f"{name} = {value}" for name, value in step.settings.items())
