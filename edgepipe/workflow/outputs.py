"""One bundle's artifacts in several places: whether all compute the same bits, and where they part."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from device_agent import protocol
from edgepipe.bundle import Artifact, Bundle, Golden, Port, read_bundle, write_bundle
from edgepipe.convert.taps import Tap, steps_of_outputs, tap
from edgepipe.data import load_data
from edgepipe.device.embedded import cpu_name
from edgepipe.device.push import push
from edgepipe.device.runtimes import Task, pick_runtime
from edgepipe.errors import DeviceError, DeviceTimeout, UsageError
from edgepipe.events import Emit, silent, stage
from edgepipe.job import DataSpec, Place
from edgepipe.measure.outputs import LayerDifference, OutputsReport, Pair, Site, SiteOutputs
from edgepipe.model import digest_bytes
from edgepipe.quantize.explain.diagnose import evenly
from edgepipe.runtime import open_session, to_port
from edgepipe.target import Target
from edgepipe.workflow.make import installed_versions
from edgepipe.workflow.measure import REFUSALS, check_device
from edgepipe.workflow.place import Device, check_place, open_device

ANY_DIFFERENCE = 1e30
"""A difference is what is looked for here, and no failure."""
TIMEOUT_NS = 1_800_000_000_000
"""For all samples of one artifact: an emulator may take half a minute for each."""


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """A place to run at.

    Attributes:
        name: How the report calls it.
        place: Where it is.
        target: The kind of board.
    """

    name: str
    place: Place
    target: Target


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What this host computes, as a bundle whose golden outputs are just that.

    Attributes:
        bundle: In a temporary folder, with all layers among its outputs where these are looked at.
        taps: Layers that each artifact returns behind its own outputs.
        disturbed: Artifacts whose own outputs are others where layers are returned.
    """

    bundle: Bundle
    taps: dict[str, tuple[Tap, ...]]
    disturbed: frozenset[str]


def compare_outputs(
    bundle_folder: Path,
    stops: Sequence[Stop],
    *,
    data: DataSpec | None = None,
    samples: int = 16,
    layers: bool = False,
    emit: Emit = silent,
) -> OutputsReport:
    """Runs every artifact of a bundle on the same samples in several places and here.

    Args:
        bundle_folder: The bundle.
        stops: Where to run.
        data: Samples; by default the bundle's golden ones.
        samples: How many of the data to run.
        layers: Also compare the output of every layer.
        emit: Where progress and warnings go.

    Raises:
        BundleError: The folder is no bundle, or was altered.
        UsageError: No place is named, or one twice.
        DataError: The data does not fit.
        DeviceError: A device cannot be reached.
    """
    _check_stops(stops)
    bundle = read_bundle(bundle_folder)
    x = None
    if data is not None:
        dataset = load_data(
            data.path,
            spec=bundle.manifest.inputs[0],
            preprocessing=data.preprocessing,
            limit=data.limit,
            emit=emit,
        )
        x = dataset.x[evenly(len(dataset), samples)]
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as work:
        reference = _reference(bundle, x, layers, Path(work), emit)
        sites, results = [], []
        for stop in stops:
            site, found = _run(stop, reference, emit)
            sites.append(site)
            results += found
    artifacts = reference.bundle.manifest.artifacts
    return OutputsReport(
        model_name=bundle.manifest.model_name,
        bundle_digest=bundle.digest,
        samples=max(len(artifact.golden) for artifact in artifacts),
        source="golden samples of the bundle" if data is None else str(data.path.name),
        reference=_this_host(artifacts),
        sites=tuple(sites),
        results=tuple(results),
        pairs=tuple(_pairs(results)),
    )


def _check_stops(stops: Sequence[Stop]) -> None:
    if not stops:
        raise UsageError("no place is named", remedy="give --target NAME for an emulated device, or --host")
    names = [stop.name for stop in stops]
    if len(set(names)) != len(names):
        raise UsageError("a place is named twice", got=", ".join(names), remedy="name each once")
    for stop in stops:
        check_place(stop.place)


def _this_host(artifacts: Sequence[Artifact]) -> str:
    packages = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}
    versions = installed_versions()
    used = dict.fromkeys(packages[artifact.format] for artifact in artifacts)
    return ", ".join([cpu_name(), *(f"{package} {versions[package]}" for package in used)])


