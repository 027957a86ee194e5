"""From a prepared job to a bundle: passes, emissions, golden samples."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

import edgepipe
from edgepipe import golden, pipeline
from edgepipe.bundle import (
    DIAGNOSIS,
    Artifact,
    ArtifactFormat,
    Bundle,
    Calibration,
    Manifest,
    Step,
    check_bundle_folder,
    write_bundle,
)
from edgepipe.convert import ort, tflite
from edgepipe.convert.emission import Emission
from edgepipe.data import digest_rows
from edgepipe.errors import EdgepipeError
from edgepipe.events import Emit, Warned, silent, stage
from edgepipe.graph.edit import is_quantized
from edgepipe.job import Job
from edgepipe.model import Model, digest_bytes
from edgepipe.passes import Context
from edgepipe.quantize.explain.diagnose import MOST, diagnose, evenly
from edgepipe.quantize.explain.diagnosis import Diagnosis, encode
from edgepipe.quantize.explain.risk import at_risk
from edgepipe.recipe import load_recipe
from edgepipe.workflow.prepare import Prepared, check_ops, prepare

PACKAGES = ("ai-edge-litert", "numpy", "onnx", "onnxruntime", "tf2onnx", "torch", "tensorflow-cpu")
"""Packages with a hand in the result; those that are not installed are left out of the record."""


MOST_WARNINGS = 3
"""Layers at risk that are named, the worst ones."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle with what it was made from.

    Attributes:
        bundle: What was made.
        prepared: Of what.
        steps: As in the bundle's manifest, with the time that each took.
        diagnosis: What quantization did to each layer; None where nothing was quantized.
    """

    bundle: Bundle
    prepared: Prepared
    steps: tuple[Step, ...]
    diagnosis: Diagnosis | None = None


def compress(job: Job, folder: Path | str, *, emit: Emit = silent, cache: Path | None = None) -> Made:
    """Makes a bundle from a model: passes, then one artifact for each precision and format.

    Args:
        job: What to make.
        folder: Where the bundle goes; an older bundle there is replaced.
        emit: Where progress and warnings go.
        cache: Where results of passes are kept; None keeps nothing.

    Raises:
        EdgepipeError: As `prepare`, the passes and `write_bundle` say.
    """
    folder = Path(folder)
    check_bundle_folder(folder)
    return make(prepare(job, emit), folder, emit=emit, cache=cache)


def make(prepared: Prepared, folder: Path, *, emit: Emit = silent, cache: Path | None = None) -> Made:
    """Makes the bundle of a job that is prepared; see `compress`."""
    source, target = prepared.source.model, prepared.target
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as work:
        context = Context(
            target=target,
            calibration=prepared.calibration,
            seed=prepared.job.seed,
            work=Path(work),
            emit=emit,
        )
        # Somewhere in any case: the float reference shares its first passes with the recipe.
        cache = cache or Path(work) / "cache"
        trace = list(pipeline.trace(prepared.recipe, source, context, cache=cache))
        model, steps = trace[-1][0], tuple(step for _, step in trace)
        diagnosis = _diagnose([source, *(after for after, _ in trace)], prepared, emit)
        reference = source
        if not is_quantized(source):
            unheard = msgspec.structs.replace(context, emit=silent)
            reference, _ = pipeline.run(load_recipe("float32"), source, unheard, cache=cache)
    check_ops(model, target)
    with stage(emit, "write artifacts") as writing:
        emissions = list(_emit(prepared, reference, model))
        writing.detail = ", ".join(emission.name for emission in emissions)
    if is_quantized(source):  # of what edgepipe quantized itself, its passes have told
        for note in (note for emission in emissions for note in emission.notes):
            emit(Warned(note))
    with stage(emit, "record golden samples", len(emissions)) as sealing:
        samples = prepared.golden_samples.x[: golden.SAMPLES]
        files: dict[str, bytes] = {}
        artifacts = []
        for done, emission in enumerate(emissions, start=1):
            artifact, its_files = golden.seal(emission, samples)
            artifacts.append(artifact)
            files |= its_files
            sealing.advance(done)
    manifest = _manifest(prepared, steps, tuple(artifacts))
    if diagnosis is not None:
        files[DIAGNOSIS] = encode(diagnosis)
        manifest = msgspec.structs.replace(manifest, diagnosis=digest_bytes(files[DIAGNOSIS]))
    bundle = write_bundle(folder, manifest, files)
    return Made(bundle=bundle, prepared=prepared, steps=steps, diagnosis=diagnosis)


def _diagnose(models: list[Model], prepared: Prepared, emit: Emit) -> Diagnosis | None:
    """Sets the model that a recipe quantized beside its last float form; None where it quantized none.

    A layer at risk is warned of. A model that cannot be diagnosed is none the worse for it.
    """
    before, model = None, models[-1]
    for each in models:
        if each.format == "onnx" and not is_quantized(each):
            before = each
    # Samples that ranges were not taken from: on those that they were, nothing is clipped.
    data = prepared.evaluation or prepared.calibration
    if before is None or data is None or not is_quantized(model):
        return None
    try:
        diagnosis = diagnose(before, model, data.x[evenly(len(data), MOST)], emit, sparing=True)
    except EdgepipeError as error:
        emit(Warned(f"the layers were not diagnosed: {error.what}", error.remedy))
        return None
    if not data.random:
        _warn_of_risks(diagnosis, emit)
    return diagnosis


def _warn_of_risks(diagnosis: Diagnosis, emit: Emit) -> None:
    risks = at_risk(diagnosis)
    for risk in risks[:MOST_WARNINGS]:
        emit(Warned(f"layer {risk.layer} is at risk: {risk.text}", risk.remedy))
    if len(risks) > MOST_WARNINGS:
        emit(Warned(f"{len(risks) - MOST_WARNINGS} more layers are at risk", "see `edgepipe explain BUNDLE`"))


def _emit(prepared: Prepared, reference: Model, model: Model) -> Iterator[Emission]:
    """The float reference and the result, in every format of the target, the preferred one first."""
    for artifact_format in prepared.target.formats:
        yield _write(prepared, reference, artifact_format)
    if model.digest != reference.digest:
        for artifact_format in prepared.target.formats:
            yield _write(prepared, model, artifact_format)
    elif prepared.recipe.precision == "float16" and "tflite" in prepared.target.formats:
        # ONNX Runtime's CPU kernels would compute float16 by casting: only TFLite gains by it.
        yield tflite.emit(model, float16=True)


def _write(prepared: Prepared, model: Model, artifact_format: ArtifactFormat) -> Emission:
    ports = prepared.job.ports
    if artifact_format == "onnx":
        return ort.emit(model, activation=prepared.target.activation, ports=ports or "float32")
    return tflite.emit(model, ports=ports or "integer")


def _manifest(prepared: Prepared, steps: tuple[Step, ...], artifacts: tuple[Artifact, ...]) -> Manifest:
    source, job, data = prepared.source, prepared.job, prepared.calibration
    return Manifest(
        edgepipe_version=edgepipe.__version__,
        model_name=source.model.name,
        model_source=source.origin,
        model_digest=source.model.digest,
        inputs=source.model.inputs,
        outputs=source.model.outputs,
        target=prepared.target.name,
        recipe=prepared.recipe.name,
        seed=job.seed,
        calibration=None
        if data is None
        else Calibration(
            source=data.source,
            digest=data.digest,
            samples=len(data),
            random=data.random,
            sample_digests=tuple(digest_rows(data.x)),
        ),
        # The same job gives the same bytes, however long it took and whatever the cache held.
        steps=tuple(msgspec.structs.replace(step, seconds=None, cached=False) for step in steps),
        artifacts=artifacts,
        versions=installed_versions(),
    )


def installed_versions() -> dict[str, str]:
    """Version of every package with a hand in the result that is installed here."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
