"""Two runs beside each other: ratios with intervals, and why they may not be compared."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edgepipe.evaluate import Estimate
from edgepipe.measure import (
    Interval,
    Kind,
    Latency,
    Measurement,
    Verdict,
    latency_of,
    ratio_of_medians,
    starved,
    verdict_of,
)
from edgepipe.measure.statistics import RUNS_NEEDED
from edgepipe.measure.verdict import core_share
from edgepipe.store import ArtifactResult, Run
from edgepipe.units import format_share


class ArtifactComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact in both runs; ratios are the second over the first.

    Attributes:
        name: The artifact.
        same_file: True where both ran the same bytes.
        size_bytes: Sizes in both.
        accuracy: Accuracies in both; None without labels.
        latency: Latency statistics in both; None where not measured.
        latency_ratio: Of the medians; None where a barrier forbids it, or one was not measured.
            Its interval covers the variation within both runs, not that from one run to the next.
        latency_barriers: Why these two latencies may not be compared: one is INVALID, or other load took
            the core away.
        peak_memory_bytes: In both; None where unknown.
        differences: What else differs, and so has a part in the ratio: runtime, threads, governor.
        verdicts: On both measurements, with all that weakens them; None where not measured.
    """

    name: str
    same_file: bool
    size_bytes: tuple[int, int]
    accuracy: tuple[Estimate | None, Estimate | None]
    latency: tuple[Latency | None, Latency | None]
    latency_ratio: Interval | None
    peak_memory_bytes: tuple[int | None, int | None]
    differences: tuple[str, ...]
    latency_barriers: tuple[str, ...] = ()
    verdicts: tuple[Verdict | None, Verdict | None] = (None, None)


class RunComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs, artifact by artifact.

    Attributes:
        first: Id of the first run.
        second: Id of the second.
        kinds: What each was measured on: "board", "embedded", "emulated".
        latency_barriers: Why no latency, memory or energy is set against the other's.
        accuracy_barriers: Why no accuracy is set against the other's.
        artifacts: Those of the same name in both runs.
        only_first: Artifacts of the first run alone.
        only_second: Artifacts of the second run alone.
        notes: What differs between the runs without forbidding anything.
    """

    first: str
    second: str
    kinds: tuple[Kind, Kind]
    latency_barriers: tuple[str, ...]
    accuracy_barriers: tuple[str, ...]
    artifacts: tuple[ArtifactComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    notes: tuple[str, ...] = ()


def compare(first: Run, second: Run) -> RunComparison:
    """Sets two runs against each other where that means something, and says why where it does not."""
    barriers = _latency_barriers(first, second)
    ours = {result.artifact.name: result for result in first.results}
    theirs = {result.artifact.name: result for result in second.results}
    return RunComparison(
        first=first.id,
        second=second.id,
        kinds=(first.kind, second.kind),
        latency_barriers=barriers,
        accuracy_barriers=_accuracy_barriers(first, second),
        artifacts=tuple(
            _compare_results(result, theirs[name], comparable=not barriers)
            for name, result in ours.items()
            if name in theirs
        ),
        only_first=tuple(name for name in ours if name not in theirs),
        only_second=tuple(name for name in theirs if name not in ours),
        notes=_notes(first, second),
    )


def caveats_of(comparison: RunComparison) -> tuple[str, ...]:
    """What weakens the measurements on either side, each once, with the artifacts that it concerns."""
    seen: dict[str, dict[str, list[str]]] = {}
    for artifact in comparison.artifacts:
        for label, verdict in zip("AB", artifact.verdicts, strict=True):
            for warning in verdict.warnings if verdict else ():
                seen.setdefault(warning.text, {}).setdefault(artifact.name, []).append(label)
    found = []
    for text, sides in seen.items():
        everywhere = len(sides) == len(comparison.artifacts) and all(
            len(each) == 2 for each in sides.values()
        )
        who = ", ".join(f"{name} in {' and '.join(labels)}" for name, labels in sides.items())
        found.append(text if everywhere else f"{who}: {text}")
    return tuple(found)


def _latency_barriers(first: Run, second: Run) -> tuple[str, ...]:
    found = []
    if first.kind != second.kind:
        found.append(f"one was measured on {_kind(first)}, the other on {_kind(second)}")
    elif first.kind == "emulated":
        found.append("both were emulated: the times are the emulator's")
    if first.device_name != second.device_name:
        found.append(f"the devices differ: {first.device_name}, and {second.device_name}")
    return tuple(found)


def _notes(first: Run, second: Run) -> tuple[str, ...]:
    found = []
    for what, one, other in (
        ("models", first.model_digest, second.model_digest),
        ("agents", first.agent_digest, second.agent_digest),
    ):
        if one != other:
            found.append(f"the {what} differ: {one[:12]}, and {other[:12]}")
    return tuple(found)


def _accuracy_barriers(first: Run, second: Run) -> tuple[str, ...]:
    if first.data is None or second.data is None:
        return ("not both were evaluated",)
    if first.data.digest != second.data.digest:
        return (f"other evaluation data: {first.data.digest[:12]}, and {second.data.digest[:12]}",)
    if first.data.random:
        return ("evaluated on random data",)
    return ()


def _kind(run: Run) -> str:
    return {"board": "a board", "embedded": "an embedded device (the host's CPU)"}.get(
        run.kind, "an emulator"
    )


def _compare_results(
    first: ArtifactResult, second: ArtifactResult, *, comparable: bool
) -> ArtifactComparison:
    before, after = first.measurement, second.measurement
    latency = _latency(before), _latency(after)
    verdicts = _verdict(before, latency[0]), _verdict(after, latency[1])
    barriers = (*_barriers("A", before, verdicts[0]), *_barriers("B", after, verdicts[1]))
    differences: tuple[str, ...] = ()
    ratio = None
    if before and after and min(len(before.latencies_ns), len(after.latencies_ns)) >= RUNS_NEEDED[0.5]:
        differences = _differences(before, after)
        if comparable and not barriers:
            ratio = ratio_of_medians(after.latencies_ns, before.latencies_ns)
    return ArtifactComparison(
        name=first.artifact.name,
        same_file=first.artifact.digest == second.artifact.digest,
        size_bytes=(first.artifact.size_bytes, second.artifact.size_bytes),
        accuracy=(_accuracy(first), _accuracy(second)),
        latency=latency,
        latency_ratio=ratio,
        peak_memory_bytes=(_peak_bytes(first), _peak_bytes(second)),
        differences=differences,
        latency_barriers=barriers if comparable else (),
        verdicts=verdicts,
    )


def _barriers(label: str, measurement: Measurement | None, verdict: Verdict | None) -> Iterator[str]:
    """Why a measurement's latency may be set against no other's."""
    if measurement is None or verdict is None:
        return
    for reason in verdict.reasons:
        yield f"{label} is {verdict.state}: {reason.text}"
    if starved(measurement):
        share = format_share(core_share(measurement) or 0.0)
        yield f"in {label} other processes left it {share} of a core: stop them and measure again"


def _differences(first: Measurement, second: Measurement) -> tuple[str, ...]:
    found = []
    for what, one, other in (
        (
            "runtimes",
            f"{first.runtime} {first.runtime_version}",
            f"{second.runtime} {second.runtime_version}",
        ),
        ("threads", str(first.threads), str(second.threads)),
        ("providers", ", ".join(first.providers), ", ".join(second.providers)),
        ("governors", ", ".join(first.governors.values()), ", ".join(second.governors.values())),
    ):
        if one != other:
            found.append(f"the {what} differ: {one}, and {other}")
    return tuple(found)


def _accuracy(result: ArtifactResult) -> Estimate | None:
    comparison = result.evaluation.comparison if result.evaluation else None
    return comparison.accuracy if comparison else None


def _latency(measurement: Measurement | None) -> Latency | None:
    """An emulator's times are shown nowhere: they say nothing about a device's."""
    return latency_of(measurement) if measurement and measurement.kind != "emulated" else None


def _verdict(measurement: Measurement | None, latency: Latency | None) -> Verdict | None:
    return verdict_of(measurement, latency) if measurement else None


def _peak_bytes(result: ArtifactResult) -> int | None:
    memory = result.measurement.memory if result.measurement else None
    return (memory.peak_bytes or None) if memory else None
