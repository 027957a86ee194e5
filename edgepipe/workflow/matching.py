"""What a device made of artifacts then and now: outputs bit for bit, memory, latency between boards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edgepipe.bundle import Artifact
from edgepipe.measure import Measurement, Verification, ratio_of_medians, verdict_of
from edgepipe.provenance import Check, State
from edgepipe.store import ArtifactResult, Run
from edgepipe.units import format_bytes, format_ns
from edgepipe.workflow.measure import difference_in_words
from edgepipe.workflow.place import Device

MEMORY_TOLERANCE = 0.10
"""Of the peak: pages that an allocator keeps differ from one start of a process to the next."""
LATENCY_TOLERANCE = 0.10
"""Of the median: two boards of a kind, or one on two days, differ by some per cent."""


def compare_results(run: Run, device: Device, results: tuple[ArtifactResult, ...]) -> Iterator[Check]:
    """Whether a device computes the same outputs as then, in as much memory.

    Latencies are compared between two boards of one kind alone: an emulator's say nothing of a board's.
    """
    found = {result.artifact.name: result for result in results}
    for then in run.results:
        now = found.get(then.artifact.name)
        if now is None:
            continue
        checks = [_outputs(run, device, then, now)]
        if then.measurement is not None and now.measurement is not None:
            checks += [_memory(run, device, then, now), _latency(run, device, then, now)]
        for check in checks:
            yield msgspec.structs.replace(check, artifact=then.artifact.name)


def _outputs(run: Run, device: Device, then: ArtifactResult, now: ArtifactResult) -> Check:
    before, after = then.verification, now.verification
    if before is None and after is None:
        return Check(subject="outputs", state="not compared", recorded=then.skipped, found=now.skipped)
    if before is None or after is None:
        return Check(
            subject="outputs",
            state="not compared" if before is None else "differs",
            recorded=then.skipped if before is None else difference_in_words(before),
            found=now.skipped if after is None else difference_in_words(after),
            note="it did not run then" if before is None else "it does not run now",
        )
    texts = difference_in_words(before), difference_in_words(after)
    circumstances = "; ".join(_circumstances(run, device, then, now))
    digests = _digests(before, then.artifact)
    if digests is None:
        same = before.outputs == after.outputs
        return Check(
            subject="outputs", state="within" if same else "differs", recorded=texts[0], found=texts[1],
            note="the run keeps no digests of outputs: compared by how far they are from the host's",
        )  # fmt: skip
    place = _first_difference(digests, after.digests, then.artifact)
    state: State = "differs" if place else "equal"
    note = "; ".join(filter(None, [place, circumstances if place else "bit for bit"]))
    return Check(subject="outputs", state=state, recorded=texts[0], found=texts[1], note=note)


def _digests(verification: Verification, artifact: Artifact) -> tuple[tuple[str, ...], ...] | None:
    """Digests of the outputs; of an old record, those of the golden ones if it says that they are equal."""
    if verification.digests:
        return verification.digests
    if any(output.differing for output in verification.outputs):
        return None
    return tuple(tuple(golden.digests[file] for file in golden.outputs) for golden in artifact.golden)


def _first_difference(
    then: tuple[tuple[str, ...], ...], now: tuple[tuple[str, ...], ...], artifact: Artifact
) -> str:
    if len(then) != len(now):
        return f"{len(then)} samples then, {len(now)} now"
    differing = [index for index, pair in enumerate(zip(then, now, strict=True)) if pair[0] != pair[1]]
    if not differing:
        return ""
    pairs = zip(artifact.outputs, then[differing[0]], now[differing[0]], strict=True)
    port = next(port.name for port, before, after in pairs if before != after)
    return f"{len(differing)} of {len(then)} samples, the first is {differing[0]}, output {port}"


def _circumstances(run: Run, device: Device, then: ArtifactResult, now: ArtifactResult) -> Iterator[str]:
    """What is not as it was on the device, and so may explain a difference."""
    before, after = then.measurement, now.measurement
    pairs = [
        ("architecture", _architecture(run), device.facts.cpu.architecture),
        ("CPU", _cpu(run).get("model", ""), device.facts.cpu.model),
    ]
    if before is not None and after is not None:
        pairs.append(("runtime", _runtime(before), _runtime(after)))
        pairs.append(("threads", str(before.threads), str(after.threads)))
        pairs.append(("providers", ", ".join(before.providers), ", ".join(after.providers)))
    for what, first, second in pairs:
        if first != second:
            yield f"{what} {first or 'unknown'} then, {second or 'unknown'} now"


def _memory(run: Run, device: Device, then: ArtifactResult, now: ArtifactResult) -> Check:
    before, after = then.measurement, now.measurement
    peaks = [one.memory.peak_bytes if one and one.memory else 0 for one in (before, after)]
    texts = [format_bytes(peak) if peak else "unknown" for peak in peaks]
    barriers = [] if run.kind == device.kind else [f"{run.kind} then, {device.kind} now"]
    barriers += [each for each in _circumstances(run, device, then, now) if not each.startswith("CPU")]
    if barriers or not all(peaks):
        reason = "; ".join(barriers) or "one is unknown"
        return Check(
            subject="peak memory", state="not compared", recorded=texts[0], found=texts[1], note=reason
        )
    near = abs(peaks[1] - peaks[0]) <= MEMORY_TOLERANCE * peaks[0]
    return Check(
        subject="peak memory",
        state="equal" if peaks[0] == peaks[1] else "within" if near else "differs",
        recorded=texts[0],
        found=texts[1],
        note=f"tolerance {MEMORY_TOLERANCE:.0%}",
    )


def _latency(run: Run, device: Device, then: ArtifactResult, now: ArtifactResult) -> Check:
    before, after = then.measurement, now.measurement
    if before is None or after is None:
        return Check(subject="median latency", state="not compared", note="it was not measured")
    barriers = list(_latency_barriers(run, device, before, after))
    if barriers:  # and no figure is shown, so that nobody takes it for one of the board
        return Check(subject="median latency", state="not compared", note=barriers[0])
    ratio = ratio_of_medians(after.latencies_ns, before.latencies_ns)
    near = ratio.low <= 1 + LATENCY_TOLERANCE and ratio.high >= 1 / (1 + LATENCY_TOLERANCE)
    medians = [format_ns(sorted(one.latencies_ns)[len(one.latencies_ns) // 2]) for one in (before, after)]
    return Check(
        subject="median latency",
        state="within" if near else "differs",
        recorded=medians[0],
        found=medians[1],
        note=f"{ratio.value:.2f}×, 95 % interval {ratio.low:.2f} to {ratio.high:.2f}; "
        f"tolerance {LATENCY_TOLERANCE:.0%}",
    )


def _latency_barriers(run: Run, device: Device, then: Measurement, now: Measurement) -> Iterator[str]:
    if run.kind != "board" or device.kind != "board":
        yield f"{run.kind} then, {device.kind} now: only two boards of one kind can be compared"
    name = device.facts.board or device.facts.cpu.model
    if name != run.device_name:
        yield f"{run.device_name} then, {name} now"
    for when, one in (("then", then), ("now", now)):
        for reason in verdict_of(one).reasons:
            yield f"INVALID {when}: {reason.text}"


def _runtime(measurement: Measurement) -> str:
    return f"{measurement.runtime} {measurement.runtime_version}".strip()


def _cpu(run: Run) -> dict[str, Any]:
    cpu = run.device.get("cpu")
    return cpu if isinstance(cpu, dict) else {}


def _architecture(run: Run) -> str:
    return str(_cpu(run).get("architecture", ""))