def _reference(bundle: Bundle, x: NDArray[Any] | None, layers: bool, work: Path, emit: Emit) -> Reference:
    """Runs the artifacts here; the bundle that comes out holds these outputs as its golden ones."""
    artifacts: list[Artifact] = []
    files: dict[str, bytes] = {}
    taps: dict[str, tuple[Tap, ...]] = {}
    disturbed = set()
    with stage(emit, "outputs here", len(bundle.manifest.artifacts)) as running:
        for done, artifact in enumerate(bundle.manifest.artifacts, start=1):
            inputs, payload = _inputs(bundle, artifact, x), bundle.read(artifact.name)
            outputs = _outputs(payload, artifact, inputs)
            if layers:
                tapped = tap(payload, artifact.format)
                payload, taps[artifact.name] = tapped.payload, tapped.taps
                plain, outputs = outputs, _outputs(payload, artifact, inputs)
                if any(
                    _digests(one) != _digests(more[: len(one)])
                    for one, more in zip(plain, outputs, strict=True)
                ):
                    disturbed.add(artifact.name)
            in_steps = _in_steps(artifact, payload)
            sealed, its_files = _seal(in_steps, payload, inputs, outputs, taps.get(artifact.name, ()))
            artifacts.append(sealed)
            files |= its_files
            running.advance(done)
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=tuple(artifacts), diagnosis=None)
    made = write_bundle(work / "bundle", manifest, files)
    return Reference(bundle=made, taps=taps, disturbed=frozenset(disturbed))


def _in_steps(artifact: Artifact, payload: bytes) -> Artifact:
    """The artifact with a step for each float output that lies on a grid: differences are told in it."""
    steps = steps_of_outputs(payload, artifact.format)
    outputs = tuple(
        msgspec.structs.replace(port, scale=step) if port.scale is None and step is not None else port
        for port, step in zip(artifact.outputs, steps, strict=False)  # taps follow
    )
    return msgspec.structs.replace(artifact, outputs=outputs)


def _inputs(bundle: Bundle, artifact: Artifact, x: NDArray[Any] | None) -> list[NDArray[Any]]:
    """One tensor for each sample, as the artifact's input port takes it."""
    port = artifact.inputs[0]
    if x is not None:
        return [to_port(x[row : row + 1], port) for row in range(len(x))]
    dtype = np.dtype(port.dtype).newbyteorder("<")
    raw = (bundle.read(golden.inputs[0]) for golden in artifact.golden)
    return [np.frombuffer(each, dtype).reshape(port.shape).astype(port.dtype) for each in raw]


def _outputs(payload: bytes, artifact: Artifact, inputs: list[NDArray[Any]]) -> list[list[NDArray[Any]]]:
    session = open_session(payload, artifact.format)
    return [[tensor.copy() for tensor in session.run([each])] for each in inputs]


def _digests(tensors: Sequence[NDArray[Any]]) -> tuple[str, ...]:
    return tuple(digest_bytes(tensor.tobytes()) for tensor in tensors)


def _seal(
    artifact: Artifact,
    payload: bytes,
    inputs: list[NDArray[Any]],
    outputs: list[list[NDArray[Any]]],
    taps: tuple[Tap, ...],
) -> tuple[Artifact, dict[str, bytes]]:
    """The artifact with other golden samples, and ports for the layers that it returns."""
    files = {artifact.name: payload}
    golden = []
    for index, (tensor, found) in enumerate(zip(inputs, outputs, strict=True)):
        stem = f"golden/{artifact.name}/{index}"
        ins = {f"{stem}.input0.bin": tensor.tobytes()}
        outs = {f"{stem}.output{at}.bin": each.tobytes() for at, each in enumerate(found)}
        digests = {name: digest_bytes(raw) for name, raw in {**ins, **outs}.items()}
        golden.append(Golden(inputs=tuple(ins), outputs=tuple(outs), digests=digests))
        files |= ins | outs
    tapped = outputs[0][len(artifact.outputs) :]
    ports = tuple(
        Port(
            name=each.tensor,
            dtype=tensor.dtype.name,
            shape=tensor.shape,
            permutation=tuple(range(tensor.ndim)),
            scale=each.scale,
            zero_point=each.zero_point,
        )
        for each, tensor in zip(taps, tapped, strict=True)
    )
    sealed = msgspec.structs.replace(
        artifact,
        digest=digest_bytes(payload),
        size_bytes=len(payload),
        outputs=(*artifact.outputs, *ports),
        golden=tuple(golden),
    )
    return sealed, files


