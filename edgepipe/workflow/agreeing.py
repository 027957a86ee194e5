"""What a run records beside what came out now: inputs, artifacts, how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgepipe.bundle import Artifact, Bundle, Manifest, Step
from edgepipe.data import Dataset
from edgepipe.evaluate import Estimate, Evaluation, Judged
from edgepipe.provenance import Check, State, digest_path
from edgepipe.recipe import pass_name
from edgepipe.store import Run
from edgepipe.units import format_share
from edgepipe.workflow.exporting import Published
from edgepipe.workflow.make import Made
from edgepipe.workflow.origin import model_path
from edgepipe.workflow.prepare import Prepared

SQNR_TOLERANCE_DB = 0.1
"""Kernels of another CPU sum in another order, which moves an SQNR by far less."""


def compare_inputs(published: Published, prepared: Prepared) -> Iterator[Check]:
    """Whether the record is of one piece, and the job is given what the run was given."""
    run, manifest = published.run, published.bundle.manifest
    recorded = tuple(result.artifact.digest for result in run.results)
    built = tuple(artifact.digest for artifact in manifest.artifacts)
    yield _same("artifacts of the record", _all(recorded), _all(built), "the run's record and its bundle")
    yield _same("seed", str(run.seed), str(manifest.seed), "the run's record and its bundle")
    yield _model(run, prepared)
    yield _recipe(manifest, prepared)
    calibration = manifest.calibration
    if calibration is not None or prepared.calibration is not None:
        then = (calibration.digest, calibration.samples) if calibration else None
        yield _data("calibration data", then, prepared.calibration, run, prepared)
    if run.data is not None:
        then = (run.data.digest, run.data.samples)
        yield _data("evaluation data", then, prepared.evaluation, run, prepared)


def compare_made(bundle: Bundle, made: Made) -> Iterator[Check]:
    """Whether every artifact is the same, byte for byte, and the golden samples too."""
    then, now = bundle.manifest, made.bundle.manifest
    found = {artifact.name: artifact for artifact in now.artifacts}
    for artifact in then.artifacts:
        again = found.pop(artifact.name, None)
        if again is None:
            yield Check(
                subject="file",
                artifact=artifact.name,
                state="differs",
                recorded=short(artifact.digest),
                found="not made",
            )
            continue
        same = artifact.digest == again.digest
        yield Check(
            subject="file",
            artifact=artifact.name,
            state="equal" if same else "differs",
            recorded=short(artifact.digest),
            found=short(again.digest),
            note="" if same else _first_step(then.steps, now.steps),
        )
        yield _golden(artifact, again)
    for name, extra in found.items():
        yield Check(
            subject="file", artifact=name, state="differs", recorded="not made", found=short(extra.digest)
        )


def compare_metrics(run: Run, judged: Judged) -> Iterator[Check]:
    """Whether artifacts are as good on this machine as the run says, within its intervals."""
    for result in run.results:
        then, now = result.evaluation, judged.artifacts.get(result.artifact.name)
        if then is None or now is None:
            continue
        checks = [
            _share("accuracy", _accuracy(then), _accuracy(now)),
            _share("agreement", _agreement(then), _agreement(now)),
            _sqnr(then, now),
        ]
        for check in filter(None, checks):
            yield msgspec.structs.replace(check, artifact=result.artifact.name)


def short(digest: str) -> str:
    """The first letters of a digest: ``3fa09c2e11d4…``."""
    return f"{digest[:12]}…" if len(digest) > 12 else digest


def _same(subject: str, recorded: str, found: str, note: str = "") -> Check:
    return Check(
        subject=subject,
        state="equal" if recorded == found else "differs",
        recorded=short(recorded),
        found=short(found),
        note=note,
    )


def _all(digests: tuple[str, ...]) -> str:
    return " ".join(digest[:8] for digest in digests)


def _model(run: Run, prepared: Prepared) -> Check:
    check = _same("model", run.model_digest, prepared.source.model.digest, "as a float ONNX graph")
    then = run.origin.model_sha256 if run.origin else None
    return _with_file(check, then, model_path(prepared.job.model))


def _with_file(check: Check, then: str | None, path: Path | None) -> Check:
    """A difference with what the input's file tells of it."""
    now = None if path is None else digest_path(path)
    if check.state == "equal" or then is None or now is None:
        return check
    note = "of the same file" if then == now else f"another file: sha256 {short(now)}, not {short(then)}"
    return msgspec.structs.replace(check, note=f"{check.note}; {note}")


