"""A run done again from what it records, and everything that came out set beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgepipe.bundle import Bundle
from edgepipe.errors import DataNotFound, EdgepipeError, ModelNotFound, ReproductionDiffers, UsageError
from edgepipe.events import Emit, silent
from edgepipe.job import Effort, Job, Place
from edgepipe.provenance import Change, Check, Origin, Reproduction, changes
from edgepipe.provenance.environment import version_changes
from edgepipe.store import ArtifactResult, Run
from edgepipe.target import Target, list_targets, load_target
from edgepipe.workflow.agreeing import compare_inputs, compare_made, compare_metrics
from edgepipe.workflow.exporting import Published, inputs_of, open_published
from edgepipe.workflow.judge import judge_bundle
from edgepipe.workflow.make import Made, installed_versions, make
from edgepipe.workflow.matching import compare_results
from edgepipe.workflow.measure import check_device, measure_bundle
from edgepipe.workflow.origin import job_of, origin_from_manifest, this_environment
from edgepipe.workflow.place import Device, check_place, open_device
from edgepipe.workflow.prepare import Prepared, prepare

BRIEF = Effort(min_duration_s=0.1, min_runs=8)
"""Where latencies will not be compared, runs serve to see the memory alone."""


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What is at hand of the inputs, where it is not where the run had it.

    Attributes:
        model: The model; None for the path that the run records, or the one in the export.
        weights: state_dict for a factory; None likewise.
        data: The data; None likewise.
        bundle: The run's bundle, where it is not in the run's folder.
        target: File of the target to emulate; only needed where the run's is none of edgepipe's own.
    """

    model: str | None = None
    weights: Path | None = None
    data: Path | None = None
    bundle: Path | None = None
    target: str | None = None


def reproduce(
    subject: str,
    place: Place | None = None,
    *,
    store: Path = Path("runs"),
    given: Given = Given(),  # noqa: B008  a frozen record
    emit: Emit = silent,
) -> Reproduction:
    """Makes a run's artifacts again, runs them, and compares everything with what the run records.

    First the inputs are compared, then the artifacts byte for byte, then the outputs on a device bit for
    bit, then metrics within their intervals. Nothing is written into the store.

    Args:
        subject: A run of the store by its name, or the file of an exported one.
        place: Where to run the artifacts; by default the emulator of the run's target.
        store: Folder of the runs.
        given: Inputs that are not where the run had them.
        emit: Where progress and warnings go.

    Returns:
        All that was compared; `raise_if_different` raises what its verdict says.

    Raises:
        RunNotFound: There is no such run.
        BundleError: Its bundle is missing, or an export was altered.
        ModelNotFound: The model is not at hand.
        DataNotFound: The data is not at hand.
        UsageError: The run's target cannot be emulated on the run's word alone, or its model is a program.
        DeviceError: The device cannot be reached.
        EdgepipeError: What the steps of the job say.
    """
    place = place or Place(emulate=True)
    check_place(place)
    with (
        open_published(subject, store, given.bundle) as published,
        tempfile.TemporaryDirectory(prefix="edgepipe-") as work,
    ):
        run = published.run
        origin = run.origin or origin_from_manifest(published.bundle.manifest, load_target(run.target))
        job = _job(published, origin, given, Path(work))
        prepared = prepare(job, emit)
        checks = list(compare_inputs(published, prepared))
        device: Device | None = None
        if not any(each.state == "differs" for each in checks):
            with open_device(place, emit, _board(run, given, place, prepared.target)) as device:
                check_device(prepared.target, device, emit)  # before minutes of work
                checks += _rebuild(published, prepared, Path(work) / "bundle", emit)
                checks += compare_results(run, device, _measure(published, prepared.target, device, emit))
    return _conclude(run, published.bundle, tuple(checks), device)


def raise_if_different(found: Reproduction) -> None:
    """Raises what a reproduction's verdict says.

    Raises:
        ReproductionDiffers: Something else came out than the run records.
    """
    if found.verdict == "REPRODUCED":
        return
    differing = [each for each in found.checks if each.state == "differs"]
    changed = "; ".join(map(str, found.changes[:4]))
    remedy = "give the one that the run was made with"
    if differing[0].artifact:
        remedy = f"see whether it comes from what changed since: {changed or 'nothing that is recorded'}"
    raise ReproductionDiffers(
        f"the run is not reproduced: {len(differing)} of {len(found.checks)} checks differ",
        where=found.run,
        got=f"first, {found.first_difference}",
        remedy=remedy,
    )


