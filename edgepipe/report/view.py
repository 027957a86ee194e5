"""What a run amounts to, computed from its raw samples alike for every way of showing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from edgepipe.measure import (
    Energy,
    Interval,
    Kind,
    Latency,
    Measurement,
    Verdict,
    energy_of,
    latency_of,
    ratio_of_medians,
    verdict_of,
)
from edgepipe.store import ArtifactResult, Run

MARKS: dict[Kind, str] = {"board": "", "embedded": "embedded", "emulated": "emulated"}
"""The word that stands beside every figure that is no board's."""


Label = Literal["UNFIT", "INVALID", "NOTE"]


class ResultView(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact's result with the statistics of its samples.

    Attributes:
        result: The record.
        latency: None where nothing was measured, and where an emulator was: its times are no device's.
        energy: None likewise.
        verdict: None where it was not tried.
        baseline: The artifact that `speedup` is against: the float one of the same format; "" without one.
        speedup: Median latency of the baseline over this one's, with its interval.
    """

    result: ArtifactResult
    latency: Latency | None = None
    energy: Energy | None = None
    verdict: Verdict | None = None
    baseline: str = ""
    speedup: Interval | None = None

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.result.artifact.name

    @property
    def outcome(self) -> str:
        """The verdict in a word or two, or why there is none."""
        if self.verdict is None:
            return "not measured"
        measurement = self.result.measurement
        failed = measurement is not None and measurement.outcome != "ok"
        return measurement.outcome if failed and measurement else self.verdict.state


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen that calls for one and the same remedy.

    Attributes:
        label: "UNFIT", "INVALID" or "NOTE".
        seen: What was seen, each with the artifacts that it concerns, "" for all.
        advice: What to do about it.
    """

    label: Label
    seen: tuple[tuple[str, str], ...]
    advice: str


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run with the statistics of its samples.

    Attributes:
        run: The record.
        results: One for each artifact.
        mark: The word that brands every device figure: "embedded", "emulated", or "" for a board.
    """

    run: Run
    results: tuple[ResultView, ...]
    mark: str

    @property
    def state(self) -> str:
        """VALID where all that was measured may be quoted, else INVALID, or NOT MEASURED."""
        states = {view.verdict.state for view in self.results if view.verdict}
        if not states:
            return "NOT MEASURED"
        return "INVALID" if "INVALID" in states else "VALID"

    @property
    def unfit(self) -> tuple[str, ...]:
        """Why no claim about accuracy may be built on the run."""
        calibration = self.run.calibration
        # Said even where nothing was evaluated: somebody else may evaluate these artifacts.
        reasons = ["calibrated on random data"] if calibration is not None and calibration.random else []
        reasons += (
            r for view in self.results if view.result.evaluation for r in view.result.evaluation.unfit
        )
        return tuple(dict.fromkeys(reasons))

    @property
    def best(self) -> ResultView | None:
        """The fastest quantized artifact that may be quoted; else the fastest that is quantized, or any."""
        timed = [view for view in self.results if view.latency and view.latency.median_ns]
        quantized = [view for view in timed if view.result.artifact.precision not in ("float32", "float16")]
        valid = [view for view in quantized if view.verdict and view.verdict.state == "VALID"]
        return min(valid or quantized or timed, key=_median_ns, default=None)


def view_of(run: Run) -> RunView:
    """Computes what is shown of a run."""
    kinds = {result.measurement.kind for result in run.results if result.measurement} | {run.kind}
    kind: Kind = "emulated" if "emulated" in kinds else "embedded" if "embedded" in kinds else "board"
    return RunView(run=run, results=tuple(_view(result, run) for result in run.results), mark=MARKS[kind])


def notes_of(view: RunView) -> tuple[Note, ...]:
    """Every reason and warning once, the gravest first, gathered by their remedy."""
    artifacts: dict[tuple[Label, str, str], list[str]] = {}
    for label, advice, seen, name in _findings(view):
        artifacts.setdefault((label, advice, seen), []).append(name)
    gathered: dict[tuple[Label, str], list[tuple[str, str]]] = {}
    for (label, advice, seen), names in artifacts.items():
        who = "" if "" in names or len(names) == len(view.results) else ", ".join(names)
        gathered.setdefault((label, advice), []).append((who, seen))
    notes = [Note(label=label, advice=advice, seen=tuple(seen)) for (label, advice), seen in gathered.items()]
    return tuple(sorted(notes, key=lambda note: note.label == "NOTE"))


def _findings(view: RunView) -> Iterator[tuple[Label, str, str, str]]:
    """Label, advice, what was seen, and the artifact that it was seen at."""
    for why in view.unfit:
        yield (
            "UNFIT",
            "calibrate and evaluate on real, separate samples",
            f"unfit for accuracy claims: {why}",
            "",
        )
    for each in view.results:
        if each.result.skipped:
            yield "INVALID", "", each.result.skipped, each.name
        for finding in each.verdict.reasons if each.verdict else ():
            yield "INVALID", finding.advice, finding.text, each.name
        for finding in each.verdict.warnings if each.verdict else ():
            yield "NOTE", finding.advice, finding.text, each.name


def _view(result: ArtifactResult, run: Run) -> ResultView:
    measurement = result.measurement
    if measurement is None:
        return ResultView(result=result)
    baseline = _baseline(result, run)
    emulated = measurement.kind == "emulated"
    latency = None if emulated else latency_of(measurement)
    return ResultView(
        result=result,
        latency=latency,
        energy=energy_of(measurement) if measurement.latencies_ns else None,
        verdict=verdict_of(measurement, latency),
        baseline=baseline.artifact.name if baseline else "",
        speedup=None if emulated else _speedup(measurement, baseline.measurement if baseline else None),
    )


def _baseline(result: ArtifactResult, run: Run) -> ArtifactResult | None:
    if result.artifact.precision == "float32":
        return None
    for other in run.results:
        if other.artifact.precision == "float32" and other.artifact.format == result.artifact.format:
            return other
    return None


def _speedup(measurement: Measurement, baseline: Measurement | None) -> Interval | None:
    """Medians only of measurements that both have them and ran on the same number of threads."""
    if baseline is None or baseline.threads != measurement.threads or baseline.kind != measurement.kind:
        return None
    if min(len(measurement.latencies_ns), len(baseline.latencies_ns)) < 11:
        return None
    return ratio_of_medians(baseline.latencies_ns, measurement.latencies_ns)


def _median_ns(view: ResultView) -> float:
    return view.latency.median_ns.value if view.latency and view.latency.median_ns else float("inf")
