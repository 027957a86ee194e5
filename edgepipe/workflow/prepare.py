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
    EdgepipeError,
    ModelError,
    UnsupportedOp,
    UsageError,
)
from edgepipe.evaluate import class_count
from edgepipe.events import Emit, Warned
from edgepipe.graph.edit import is_quantized
from edgepipe.graph.simplify import Simplify, simplify
from edgepipe.job import Job
from edgepipe.model import Model
from edgepipe.recipe import Recipe, load_recipe
from edgepipe.target import Target, load_target

FEW_CALIBRATION_SAMPLES = 64
"""With less than so many, one odd sample sets a range, and one that is missing clips."""

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
        UsageError: Options that contradict each other, or a recipe that the model leaves nothing to do.
        TargetError: Unknown target.
        RecipeError: Unknown recipe, pass or key.
        ModelError: The model is missing, unreadable, or holds an op that the target's formats can't express.
        DataError: The data is missing or does not fit the model.
        CalibrationDataMissing: The recipe calibrates and there is no data.
    """
    target, recipe = load_target(job.target), load_recipe(job.recipe)
    check_precision(recipe, target)
    if job.calibrate_random and job.data is not None:
        raise UsageError(
            "--calibrate-random and --data contradict each other",
            remedy="leave one out: data is better",
        )
    if job.data is not None:
        find_data(job.data)  # loading a model may take long
    source = _load_source(job, emit)
    check_inputs(source.model, job.model)
    check_outputs(source.model, job.model)
    _check_recipe(recipe, source.model, job.model)
    _check_source_ops(source.model, recipe, target)
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


def check_outputs(model: Model, where: str) -> None:
    """Raises ModelError if an output has no batch axis: each sample must have results of its own."""
    for output in model.outputs:
        if not output.shape or output.shape[0] not in (None, 1):
            raise ModelError(
                "an output has no batch axis",
                where=where,
                got=f"{output}, where the input is {model.inputs[0]}",
                remedy="export the model with the batch as the first axis of every output",
            )


def _check_recipe(recipe: Recipe, model: Model, where: str) -> None:
    """Raises UsageError for a recipe that has nothing to do on a model that is quantized already."""
    if recipe.precision == "float16" and is_quantized(model):
        raise UsageError(
            f"recipe {recipe.name} halves float weights, but the model is quantized already",
            where=where,
            remedy="use --recipe int8, which keeps its quantization, or give the float model",
        )


def check_precision(recipe: Recipe, target: Target) -> None:
    """Raises UsageError if no runtime of the target runs what a recipe makes."""
    from edgepipe.convert.precision import LEAST_RUNTIMES, runs

    has = ", ".join(f"{each.name} {each.version}" for each in target.runtimes)
    # The bounds hold for scales by channel; older kernels know one scale for a weight.
    coarse = any(getattr(each, "granularity", "") == "per-tensor" for each in recipe.passes)
    if (coarse and recipe.precision != "dynamic") or any(
        runs(recipe.precision, each.name, each.version) for each in target.runtimes
    ):
        return
    least = " or ".join(f"{name} {version}" for name, version in LEAST_RUNTIMES[recipe.precision].items())
    raise UsageError(
        f"no runtime of {target.name} runs what recipe {recipe.name} makes ({recipe.precision})",
        where=f"target {target.name}",
        got=f"{has}, where {least} is needed",
        remedy="take --recipe int8, or a target file of your own that names the runtimes of your board",
    )


def _check_source_ops(model: Model, recipe: Recipe, target: Target) -> None:
    """As `check_ops`, but for ops that the recipe's clean-up folds away."""
    try:
        check_ops(model, target)
    except UnsupportedOp as found:
        if not any(isinstance(each, Simplify) for each in recipe.passes):
            raise
        try:
            check_ops(simplify(model), target)
        except UnsupportedOp as left:
            raise (found if found.what == left.what else left) from None  # by the name that the user knows


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
    except DataError as misfit:
        # A few samples do not fit. All of them, read next, say so with the file's name and whole shape.
        try:
            return load()
        except EdgepipeError:  # a source that takes its shape from the samples gets no further
            misfit.where = str(job.data)
            raise misfit from None


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
        calibration, evaluation = split(data, job.calibration_samples, job.seed)
        _warn_of_few(len(calibration), emit)
        return calibration, evaluation
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


def _warn_of_few(samples: int, emit: Emit) -> None:
    if samples < FEW_CALIBRATION_SAMPLES:
        plural = "" if samples == 1 else "s"
        emit(Warned(f"{samples} calibration sample{plural}: ranges are a guess", "100 or more are usual"))


def model_classes(model: Model) -> int | None:
    """Classes of a classifier, judged by its shapes; None for any other model."""
    return class_count(model.inputs[0].shape[1:], [output.shape[1:] for output in model.outputs])