def _run(stop: Stop, reference: Reference, emit: Emit) -> tuple[Site, list[SiteOutputs]]:
    with open_device(stop.place, emit, stop.target) as device:
        check_device(stop.target, device, emit)
        bundle = reference.bundle
        folder = push(device.transport, bundle, emit=emit)
        results = []
        with stage(emit, f"outputs on {stop.name}", len(bundle.manifest.artifacts)) as running:
            for done, artifact in enumerate(bundle.manifest.artifacts, start=1):
                results.append(_run_artifact(stop, reference, artifact, folder, device))
                running.advance(done)
            running.detail = ", ".join(f"{each.artifact} {each}" for each in results)
        list(device.agent.ask(protocol.Remove(folder)))
    facts = device.facts
    site = Site(
        name=stop.name,
        description=device.description,
        kind=device.kind,
        architecture=facts.cpu.architecture,
        cpu=facts.cpu.model,
        emulation=facts.emulation,
    )
    return site, results


def _run_artifact(
    stop: Stop, reference: Reference, artifact: Artifact, folder: str, device: Device
) -> SiteOutputs:
    try:
        runtime = pick_runtime(artifact, stop.target, device.facts, device.description)
        task = Task(
            folder=folder,
            artifact=artifact,
            runtime=runtime,
            threads=min(stop.target.threads, device.facts.cpu.cores),
            providers=stop.target.execution_providers,
        )
        said = device.agent.verify(
            task,
            tolerance_steps=ANY_DIFFERENCE,
            tolerance_relative=ANY_DIFFERENCE,
            timeout_ns=TIMEOUT_NS,
        )
    except (*REFUSALS, DeviceTimeout) as error:
        return SiteOutputs(artifact=artifact.name, site=stop.name, reason=_reason(error))
    return _result(stop.name, artifact, runtime.name, said, reference)


def _reason(error: DeviceError) -> str:
    return f"{error.what} ({error.got})" if error.got else error.what


def _result(
    site: str, artifact: Artifact, runtime: str, said: protocol.Verification, reference: Reference
) -> SiteOutputs:
    taps = reference.taps.get(artifact.name, ())
    own = len(said.outputs) - len(taps)
    ports = said.outputs[:own]
    expected = [tuple(each.digests[file] for file in each.outputs[:own]) for each in artifact.golden]
    digests = tuple(each[:own] for each in said.digests)
    differing = sum(then != now for then, now in zip(expected, digests, strict=True))
    layers = _layers(taps, said.outputs[own:], ports)
    steps = [port.worst_steps for port in ports if port.worst_steps is not None]
    return SiteOutputs(
        artifact=artifact.name,
        site=site,
        runtime=runtime,
        runtime_version=said.runtime_version,
        providers=said.providers,
        exact=differing == 0,
        samples=said.samples,
        differing_samples=differing,
        elements=sum(port.elements for port in ports),
        differing=sum(port.differing for port in ports),
        worst_steps=max(steps, default=None),
        worst_relative=max(port.worst_relative for port in ports),
        argmax_equal=min(port.argmax_equal for port in ports),
        not_finite=sum(port.not_finite for port in ports),
        digests=digests,
        layers=layers,
        first_layer=next((each.layer for each in layers if each.differing), ""),
        disturbed=artifact.name in reference.disturbed,
    )


def _layers(
    taps: tuple[Tap, ...],
    tapped: Sequence[protocol.OutputDifference],
    outputs: Sequence[protocol.OutputDifference],
) -> tuple[LayerDifference, ...]:
    """The layers in the order of the work, the model's outputs last; none where they were not asked for."""
    named = [(each.layer, each.op, port) for each, port in zip(taps, tapped, strict=True)]
    if taps:
        named += [(port.name, "output", port) for port in outputs]
    return tuple(
        LayerDifference(
            layer=layer,
            op=op,
            elements=port.elements,
            differing=port.differing,
            worst_steps=port.worst_steps,
            worst_relative=port.worst_relative,
        )
        for layer, op, port in named
    )


def _pairs(results: Sequence[SiteOutputs]) -> Iterator[Pair]:
    """What each two sites make of an artifact that both ran."""
    for artifact in dict.fromkeys(each.artifact for each in results):
        ran = [each for each in results if each.artifact == artifact and not each.reason]
        for first, second in combinations(ran, 2):
            both = zip(first.digests, second.digests, strict=True)
            yield Pair(
                artifact=artifact,
                first=first.site,
                second=second.site,
                differing_samples=sum(one != other for one, other in both),
            )