def _job(published: Published, origin: Origin, given: Given, work: Path) -> Job:
    """The recorded job with the inputs that are at hand."""
    inputs = published.inputs
    job = job_of(origin, published.run, work)
    model, weights, data = given.model, given.weights, given.data
    if model is None and "model" in inputs:
        _refuse_code(inputs["model"])
        model = str(inputs["model"])
    job = msgspec.structs.replace(
        job,
        model=model or job.model,
        weights=weights or inputs.get("weights") or job.weights,
        data=None if job.data is None else data or inputs.get("data") or job.data,
    )
    _check_at_hand(job, origin)
    return job


def _board(run: Run, given: Given, place: Place, recorded: Target) -> Target:
    """The target to open a device of.

    An emulated device is built from what its target names: an image, packages. A record may come from
    anybody, so these are taken from edgepipe's own target of that name, or from a file that the user names.
    """
    if place.host is not None or place.emulate == "native":
        return recorded
    if given.target is not None:
        return load_target(given.target)
    if run.target in {target.name for target in list_targets()}:
        return load_target(run.target)
    raise UsageError(
        "the run's target is none of edgepipe's own, and is not emulated on the run's word alone",
        where=f"target {run.target}",
        remedy="name its file with --target, a board with --host, or take --emulator native",
    )


def _refuse_code(model: Path) -> None:
    """Raises UsageError for a model that is a program: an export may come from anybody."""
    if model.suffix == ".py":
        raise UsageError(
            "the export's model is a program, which is not run unseen",
            where=model.name,
            remedy="unzip the export, read the file, and name it: --model model/FILE.py:FACTORY",
        )


def _check_at_hand(job: Job, origin: Origin) -> None:
    """Raises ModelNotFound or DataNotFound, with what to look for, where an input is nowhere."""
    at_hand = {"weights": job.weights, "data": job.data}
    for one in inputs_of(origin):
        path = at_hand.get(one.what) or Path(job.model.rpartition(":")[0] or job.model)
        if one.what == "model" and Path(job.model).exists():
            continue
        if path.exists():
            continue
        kind: type[EdgepipeError] = DataNotFound if one.what == "data" else ModelNotFound
        raise kind(
            f"the {one.what} of the run is not at hand",
            where=str(path),
            got="no such file" + (f"; the sha256 of the right one is {one.sha256}" if one.sha256 else ""),
            remedy=f"get it, and name it with --{one.what}",
        )


def _rebuild(published: Published, prepared: Prepared, folder: Path, emit: Emit) -> Iterator[Check]:
    """Makes the artifacts again; compares them, and how good they are on this machine."""
    made: Made = make(prepared, folder, emit=emit)
    yield from compare_made(published.bundle, made)
    if prepared.evaluation is not None and published.run.data is not None:
        judged = judge_bundle(made.bundle, prepared.source.model, prepared.evaluation, emit)
        yield from compare_metrics(published.run, judged)


def _measure(published: Published, target: Target, device: Device, emit: Emit) -> tuple[ArtifactResult, ...]:
    """Runs the recorded artifacts; as long as the record says only where latencies can be compared."""
    run = published.run
    threads = {each.measurement.threads for each in run.results if each.measurement}
    both_boards = run.kind == "board" and device.kind == "board"
    effort = msgspec.structs.replace(Effort() if both_boards else BRIEF, threads=min(threads, default=None))
    return measure_bundle(published.bundle, target, device, effort, emit=emit)


def _conclude(run: Run, bundle: Bundle, checks: tuple[Check, ...], device: Device | None) -> Reproduction:
    differing = [each for each in checks if each.state == "differs"]
    return Reproduction(
        run=run.id,
        verdict="DIFFERS" if differing else "REPRODUCED",
        first_difference=str(differing[0]) if differing else "",
        checks=checks,
        changes=_changes(run, bundle),
        place=device.description if device else "",
        kind=device.kind if device else "",
        recorded_place=run.host,
        recorded_kind=run.kind,
    )


def _changes(run: Run, bundle: Bundle) -> tuple[Change, ...]:
    """What of the surroundings changed; of older runs the versions alone are known."""
    now = this_environment()
    if run.environment is not None:
        return changes(run.environment, now)
    manifest = bundle.manifest
    found = [Change("edgepipe", manifest.edgepipe_version, now.edgepipe)]
    found += version_changes(manifest.versions, installed_versions())
    return tuple(each for each in found if each.then != each.now)
