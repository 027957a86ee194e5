"""What the terminal shows of runs, bundles and devices, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgepipe.bundle import Artifact, Bundle
from edgepipe.convert.emission import Emission
from edgepipe.evaluate import Estimate, Evaluation, Judged
from edgepipe.report import text
from edgepipe.report.compare import ArtifactComparison, RunComparison, caveats_of, compare
from edgepipe.report.device import facts_table, push_summary
from edgepipe.report.layout import FigureTable, figure_table
from edgepipe.report.view import MARKS, RunView, notes_of, view_of
from edgepipe.store import ResultSummary, Run, RunSummary
from edgepipe.units import format_bytes, format_ns, format_share

__all__ = [
    "bundle_summary",
    "compare",
    "comparison_table",
    "deploy_summary",
    "emission_data",
    "emission_summary",
    "evaluation_table",
    "facts_table",
    "push_summary",
    "runs_table",
]

REPORT = "report.html"
MAX_NOTE_LINES = 8
WITHIN_RUNS = (
    "intervals cover the variation within each run alone: only runs repeated in turn tell a small difference"
    " from noise"
)
_STYLES = {"VALID": "bold green", "INVALID": "bold red", "NOT MEASURED": "bold yellow"}


def deploy_summary(run: Run, store: Path) -> RenderableType:
    """A run: one row an artifact, then what to know of the figures, then where everything lies."""
    view = view_of(run)
    parts: list[RenderableType] = [_headline(view), Text()]
    parts += [_host_table(view), *(_agreement(run)), _device_table(view)]
    parts += [Text(why, "dim") for why in text.without_energy(run)]
    parts += _notes(view)
    parts.append(_provenance(run, store))
    return Group(*parts)


def bundle_summary(bundle: Bundle) -> RenderableType:
    """A bundle: one row an artifact, and the passes that made them."""
    manifest = bundle.manifest
    table = figure_table("artifact", ">size", "inputs", "operators", "needs")
    for artifact in manifest.artifacts:
        table.add(
            Text(artifact.name, "bold"),
            format_bytes(artifact.size_bytes),
            _ports(artifact),
            _counts(artifact.op_counts),
            _pairs(artifact.needs, "≥"),
        )
    steps = figure_table("step", ">before", ">after", ">SQNR on calibration samples")
    for step in manifest.steps:
        sqnr = text.NONE if step.sqnr_db is None else f"{step.sqnr_db:.1f} dB"
        before, after = format_bytes(step.size_in_bytes), format_bytes(step.size_out_bytes)
        steps.add(step.use, before, after, sqnr)
    head = Text.assemble(
        (manifest.model_name, "bold"),
        f" for {manifest.target}, recipe {manifest.recipe}, seed {manifest.seed}",
    )
    parts: list[RenderableType] = [head, table, steps]
    if manifest.calibration and manifest.calibration.random:
        parts.append(Text("calibrated on random data: unfit for accuracy claims", "bold red"))
    parts.append(Text(f"{bundle.folder}  sha256 {bundle.digest[:12]}", "dim"))
    return Group(*parts)


def emission_summary(emission: Emission, output: Path) -> RenderableType:
    """A converted file."""
    return Text.assemble(
        (str(output), "bold"),
        f"  {emission.name}, {format_bytes(len(emission.payload))}\n",
        (f"{_counts(emission.op_counts)}\nneeds {_pairs(emission.needs, '≥')}", "dim"),
    )


def emission_data(emission: Emission, output: Path) -> dict[str, Any]:
    """A converted file as JSON."""
    from edgepipe.model import digest_bytes

    return {
        "file": str(output),
        "format": emission.format,
        "precision": emission.precision,
        "size_bytes": len(emission.payload),
        "digest": digest_bytes(emission.payload),
        "op_counts": emission.op_counts,
        "needs": emission.needs,
    }


def evaluation_table(judged: Judged) -> RenderableType:
    """Evaluations on this machine: the float model first, then one row an artifact."""
    table = figure_table("artifact", ">accuracy %", ">against float", ">agreement %", ">SQNR", ">max error")
    table.add("float", *_evaluation_cells(judged.reference, reference=True), text.NONE)
    for name, evaluation in judged.artifacts.items():
        errors = [output.max_abs_error for output in evaluation.fidelity if output.max_abs_error is not None]
        worst = f"{max(errors):.3g}" if errors else text.NONE
        table.add(Text(name, "bold"), *_evaluation_cells(evaluation), worst)
    first = judged.reference
    parts: list[RenderableType] = [table]
    parts += [Text(f"{name}: {_with_interval(e)}") for name, e in judged.agreement.items()]
    unfit = dict.fromkeys(why for e in judged.artifacts.values() for why in e.unfit)
    parts += [Text(f"unfit for accuracy claims: {why}", "bold red") for why in unfit]
    parts.append(Text(f"{first.samples} samples of {first.data_source}; 95 % intervals", "dim"))
    return Group(*parts)


def runs_table(runs: Sequence[RunSummary]) -> RenderableType:
    """Every run in short, the newest first."""
    if not runs:
        return Text("no runs yet: make one with `edgepipe deploy`")
    return Group(*(part for run in runs for part in _run_in_short(run)))


def _run_in_short(run: RunSummary) -> list[RenderableType]:
    if run.problem:
        return [Text.assemble((run.id, "bold"), "  ", (run.problem, "red"), "\n")]
    mark = MARKS[run.kind]
    where = run.host + (_marked(mark) if mark not in run.host else "")
    table = FigureTable(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, width in (("artifact", 16), ("size", 9), ("quality", 18), ("median", 20), ("verdict", 8)):
        table.add_column(name, min_width=width, justify="left" if width in {16, 8} else "right")
    for each in run.results:
        table.add(
            f"  {each.name}",
            format_bytes(each.size_bytes),
            _quality(each),
            text.NONE if each.median_ns is None else format_ns(each.median_ns) + _marked(mark),
            Text(each.verdict or text.NONE, _STYLES.get(each.verdict, "dim")),
        )
    return [Text.assemble((run.id, "bold"), (f"  {where}", "dim")), table, Text()]


def _quality(summary: ResultSummary) -> str:
    """Accuracy, or where there are no labels the agreement with the float model."""
    if summary.accuracy is not None:
        return f"accuracy {format_share(summary.accuracy)}"
    return text.NONE if summary.agreement is None else f"agreement {format_share(summary.agreement)}"


def comparison_table(comparison: RunComparison) -> RenderableType:
    """Two runs beside each other: what may be set against each other, and why the rest may not."""
    first, second = (MARKS[kind] for kind in comparison.kinds)
    head = Text.assemble("A ", (comparison.first, "bold"), "\nB ", (comparison.second, "bold"))
    mark = f"\n{first}" if first and first == second else ""
    table = figure_table(
        "artifact", ">size", ">accuracy", f">median{mark}", f">B / A{mark}", f">peak memory{mark}"
    )
    for artifact in comparison.artifacts:
        table.add(*_comparison_cells(artifact, comparison))
    parts: list[RenderableType] = [head, table]
    for what, barriers in (
        ("latency, memory and energy are", comparison.latency_barriers),
        ("accuracy is", comparison.accuracy_barriers),
    ):
        parts += [Text(f"{what} not comparable: {why}", "bold red") for why in barriers]
    for artifact in comparison.artifacts:
        barred = (f"{artifact.name} is not comparable: {why}" for why in artifact.latency_barriers)
        parts += [Text(line, "bold red") for line in barred]
        parts += [Text(f"{artifact.name}: {why}", "yellow") for why in artifact.differences]
    parts += [Text(why, "yellow") for why in comparison.notes]
    caveats = caveats_of(comparison)
    parts += [Text(why, "yellow") for why in caveats[:MAX_NOTE_LINES]]
    if len(caveats) > MAX_NOTE_LINES:
        parts.append(Text(f"and {len(caveats) - MAX_NOTE_LINES} more: see `edgepipe runs show`", "yellow"))
    if any(artifact.latency_ratio for artifact in comparison.artifacts):
        parts.append(Text(WITHIN_RUNS, "dim"))
    for label, names in (("A", comparison.only_first), ("B", comparison.only_second)):
        if names:
            parts.append(Text(f"only in {label}: {', '.join(names)}", "dim"))
    return Group(*parts)


def _comparison_cells(artifact: ArtifactComparison, comparison: RunComparison) -> list[RenderableType]:
    marks = [MARKS[kind] for kind in comparison.kinds]
    if marks[0] == marks[1]:
        marks = ["", ""]  # the column's head says it for both
    medians = [text.median(each) + _marked(mark) for each, mark in zip(artifact.latency, marks, strict=True)]
    memory = [
        text.size(each) + _marked(mark) for each, mark in zip(artifact.peak_memory_bytes, marks, strict=True)
    ]
    ratio = artifact.latency_ratio
    return [
        Text.assemble((artifact.name, "bold"), ("\nsame file" if artifact.same_file else "", "dim")),
        _from_to(map(format_bytes, artifact.size_bytes)),
        _from_to(map(text.share, artifact.accuracy)),
        _from_to(medians),
        _two(text.times(ratio), text.times_interval(ratio)),
        _from_to(memory),
    ]


def _from_to(figures: Iterable[str]) -> str:
    """The figure of A above that of B."""
    return "\n→ ".join(figures)


def _headline(view: RunView) -> Text:
    run = view.run
    head = Text.assemble(
        (view.state, _STYLES[view.state]), "  ", (run.model_name, "bold"), " → ", (run.target, "bold"),
        " on ", (run.device_name, "bold"),
    )  # fmt: skip
    if view.mark:
        head.append(
            f"  [{view.mark}: the host's CPU, no board]" if view.mark == "embedded" else "  [emulated]"
        )
    return head


def _host_table(view: RunView) -> FigureTable:
    """What the artifacts compute: figures of this machine."""
    data = view.run.data
    title = f"computed on this host, {text.samples(data)}" if data else "not evaluated: no data"
    table = figure_table(
        "artifact", ">size", ">accuracy %", ">against float", ">agreement %", ">SQNR", title=title
    )
    if view.run.reference:
        table.add("float model", text.NONE, *_evaluation_cells(view.run.reference, reference=True))
    for each in view.results:
        artifact = each.result.artifact
        table.add(
            Text(each.name, "bold"),
            format_bytes(artifact.size_bytes),
            *_evaluation_cells(each.result.evaluation),
        )
    return table


def _agreement(run: Run) -> list[RenderableType]:
    return [Text(f"{pair}: {_with_interval(each)}\n", "dim") for pair, each in run.agreement.items()]


def _device_table(view: RunView) -> FigureTable:
    """How the artifacts run: figures of the device, each column marked where that is no board."""
    mark = f"\n{view.mark}" if view.mark else ""
    figures = [f">{name}{mark}" for name in ("median", "p90", "speed-up", "peak memory", "energy")]
    table = figure_table("artifact", *figures, "verdict", title=f"measured on {view.run.device_name}")
    for each in view.results:
        result, measurement = each.result, each.result.measurement
        runtime = f"{measurement.runtime} {measurement.runtime_version}" if measurement else ""
        ran_on = f"\n{text.ran_on(measurement)}" if measurement else ""
        memory = measurement.memory.peak_bytes if measurement and measurement.memory else None
        p90 = text.NONE if each.latency is None else text.quantile(each.latency.p90_ns)
        table.add(
            _two(Text(result.artifact.name, "bold"), runtime + ran_on),
            _two(text.median(each.latency), text.median_interval(each.latency)),
            p90,
            _two(text.times(each.speedup), text.times_interval(each.speedup)),
            text.size(memory),
            _two(text.energy(each.energy), "net" if each.energy and each.energy.net_mj is not None else ""),
            Text(each.outcome, _STYLES.get(each.outcome, "bold red" if measurement else "yellow")),
        )
    return table


def _evaluation_cells(evaluation: Evaluation | None, *, reference: bool = False) -> list[RenderableType]:
    """Accuracy, difference, agreement, SQNR."""
    comparison = evaluation.comparison if evaluation else None
    accuracy = comparison.accuracy if comparison else None
    if reference:
        return [_two(text.share(accuracy), text.share_interval(accuracy)), *[text.NONE] * 3]
    difference = comparison.difference if comparison else None
    agreement = comparison.agreement if comparison else None
    return [
        _two(text.share(accuracy), text.share_interval(accuracy)),
        _two(text.points(difference), text.points_interval(difference)),
        _two(text.share(agreement), text.share_interval(agreement)),
        text.sqnr(evaluation),
    ]


def _notes(view: RunView) -> list[RenderableType]:
    """Reasons with the artifacts they concern and what to do about them, and as many warnings as fit."""
    parts: list[RenderableType] = []
    lines = rest = 0
    for note in notes_of(view):
        if note.label == "NOTE" and lines and lines + len(note.seen) > MAX_NOTE_LINES:
            rest += len(note.seen)
            continue
        lines += len(note.seen) + bool(note.advice)
        part = Text()
        for who, seen in note.seen:
            part.append("● ", "yellow" if note.label == "NOTE" else "bold red")
            part.append(f"{who}: {seen}\n" if who else f"{seen}\n")
        parts.append(part.append(f"  → {note.advice}", "dim") if note.advice else part)
    if rest:
        parts.append(Text(f"and {rest} more: see the report", "dim"))
    return parts


def _provenance(run: Run, store: Path) -> Text:
    folder = store / run.id
    lines = ["in brackets: 95 % intervals; speed-up: against the float artifact of the same format"]
    if (folder / REPORT).is_file():
        lines.append(f"report  {folder / REPORT}")
    lines.append(f"run     {folder / 'run.json'}")
    return Text("\n".join(lines), "dim")


def _two(first: str | Text, second: str) -> Text:
    """A figure with its detail on the next line."""
    return Text.assemble(first, ("\n" + second if second else "", "dim"))


def _marked(mark: str) -> str:
    return f" ({mark})" if mark else ""


def _with_interval(estimate: Estimate) -> str:
    return f"{text.share(estimate)} of samples {text.share_interval(estimate)}"


def _ports(artifact: Artifact) -> str:
    return ", ".join(f"{port.dtype} {list(port.shape)}" for port in artifact.inputs)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count}×{name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _pairs(values: Mapping[str, str], joint: str) -> str:
    return ", ".join(f"{name}{joint}{value}" for name, value in values.items())
