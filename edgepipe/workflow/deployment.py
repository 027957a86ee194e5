"""The two halves joined: a bundle made here, checked and measured there, kept as a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import edgepipe
from device_agent import protocol
from edgepipe.bundle import Bundle, Pushed, check_bundle_folder, check_writable, read_bundle
from edgepipe.device.push import push as push_bundle
from edgepipe.evaluate import Judged
from edgepipe.events import Emit, silent, stage
from edgepipe.job import Effort, Job, Place
from edgepipe.quantize.explain.diagnosis import diagnosis_of
from edgepipe.report.html import write_report
from edgepipe.store import RECORD, ArtifactResult, DataUse, Run, new_run_id, save_run
from edgepipe.target import load_target
from edgepipe.workflow.judge import judge_bundle
from edgepipe.workflow.make import make
from edgepipe.workflow.measure import check_device, measure_bundle, raise_if_nothing_ran
from edgepipe.workflow.origin import origin_of, this_environment
from edgepipe.workflow.place import Device, check_place, open_device
from edgepipe.workflow.prepare import Prepared, prepare

REPORT = "report.html"
CACHE = ".cache"


def deploy(
    job: Job,
    place: Place,
    effort: Effort = Effort(),  # noqa: B008  a frozen record
    *,
    store: Path = Path("runs"),
    bundle_folder: Path | None = None,
    emit: Emit = silent,
    command: str = "",
) -> Run:
    """The main job: compress, evaluate, push, verify, measure, record, report.

    The device is asked first, so that a wrong address costs seconds and not the minutes of compression.

    Args:
        job: What to make of which model.
        place: Where the device is.
        effort: How long to measure.
        store: Folder of the runs; the new one holds run.json and report.html.
        bundle_folder: Where the bundle goes; None puts it into the run's folder.
        emit: Where progress and warnings go.
        command: What the user typed, for the record; "" where nobody typed. A script's own arguments may
            hold its secrets, so they are never looked at.

    Returns:
        The run, as it was stored.

    Raises:
        EdgepipeError: What the steps say; nothing half-written is left behind.
    """
    check_place(place)
    check_writable(store)
    if bundle_folder is not None:
        check_bundle_folder(bundle_folder)
    prepared = prepare(job, emit)
    with open_device(place, emit, prepared.target) as device:
        check_device(prepared.target, device, emit)
        created = datetime.now(UTC)
        run_id = new_run_id(prepared.source.model.name, prepared.target.name, created)
        with _whole_or_gone(store / run_id):
            made = make(prepared, bundle_folder or store / run_id / "bundle", emit=emit, cache=store / CACHE)
            judged = None
            if prepared.evaluation is not None:
                judged = judge_bundle(made.bundle, prepared.source.model, prepared.evaluation, emit)
            results = measure_bundle(made.bundle, prepared.target, device, effort, emit=emit)
            run = _run(run_id, created, made.bundle, device, results)
            run = msgspec.structs.replace(
                run,
                command=command,
                steps=made.steps,
                origin=origin_of(prepared),
                environment=this_environment(),
            )
            run = _with_evaluation(run, prepared, judged)
            _keep(run, store, emit)
    raise_if_nothing_ran(run)
    return run


def bench(
    bundle_folder: Path,
    place: Place,
    effort: Effort = Effort(),  # noqa: B008  a frozen record
    *,
    target: str | None = None,
    store: Path = Path("runs"),
    emit: Emit = silent,
    command: str = "",
) -> Run:
    """Verifies and measures a bundle that is there already; without data it evaluates nothing.

    Args:
        bundle_folder: The bundle.
        place: Where the device is.
        effort: How long to measure.
        target: Name or file of the target; None for the one of that name which the bundle was made for.
        store: Folder of the runs.
        emit: Where progress and warnings go.
        command: As in `deploy`.

    Raises:
        BundleError: The folder is no bundle, or was altered.
        TargetError: Unknown target.
        DeviceRuntimeMissing: The device has no runtime for any of the target's formats.
        DeviceError: The device cannot be reached, or computes something else than the host.
    """
    bundle = read_bundle(bundle_folder)
    board = load_target(target or bundle.manifest.target)
    check_writable(store)
    with open_device(place, emit, board) as device:
        check_device(board, device, emit)
        created = datetime.now(UTC)
        results = measure_bundle(bundle, board, device, effort, emit=emit)
    run_id = new_run_id(bundle.manifest.model_name, board.name, created)
    run = _run(run_id, created, bundle, device, results)
    run = msgspec.structs.replace(run, command=command, target=board.name)
    with _whole_or_gone(store / run.id):
        _keep(run, store, emit)
    raise_if_nothing_ran(run)
    return run


def push(bundle_folder: Path, place: Place, *, emit: Emit = silent) -> Pushed:
    """Copies a bundle and the agent to a device.

    Raises:
        BundleError: The folder is no bundle, or was altered.
        DeviceError: The device cannot be reached, or has no room.
    """
    bundle = read_bundle(bundle_folder)
    with open_device(place, emit) as device:
        folder = push_bundle(device.transport, bundle, emit=emit)
        return Pushed(
            host=device.description,
            folder=folder,
            bundle_digest=bundle.digest,
            agent_digest=device.agent.digest,
        )


def probe(place: Place, target: str | None = None, *, emit: Emit = silent) -> protocol.Facts:
    """What the device says of itself.

    Args:
        place: Where the device is.
        target: Name or file of the target to emulate; only needed where `place` asks for a container.
        emit: Where progress and warnings go.

    Raises:
        TargetError: Unknown target.
        DeviceError: The device cannot be reached, or lacks what the agent needs.
    """
    with open_device(place, emit, None if target is None else load_target(target)) as device:
        return device.facts


def _run(
    run_id: str, created: datetime, bundle: Bundle, device: Device, results: tuple[ArtifactResult, ...]
) -> Run:
    manifest = bundle.manifest
    return Run(
        id=run_id,
        created=created.isoformat(timespec="seconds"),
        edgepipe_version=edgepipe.__version__,
        command="",
        model_name=manifest.model_name,
        model_source=manifest.model_source,
        model_digest=manifest.model_digest,
        target=manifest.target,
        recipe=manifest.recipe,
        seed=manifest.seed,
        bundle_digest=bundle.digest,
        steps=manifest.steps,
        calibration=manifest.calibration,
        host=device.description,
        kind=device.kind,
        device=facts_data(device.facts),
        agent_digest=device.agent.digest,
        versions=manifest.versions,
        results=results,
        diagnosis=diagnosis_of(bundle),
    )


def facts_data(facts: protocol.Facts) -> dict[str, object]:
    """What a device says of itself, as plain JSON."""
    fields: dict[str, object] = json.loads(protocol.encode(facts))
    return {name: value for name, value in fields.items() if name not in {"v", "type"}}


def _with_evaluation(run: Run, prepared: Prepared, judged: Judged | None) -> Run:
    """The run with what only the host knows: the source's fidelity, and the artifacts' evaluation."""
    run = msgspec.structs.replace(run, source_fidelity=prepared.source.fidelity)
    data = prepared.evaluation
    if judged is None or data is None:
        return run
    results = tuple(
        msgspec.structs.replace(result, evaluation=judged.artifacts.get(result.artifact.name))
        for result in run.results
    )
    use = DataUse(source=data.source, digest=data.digest, samples=len(data), random=data.random)
    return msgspec.structs.replace(
        run, reference=judged.reference, agreement=judged.agreement, results=results, data=use
    )


@contextmanager
def _whole_or_gone(folder: Path) -> Iterator[None]:
    """Removes the run's folder where an error or Ctrl-C leaves it without its record."""
    try:
        yield
    finally:
        if not (folder / RECORD).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def _keep(run: Run, store: Path, emit: Emit) -> None:
    """Stores the run with its report."""
    with stage(emit, "write report"):
        folder = save_run(store, run)
        write_report([run], folder / REPORT)
