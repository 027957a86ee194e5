"""Which layers of a bundle lose its accuracy, why, and what would help."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe import evaluate
from edgepipe.bundle import read_bundle
from edgepipe.events import Emit, Warned, silent, stage
from edgepipe.job import DataSpec
from edgepipe.model import Model
from edgepipe.quantize.explain.attribution import Bench, attribute, sqnr_db
from edgepipe.quantize.explain.diagnose import diagnose, weight_diagnosis
from edgepipe.quantize.explain.explanation import Explanation, RecoveryStep
from edgepipe.quantize.explain.pairing import pair, same_decisions, same_grids
from edgepipe.quantize.explain.summary import summarize
from edgepipe.workflow.judge import model_outputs
from edgepipe.workflow.recovery import Progress
from edgepipe.workflow.remedies import find_remedies
from edgepipe.workflow.subject import Depth, Scope, Subject, changing_passes, load_subject

MOST_APART_DB = 10.0
"""By how much rounding for a layer's output may change the SQNR of its weight: two bits change more."""


def explain(
    bundle: Path | str,
    *,
    data: DataSpec | Path | str | None = None,
    against: str | None = None,
    depth: Depth | None = None,
    cache: Path | None = None,
    emit: Emit = silent,
) -> Explanation:
    """Explains a bundle layer by layer: what each costs at the outputs, why, and what would help.

    Args:
        bundle: Its folder.
        data: Samples; by default the bundle's few golden samples. Those that it was calibrated on serve
            to run its recipe again, the others to measure on.
        against: The float model, where the bundle holds none.
        depth: How closely to look; by default at ten layers on 16 samples.
        cache: Where results of passes are kept; None keeps nothing.
        emit: Where progress goes.

    Raises:
        BundleError: The folder is no bundle, was altered, or holds no quantized ONNX artifact.
        UsageError: The bundle holds no float model, and none is named.
        ModelError: The models do not fit each other.
        DataError: The data does not fit.
    """
    depth = depth or Depth()
    spec = DataSpec(path=Path(data)) if isinstance(data, str | Path) else data
    found = read_bundle(Path(bundle))
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as work:
        scope = Scope(samples=depth.samples, work=Path(work), cache=cache)
        subject = load_subject(found, spec, against, scope, emit)
        return _explain(subject, depth, emit)


def _explain(subject: Subject, depth: Depth, emit: Emit) -> Explanation:
    subject, steps, history = _repeat(subject, emit)
    diagnosis = diagnose(subject.reference, subject.quantized, subject.x, emit)
    bench = Bench(subject.reference, subject.quantized, subject.x, diagnosis)
    layers = tuple(
        msgspec.structs.replace(each, steps=tuple(sqnrs.get(each.layer.tensor) for sqnrs in history))
        for each in attribute(bench, diagnosis, closely=depth.closely, emit=emit)
    )
    manifest, data = subject.bundle.manifest, subject.data
    explanation = Explanation(
        model_name=manifest.model_name,
        target=manifest.target,
        recipe=manifest.recipe,
        bundle_digest=subject.bundle.digest,
        data_source="golden samples" if data is None else data.source,
        golden=data is None,
        samples=len(subject.x),
        output_sqnr_db=sqnr_db(bench.noise),
        layers=layers,
        steps=steps,
        remedies=find_remedies(bench, layers, subject.rerun, depth.requantize, emit),
    )
    return msgspec.structs.replace(explanation, summary=summarize(explanation))


def _repeat(
    subject: Subject, emit: Emit
) -> tuple[Subject, tuple[RecoveryStep, ...], list[dict[str, float | None]]]:
    """Runs the recipe step by step: SQNR of the outputs and of every layer after each.

    The subject that is returned holds the float model that the bundle's own was quantized from; where
    that cannot be had again, both models are those that the recipe gives now.
    """
    if subject.rerun is None:
        return subject, (), []
    steps: list[RecoveryStep] = []
    history: list[dict[str, float | None]] = []
    rerun, stages = subject.rerun, list(subject.rerun.stages())
    before, after = subject.reference, subject.quantized
    outputs = _Outputs(subject.x if subject.whole is None else subject.whole)
    with stage(emit, "run the recipe step by step", total=len(stages) * Progress.UNITS) as running:
        for done, (name, floats, quantizer) in enumerate(stages):
            is_last = done == len(stages) - 1
            if is_last and steps and rerun.is_long and _differ_in_rounding(subject, before, after):
                after = subject.quantized  # what the bundle holds needs no run
            else:
                before, after = rerun.run(floats, quantizer, Progress(running, done))
            steps.append(outputs.after(name, before, after))
            layers = diagnose(before, after, subject.x).layers
            history.append({layer.tensor: layer.sqnr_db for layer in layers})
            running.advance((done + 1) * Progress.UNITS)
        running.detail = ", ".join(step.name for step in steps)
    subject = msgspec.structs.replace(subject, **_models(subject, before, after, emit))
    return subject, tuple(steps), history


class _Outputs:
    """Whole models on all samples; the float model's outputs are kept while it stays the same.

    Args:
        x: The samples.
    """

    def __init__(self, x: NDArray[Any]) -> None:
        self._x = x
        self._digest, self._exact = "", np.zeros(0, np.float32)

    def after(self, name: str, before: Model, after: Model) -> RecoveryStep:
        """The record of a step that made `after` of `before`."""
        if self._digest != before.digest:
            self._digest, self._exact = before.digest, self._run(before)
        found = evaluate.sqnr_db(self._exact, self._run(after))
        return RecoveryStep(
            name=name, output_sqnr_db=None if found is None else round(found, 2), samples=len(self._x)
        )

    def _run(self, model: Model) -> NDArray[np.float32]:
        return np.concatenate([each.ravel() for each in model_outputs(model, self._x)])


def _differ_in_rounding(subject: Subject, before: Model, after: Model) -> bool:
    """Whether the bundle's model is what the recipe gives now, but for how its weights are rounded."""
    ours, theirs = pair(before, subject.quantized), pair(before, after)
    if not same_grids(ours, theirs):
        return False
    others = {each.name: each.weight for each in theirs.junctions}
    apart = [
        abs((weight_diagnosis(weight).sqnr_db or 0.0) - (weight_diagnosis(other).sqnr_db or 0.0))
        for each in ours.junctions
        for weight, other in [(each.weight, others[each.name])]
        if weight is not None and other is not None
    ]
    return not apart or median(apart) < MOST_APART_DB


def _models(subject: Subject, before: Model, after: Model, emit: Emit) -> dict[str, Model]:
    """The bundle's quantized model with the float model that its layers can be compared with."""
    if same_decisions(pair(before, subject.quantized), pair(before, after)):
        return {"reference": before}
    emit(
        Warned(
            "the recipe gives another model now than the bundle holds: that was made by another edgepipe, or "
            "other packages",
            "make the bundle again to explain what this one makes",
        )
    )
    if changing_passes(subject.bundle):
        return {"reference": before, "quantized": after}
    return {}