def _recipe(manifest: Manifest, prepared: Prepared) -> Check:
    """The passes with their settings; one that is new here counts for nothing, as it has its default."""
    then = [(step.use, step.settings) for step in manifest.steps]
    now = [(pass_name(each), msgspec.to_builtins(each)) for each in prepared.recipe.passes]
    names = [", ".join(use for use, _ in passes) for passes in (then, now)]
    if names[0] != names[1]:
        return Check(subject="recipe", state="differs", recorded=names[0], found=names[1])
    for number, ((use, before), (_, after)) in enumerate(zip(then, now, strict=True), start=1):
        for key, value in before.items():
            if key not in after or _json(after[key]) != _json(value):
                return Check(
                    subject=f"recipe, step {number} ({use}), {key}",
                    state="differs",
                    recorded=_json(value),
                    found=_json(after.get(key)),
                )
    return Check(subject="recipe", state="equal", recorded=manifest.recipe, found=names[1])


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _data(
    subject: str, then: tuple[str, int] | None, now: Dataset | None, run: Run, prepared: Prepared
) -> Check:
    digest, samples = then or ("none", 0)
    found, count = (now.digest, len(now)) if now is not None else ("none", 0)
    note = f"{samples} samples" if samples == count else f"{samples} samples then, {count} now"
    file = run.origin.data_sha256 if run.origin else None
    return _with_file(_same(subject, digest, found, note), file, prepared.job.data)


def _first_step(then: tuple[Step, ...], now: tuple[Step, ...]) -> str:
    """The first pass that made something else of the same model."""
    for number, (before, after) in enumerate(zip(then, now, strict=False), start=1):
        if before.digest_in == after.digest_in and before.digest_out != after.digest_out:
            return f"step {number}, {before.use}, makes another model of the same one"
    return "the passes give the same model, which is written otherwise"


def _golden(then: Artifact, now: Artifact) -> Check:
    before, after = _golden_digests(then), _golden_digests(now)
    differing = [name for name in before if before[name] != after.get(name)]
    kinds = {"inputs" if ".input" in name else "outputs" for name in differing}
    return Check(
        subject="golden samples",
        artifact=then.name,
        state="differs" if before != after else "equal",
        recorded=f"{len(before)} tensors",
        found=f"{len(differing)} differ: {' and '.join(sorted(kinds))}"
        if differing
        else f"{len(after)} tensors",
        note="as this host's runtime computes them",
    )


def _golden_digests(artifact: Artifact) -> Mapping[str, str]:
    return {name: digest for golden in artifact.golden for name, digest in golden.digests.items()}


def _accuracy(evaluation: Evaluation) -> Estimate | None:
    return evaluation.comparison.accuracy if evaluation.comparison else None


def _agreement(evaluation: Evaluation) -> Estimate | None:
    return evaluation.comparison.agreement if evaluation.comparison else None


def _share(subject: str, then: Estimate | None, now: Estimate | None) -> Check | None:
    if then is None and now is None:
        return None
    texts = [format_share(each.value) if each else "none" for each in (then, now)]
    if then is None or now is None:
        return Check(subject=subject, state="differs", recorded=texts[0], found=texts[1])
    within = then.low <= now.value <= then.high
    return Check(
        subject=subject,
        state="equal" if then.value == now.value else "within" if within else "differs",
        recorded=texts[0],
        found=texts[1],
        note=f"95 % interval {format_share(then.low)} to {format_share(then.high)}",
    )


def _sqnr(then: Evaluation, now: Evaluation) -> Check:
    values = then.sqnr_db, now.sqnr_db
    texts = [
        "exact" if one.exact else "not finite" if db is None else f"{db:.2f} dB"
        for one, db in zip((then, now), values, strict=True)
    ]
    before, after = values
    if before is None or after is None or before == after:
        state: State = "equal" if texts[0] == texts[1] else "differs"
    else:
        state = "within" if abs(before - after) <= SQNR_TOLERANCE_DB else "differs"
    return Check(
        subject="SQNR", state=state, recorded=texts[0], found=texts[1],
        note=f"tolerance {SQNR_TOLERANCE_DB} dB",
    )  # fmt: skip
