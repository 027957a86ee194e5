"""Verifying and measuring a bundle's artifacts on a device, one after the other."""

from __future__ import annotations

from device_agent import protocol
from edgepipe.bundle import Bundle
from edgepipe.device.push import push
from edgepipe.device.runtimes import Task, installed_runtimes, pick_runtime
from edgepipe.errors import (
    AgentFailed,
    DeviceError,
    DeviceRuntimeMissing,
    DeviceRuntimeTooOld,
    VerificationFailed,
)
from edgepipe.events import Emit, Stage, Warned, stage
from edgepipe.job import Effort
from edgepipe.measure import Verification, from_protocol, latency_of, verification_from_protocol
from edgepipe.store import ArtifactResult, Run
from edgepipe.target import Runtime, Target
from edgepipe.units import format_ns
from edgepipe.workflow.place import Device

TOLERANCE_STEPS = 16.0
"""Of 256. Kernels of another version or CPU round half-way cases the other way, and such steps add up over
the layers: LiteRT 2.3 and tflite-runtime 2.14 differ by up to 7 steps on the outputs of MobileNetV1, right
both. A wrong kernel is off by far more."""


EMULATED_RUNS = 11
"""An emulator's runs are hundreds of times as slow as a board's and time nothing: they only show that an
artifact goes on running."""


REFUSALS = (DeviceRuntimeMissing, DeviceRuntimeTooOld, AgentFailed)
"""What keeps one artifact from running, and need not keep others."""


def check_device(target: Target, device: Device, emit: Emit) -> None:
    """Sees, before minutes of work, whether the device can run anything made for the target.

    Raises:
        DeviceRuntimeMissing: It has no runtime that runs any of the target's formats.
    """
    architecture = device.facts.cpu.architecture
    if device.kind == "board" and architecture != target.architecture:
        emit(
            Warned(
                f"target {target.name} is {target.architecture}, the device is {architecture}",
                "see `edgepipe targets list`",
            )
        )
    if not installed_runtimes(target, device.facts):
        commands = " or ".join(runtime.install_command for runtime in target.runtimes)
        raise DeviceRuntimeMissing(
            "the device has no inference runtime",
            where=device.description,
            got=f"Python {device.facts.python.version} at {device.facts.python.executable}, without any for "
            + " or ".join(target.formats),
            remedy=f"install one there: {commands}",
        )


def measure_bundle(
    bundle: Bundle, target: Target, device: Device, effort: Effort, *, emit: Emit
) -> tuple[ArtifactResult, ...]:
    """Pushes what the device can run, and verifies and measures each artifact.

    An artifact that cannot run there, or that computes something else there, is not measured; its
    result says why. The caller decides what that means.

    Raises:
        DeviceRuntimeMissing: The device can run none of the artifacts.
        DeviceRuntimeTooOld: Likewise, as its runtimes are too old.
        AgentFailed: Likewise, as its runtime fails on all of them.
        DeviceError: The connection was lost, or the device is full.
    """
    runtimes: dict[str, Runtime] = {}
    refusals: dict[str, DeviceError] = {}
    for artifact in bundle.manifest.artifacts:
        try:
            runtimes[artifact.name] = pick_runtime(artifact, target, device.facts, device.description)
        except REFUSALS as error:
            refusals[artifact.name] = error
            emit(Warned(_reason(error), error.remedy))
    _raise_if_all_refused(bundle, refusals)
    folder = push(device.transport, bundle, artifacts=tuple(runtimes), emit=emit)
    results = []
    for artifact in bundle.manifest.artifacts:
        if artifact.name in refusals:
            results.append(ArtifactResult(artifact=artifact, skipped=_reason(refusals[artifact.name])))
            continue
        task = Task(
            folder=folder,
            artifact=artifact,
            runtime=runtimes[artifact.name],
            threads=effort.threads or min(target.threads, device.facts.cpu.cores),
            providers=target.execution_providers,
        )
        try:
            results.append(_measure(task, target, device, effort, bundle.manifest.seed, emit))
        except REFUSALS as error:
            refusals[artifact.name] = error
            emit(Warned(_reason(error), error.remedy))
            results.append(ArtifactResult(artifact=artifact, skipped=_reason(error)))
    _raise_if_all_refused(bundle, refusals)
    return tuple(results)


