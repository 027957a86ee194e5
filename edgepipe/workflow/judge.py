"""How good artifacts are, on this machine: every one on the same samples, beside the float model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepipe import sources
from edgepipe.bundle import MANIFEST, Artifact, Bundle, Port, read_bundle
from edgepipe.data import Dataset, leave_out, load_data
from edgepipe.evaluate import Estimate, Judged, compare, evaluate, predictions
from edgepipe.events import Emit, Warned, silent
from edgepipe.job import DataSpec
from edgepipe.model import Model, TensorSpec
from edgepipe.runtime import infer, open_session, usable_cores
from edgepipe.workflow.prepare import check_inputs, model_classes
from edgepipe.workflow.stored import float_reference

Outputs = list[NDArray[np.float32]]


def judge_bundle(bundle: Bundle, reference: Model, data: Dataset, emit: Emit = silent) -> Judged:
    """Evaluates every artifact of a bundle against the float model, on the same samples.

    Args:
        bundle: Whose artifacts to evaluate.
        reference: The float model: ONNX.
        data: Samples, in the layout of the float model's input; labels make accuracies.
        emit: Where progress goes.

    Raises:
        DataError: The samples do not fit.
        ModelError: A runtime refused a model or failed on it.
    """
    calibration = bundle.manifest.calibration
    expected = model_outputs(reference, data.x, emit)
    outputs = {
        artifact.name: _artifact_outputs(bundle, artifact, data, emit)
        for artifact in bundle.manifest.artifacts
    }
    return Judged(
        reference=evaluate(expected, expected, data),
        artifacts={
            name: evaluate(expected, found, data, calibration=calibration) for name, found in outputs.items()
        },
        agreement=_agreements(expected, outputs, data),
    )


def evaluate_subject(
    subject: str, data: DataSpec, *, against: str | None = None, emit: Emit = silent
) -> Judged:
    """Evaluates a bundle's artifacts, or a model, on this machine.

    Args:
        subject: A bundle's folder, or a model that `edgepipe.sources.load` reads.
        data: The samples.
        against: The model to compare with; by default a bundle's float32 ONNX artifact, or the model itself.
        emit: Where progress goes.

    Raises:
        BundleError: The folder is no bundle, or was altered.
        UsageError: A bundle without a float ONNX artifact needs `against`.
        ModelError: A model is missing or unreadable.
        DataError: The samples do not fit.
    """
    bundle = read_bundle(Path(subject)) if (Path(subject) / MANIFEST).is_file() else None
    model = sources.load(subject, emit=emit).model if bundle is None else None
    if against is not None:
        reference = sources.load(against, emit=emit).model
    elif bundle is not None:
        reference = float_reference(bundle)
    else:
        assert model is not None  # noqa: S101 - one of the two was read
        reference = model
    check_inputs(reference, against or subject)
    dataset = load_data(
        data.path,
        spec=reference.inputs[0],
        classes=model_classes(reference),
        preprocessing=data.preprocessing,
        limit=data.limit,
        emit=emit,
    )
    if bundle is not None:
        return judge_bundle(bundle, reference, _unseen(bundle, dataset, emit), emit)
    expected = model_outputs(reference, dataset.x, emit)
    found = (
        {reference.name: expected} if model is None else {model.name: model_outputs(model, dataset.x, emit)}
    )
    return Judged(
        reference=evaluate(expected, expected, dataset),
        artifacts={name: evaluate(expected, outputs, dataset) for name, outputs in found.items()},
    )


def _unseen(bundle: Bundle, data: Dataset, emit: Emit) -> Dataset:
    """The samples that the bundle was not calibrated on; all, to be branded, where there are no others."""
    calibration = bundle.manifest.calibration
    unseen = data if calibration is None else leave_out(data, calibration.sample_digests)
    if len(unseen) == 0:
        return data
    if len(unseen) < len(data):
        seen = len(data) - len(unseen)
        emit(Warned(f"left out {seen} of {len(data)} samples: the bundle was calibrated on them"))
    return unseen


def model_outputs(model: Model, x: NDArray[Any], emit: Emit = silent) -> Outputs:
    """What an ONNX model computes for every sample: one float32 array [n, ...] for each output."""
    session = open_session(model.payload, "onnx", threads=usable_cores())
    return infer(
        session,
        _ports(model.inputs),
        _ports(model.outputs),
        x,
        emit=emit,
        title=f"evaluate {model.name}",
    )


def _artifact_outputs(bundle: Bundle, artifact: Artifact, data: Dataset, emit: Emit) -> Outputs:
    session = open_session(bundle.read(artifact.name), artifact.format, threads=usable_cores())
    return infer(
        session, artifact.inputs, artifact.outputs, data.x, emit=emit, title=f"evaluate {artifact.name}"
    )


def _ports(specs: tuple[TensorSpec, ...]) -> tuple[Port, ...]:
    """Float ports as the model has them."""
    return tuple(
        Port(
            name=spec.name,
            dtype=spec.dtype,
            shape=tuple(size or 1 for size in spec.shape),
            permutation=tuple(range(len(spec.shape))),
        )
        for spec in specs
    )


def _agreements(reference: Outputs, outputs: Mapping[str, Outputs], data: Dataset) -> dict[str, Estimate]:
    """Top-1 agreement of each pair of quantized artifacts, for classifiers."""
    named = {
        name: predictions(reference, found, data)
        for name, found in outputs.items()
        if not name.startswith("float")
    }
    classes = {name: found for name, found in named.items() if found is not None}
    return {
        f"{first} = {second}": compare(classes[first], classes[second], None).agreement
        for first, second in combinations(classes, 2)
    }
