"""What an explanation looks at: a bundle's two models, samples, and its recipe to be run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe import sources
from edgepipe.bundle import Artifact, Bundle, Port
from edgepipe.data import Dataset, digest_rows, leave_out, load_data, make_dataset
from edgepipe.errors import BundleError, UsageError
from edgepipe.events import Emit, Warned, silent
from edgepipe.job import DataSpec
from edgepipe.model import Model, onnx_model
from edgepipe.passes import Context
from edgepipe.quantize.explain.diagnose import evenly
from edgepipe.target import load_target
from edgepipe.workflow.prepare import check_inputs, model_classes
from edgepipe.workflow.recovery import Rerun, load_rerun
from edgepipe.workflow.stored import float_reference, stored_model

UNEXPLAINED = ("float32", "float16", "dynamic")
"""What artifacts hold that have no ranges of their own."""
WHOLE_SAMPLES = 256
"""What whole models are measured on: steps differ by less than 16 samples tell apart."""
CLEAN_UP = "graph.simplify"
"""The pass that the float artifact, too, went through."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is explained.

    Attributes:
        bundle: The bundle.
        reference: Its float model.
        quantized: Its quantized model.
        x: Samples to measure layers on.
        whole: More of them, to measure whole models on; None for golden samples.
        data: What they were chosen from; None for golden samples.
        rerun: The recipe, to be run again; None without data to calibrate on.
    """

    bundle: Bundle
    reference: Model
    quantized: Model
    x: NDArray[Any]
    whole: NDArray[Any] | None = None
    data: Dataset | None = None
    rerun: Rerun | None = None


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """How closely to look.

    Attributes:
        samples: How many samples to measure on.
        closely: How many of the costliest layers to try in other forms.
        requantize: Whether to run the recipe with every remedy, however long that takes.
    """

    samples: int = 16
    closely: int = 10
    requantize: bool = False


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to look at.

    Attributes:
        samples: How many samples to measure on.
        work: A folder for intermediate files.
        cache: Where results of passes are kept; None keeps nothing.
    """

    samples: int
    work: Path
    cache: Path | None


def load_subject(
    bundle: Bundle, spec: DataSpec | None, against: str | None, scope: Scope, emit: Emit
) -> Subject:
    """Finds the models of a bundle, and samples.

    Raises:
        BundleError: The bundle holds no quantized ONNX artifact, or no golden samples.
        UsageError: It holds no float model, and none is named; or its recipe changed the float model, and
            no data is given to do that again.
        ModelError: A model is unreadable.
        DataError: The data does not fit.
    """
    subject = Subject(
        bundle=bundle,
        reference=_reference(bundle, against, emit),
        quantized=_quantized(bundle),
        x=np.zeros(0, np.float32),
    )
    changing = changing_passes(bundle) if against is None else []
    if spec is not None:
        return _with_data(subject, spec, scope, emit)
    if changing:
        raise UsageError(
            "the recipe changed the float model before it quantized it, and the bundle holds it as it was",
            where=str(bundle.folder),
            got=", ".join(changing),
            remedy="give --data with the samples that it was calibrated on, to run these passes again",
        )
    return msgspec.structs.replace(subject, x=_golden_samples(bundle))


def changing_passes(bundle: Bundle) -> list[str]:
    """Passes after clean-up and before quantization that changed the model."""
    steps = bundle.manifest.steps
    changed = [step.use for step in steps if step.digest_in != step.digest_out and step.use != CLEAN_UP]
    return changed[:-1]


def _quantized(bundle: Bundle) -> Model:
    for artifact in bundle.manifest.artifacts:
        if artifact.format == "onnx" and artifact.precision not in UNEXPLAINED:
            return _with_float_ports(stored_model(bundle, artifact), artifact)
    names = ", ".join(artifact.name for artifact in bundle.manifest.artifacts)
    if any(artifact.precision == "dynamic" for artifact in bundle.manifest.artifacts):
        raise BundleError(
            "activations that are quantized at run time have no ranges to explain",
            where=str(bundle.folder),
            got=names,
            remedy="compare the outputs with `edgepipe evaluate`, or explain a bundle of recipe int8",
        )
    raise BundleError(
        "the bundle holds no quantized ONNX artifact to explain",
        where=str(bundle.folder),
        got=names,
        remedy="make one for a target that takes ONNX, as --target x86, by a recipe that quantizes",
    )