def _raise_if_all_refused(bundle: Bundle, refusals: dict[str, DeviceError]) -> None:
    if len(refusals) == len(bundle.manifest.artifacts):
        raise next(iter(refusals.values()))


def _reason(error: DeviceError) -> str:
    return f"{error.what} ({error.got})" if error.got else error.what


def raise_if_nothing_ran(run: Run) -> None:
    """Raises what stopped the device, once the run is stored.

    Raises:
        VerificationFailed: An artifact computes something else there than here.
        AgentFailed: No artifact could be measured.
    """
    wrong = [each.artifact.name for each in run.results if each.verification and not each.verification.ok]
    if wrong:
        raise VerificationFailed(
            f"the device computes something else than the host: {', '.join(wrong)}",
            where=run.host,
            got=next(each.skipped for each in run.results if each.artifact.name in wrong),
            remedy="try another version of the runtime there, or the other format; "
            f"what differs: edgepipe runs show {run.id}",
        )
    if any(each.measurement and each.measurement.outcome == "ok" for each in run.results):
        return
    reasons = [each.skipped or (each.measurement.message if each.measurement else "") for each in run.results]
    raise AgentFailed(
        "nothing could be measured on the device",
        where=run.host,
        got="; ".join(filter(None, reasons)),
        remedy=f"see what each artifact ended with: edgepipe runs show {run.id}",
    )


def _measure(
    task: Task, target: Target, device: Device, effort: Effort, seed: int, emit: Emit
) -> ArtifactResult:
    artifact = task.artifact
    with stage(emit, f"verify {artifact.name}") as verifying:
        verification = verification_from_protocol(device.agent.verify(task, tolerance_steps=TOLERANCE_STEPS))
        difference = difference_in_words(verification)
        verifying.detail = f"{task.runtime.name} {verification.runtime_version}: {difference}"
    if not verification.ok:
        reason = f"{artifact.name} differs from the host's outputs: {difference}"
        emit(Warned(reason, "not measured"))
        return ArtifactResult(artifact=artifact, verification=verification, skipped=reason)
    request = protocol.Bench(
        plan=task.plan(),
        min_runs=min(effort.min_runs, EMULATED_RUNS) if device.kind == "emulated" else effort.min_runs,
        min_duration_ns=round(effort.min_duration_s * 1e9),
        seed=seed,
        power_sources=target.power_sources,
    )
    with stage(emit, f"measure {artifact.name}", 100) as measuring:
        events = device.agent.bench(task, request, on_progress=lambda event: _advance(measuring, event))
        measurement = from_protocol(events, task.plan(), device.facts, kind=device.kind)
        latency = latency_of(measurement)
        if measurement.kind == "emulated" and latency is not None:
            measuring.detail = f"{latency.runs} runs, emulated: no time is told"
        elif latency is not None and latency.median_ns is not None:
            measuring.detail = f"{latency.runs} runs, median {format_ns(latency.median_ns.value)}"
        else:
            measuring.detail = f"{measurement.outcome}: {measurement.message}"
    return ArtifactResult(artifact=artifact, verification=verification, measurement=measurement)


def _advance(measuring: Stage, event: protocol.Progress) -> None:
    if event.stage == "run" and event.total:
        measuring.advance(min(100, 100 * event.done // event.total))


def difference_in_words(verification: Verification) -> str:
    """The worst difference of any output, in steps where it has a scale."""
    worst = []
    for output in verification.outputs:
        if output.not_finite:
            return f"{output.not_finite} values of {output.name} are NaN or infinite"
        if not output.differing:
            continue
        by_steps = output.worst_steps is not None
        worst.append(
            f"{output.worst_steps:.0f} steps" if by_steps else f"{output.worst_relative:.1e} of the range"
        )
    return f"off by {', '.join(worst)} at most" if worst else "bit-equal to the host"
