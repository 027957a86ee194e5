"""Everything that bad input can stop, done before any work: target, recipe, source, ops, data."""

from __future__ import annotations

from functools import partial

import msgspec

from edgepipe import sources
from edgepipe.data import Dataset, find_data, load_data, random_data, split
from edgepipe.data.peek import peek
from edgepipe.errors import (
    CalibrationDataMissing,
    DataError,
    ModelError,
    UsageError,
)
from edgepipe.evaluate import class_count
from edgepipe.events import Emit, Warned
from edgepipe.graph.edit import is_quantized
from edgepipe.job import Job
from edgepipe.model import Model
from edgepipe.recipe import Recipe, load_recipe
from edgepipe.target import Target, load_target

DEFAULT_CALIBRATION_SAMPLES = 128
RANDOM_CALIBRATION_SAMPLES = 32
FIDELITY_SAMPLES = 8


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A job whose parts were found, loaded and checked against each other.

    Attributes:
        job: What was asked for.
        target: The kind of board.
        recipe: The passes to run.
        source: The model as one ONNX graph, with its fidelity to what the user named.
        calibration: Samples to calibrate on; None where there are none and none are needed.
        evaluation: Samples to evaluate on, none of which are calibrated on; None without real data.
    """

    job: Job
    target: Target
    recipe: Recipe
    source: sources.Source
    calibration: Dataset | None
    evaluation: Dataset | None

    @property
    def golden_samples(self) -> Dataset:
        """Samples for the device to reproduce: real ones where there are any."""
        found = self.evaluation or self.calibration
        return found if found is not None else random_data(self.source.model.inputs[0], 4, self.job.seed)


def prepare(job: Job, emit: Emit) -> Prepared:
    """Loads and checks everything that the job names.

    Raises:
        UsageError: Options that contradict each other.
        TargetError: Unknown target.
        RecipeError: Unknown recipe, pass or key.
        ModelError: The model is missing, unreadable, or holds an op that the target's formats can't express.
        DataError: The data is missing or does not fit the model.
        CalibrationDataMissing: The recipe calibrates and there is no data.
    """
    target, recipe = load_target(job.target), load_recipe(job.recipe)
    if job.calibrate_random and job.data is not None:
        raise UsageError(
            "--calibrate-random and --data contradict each other",
            remedy="leave one out: data is better",
        )
    if job.data is not None:
        find_data(job.data)  # loading a model may take long
    source = _load_source(job, emit)
    check_inputs(source.model, job.model)
    check_ops(source.model, target)
    calibration, evaluation = _load_datasets(job, source.model, recipe, emit)
    return Prepared(
        job=job, target=target, recipe=recipe, source=source, calibration=calibration, evaluation=evaluation
    )


def check_inputs(model: Model, where: str) -> None:
    """Raises ModelError if the model has several inputs: data is samples for one."""
    if len(model.inputs) != 1:
        raise ModelError(
            "data feeds one input, but the model has not just one",
            where=where,
            got=", ".join(map(str, model.inputs)) or "no input",
            remedy="export the model with the others as constants",
        )


def check_ops(model: Model, target: Target) -> None:
    """Raises UnsupportedOp, naming the node, if a format of the target can't express the model."""
    from edgepipe.convert import ort, tflite

    checks = {"onnx": ort.check, "tflite": tflite.check}
    for artifact_format in target.formats:
        checks[artifact_format](model)


def _load_source(job: Job, emit: Emit) -> sources.Source:
    load = partial(
        sources.load,
        job.model,
        weights=None if job.weights is None else str(job.weights),
        input_shape=job.input_shape,
        seed=job.seed,
        emit=emit,
    )
    if job.data is None:
        return load()
    try:
        return load(sample=peek(job.data, FIDELITY_SAMPLES, preprocessing=job.preprocessing))
    except DataError:
        # A few samples do not fit. All of them, read next, say so with the file's name and whole shape.
        return load()


def _load_datasets(
    job: Job, model: Model, recipe: Recipe, emit: Emit
) -> tuple[Dataset | None, Dataset | None]:
    """The samples to calibrate on and those to evaluate on."""
    calibrates = any(each.needs_calibration for each in recipe.passes) and not is_quantized(model)
    spec = model.inputs[0]
    if job.data is not None:
        data = load_data(
            job.data, spec=spec, classes=model_classes(model), preprocessing=job.preprocessing,
            limit=job.limit, seed=job.seed, emit=emit,
        )  # fmt: skip
        if not calibrates:
            return None, data
        calibration, evaluation = split(data, _calibration_samples(job, len(data)), job.seed)
        return calibration, evaluation if len(evaluation) else None
    if not calibrates:
        return None, None
    if not job.calibrate_random:
        raise CalibrationDataMissing(
            f"recipe {recipe.name} calibrates on real samples, and there is no data",
            where=job.model,
            remedy="give --data FILE.npz or a folder of images; --calibrate-random makes samples up",
        )
    emit(Warned("calibrated on random numbers", "unfit for any claim about accuracy: give --data"))
    return random_data(spec, RANDOM_CALIBRATION_SAMPLES, job.seed), None


def _calibration_samples(job: Job, available: int) -> int:
    if job.calibration_samples is None:
        return max(1, min(DEFAULT_CALIBRATION_SAMPLES, available // 4))
    if job.calibration_samples > available:
        raise UsageError(
            "more calibration samples than there are",
            where="--calibration-samples",
            got=f"{job.calibration_samples}, the data holds {available}",
            remedy="ask for fewer, and leave some for evaluation",
        )
    return job.calibration_samples


def model_classes(model: Model) -> int | None:
    """Classes of a classifier, judged by its shapes; None for any other model."""
    return class_count(model.inputs[0].shape[1:], [output.shape[1:] for output in model.outputs])