def _with_float_ports(model: Model, artifact: Artifact) -> Model:
    """The model with rounding at its inputs and outputs again, where the artifact's ports are integers."""
    proto = model.to_onnx()
    for value, port in zip(proto.graph.input, artifact.inputs, strict=False):
        if port.scale is not None:
            _round_port(proto.graph, value, port, inward=True)
    for value, port in zip(proto.graph.output, artifact.outputs, strict=False):
        if port.scale is not None:
            _round_port(proto.graph, value, port, inward=False)
    return onnx_model(proto, model.name)


def _round_port(graph: Any, value: Any, port: Port, *, inward: bool) -> None:
    import onnx

    integers = f"{port.name}.integers"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == port.name:
                    names[index] = integers
    scale, zero_point = f"{integers}.scale", f"{integers}.zero_point"
    graph.initializer.extend([
        onnx.numpy_helper.from_array(np.array(port.scale, np.float32), scale),
        onnx.numpy_helper.from_array(np.array(port.zero_point, port.dtype), zero_point),
    ])  # fmt: skip
    if inward:
        graph.node.insert(
            0, onnx.helper.make_node("QuantizeLinear", [port.name, scale, zero_point], [integers])
        )
    else:
        graph.node.append(
            onnx.helper.make_node("DequantizeLinear", [integers, scale, zero_point], [port.name])
        )
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _reference(bundle: Bundle, against: str | None, emit: Emit) -> Model:
    if against is not None:
        model = sources.load(against, emit=emit).model
        check_inputs(model, against)
        return model
    return float_reference(bundle)


def _golden_samples(bundle: Bundle) -> NDArray[Any]:
    """The inputs of the golden samples, from the artifact whose ports are as the source's."""
    for artifact in bundle.manifest.artifacts:
        port = artifact.inputs[0]
        if artifact.format == "onnx" and port.scale is None and artifact.golden:
            raw = [bundle.read(golden.inputs[0]) for golden in artifact.golden]
            dtype = np.dtype(port.dtype).newbyteorder("<")
            rows = [np.frombuffer(data, dtype).reshape(port.shape) for data in raw]
            return np.concatenate(rows).astype(port.dtype)
    raise BundleError(
        "the bundle holds no golden samples in float", where=str(bundle.folder), remedy="give --data"
    )


def _with_data(subject: Subject, spec: DataSpec, scope: Scope, emit: Emit) -> Subject:
    reference, manifest = subject.reference, subject.bundle.manifest
    dataset = load_data(
        spec.path,
        spec=reference.inputs[0],
        classes=model_classes(reference),
        preprocessing=spec.preprocessing,
        limit=spec.limit,
        emit=emit,
    )
    known = manifest.calibration.sample_digests if manifest.calibration else ()
    unseen = leave_out(dataset, known)
    some = unseen if len(unseen) else dataset
    subject = msgspec.structs.replace(
        subject,
        x=some.x[evenly(len(some), scope.samples)],
        whole=some.x[evenly(len(some), max(scope.samples, WHOLE_SAMPLES))],
        data=dataset,
    )
    calibration = _calibration(dataset, known, emit) if known else None
    if calibration is None or manifest.calibration is None:
        return subject
    context = Context(
        target=load_target(manifest.target),
        calibration=calibration,
        seed=manifest.seed,
        work=scope.work,
        emit=silent,
    )
    rerun = load_rerun(manifest.steps, reference, context, cache=scope.cache or scope.work / "cache")
    return msgspec.structs.replace(subject, rerun=rerun)


def _calibration(dataset: Dataset, known: Sequence[str], emit: Emit) -> Dataset | None:
    """The samples of the data that the bundle was calibrated on; None, said aloud, where some are missing.

    As many as there were and in their order, as data may hold a sample twice: other sums give other weights.
    """
    places = {digest: at for at, digest in enumerate(digest_rows(dataset.x))}
    rows = [places[digest] for digest in known if digest in places]
    if len(rows) < len(known) or not rows:
        emit(
            Warned(
                f"{len(known) - len(rows)} of the {len(known)} samples that the bundle was calibrated on are "
                "not in the data: its recipe is not run again",
                "give the data that it was made with",
            )
        )
        return None
    return make_dataset(dataset.x[rows], None, dataset.source)
