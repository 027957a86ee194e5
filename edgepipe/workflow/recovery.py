"""A bundle's recipe run again: step by step, and with what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgepipe import pipeline
from edgepipe.bundle import Step
from edgepipe.errors import RecipeError
from edgepipe.events import Emit, Event, Stage, StageAdvanced, StageEnded, StageStarted, silent
from edgepipe.model import Model
from edgepipe.passes import Context, Pass
from edgepipe.quantize.scheme import Override
from edgepipe.recipe import Recipe, load_pass, pass_name

PLAIN: dict[str, object] = {"ranges": "minmax", "bias_correction": False, "rounding": "nearest"}
"""Settings of a pass that quantizes with nothing done to recover accuracy; what takes longest comes last."""
_LONG = ("round layer by layer", "sensitivity")
"""Stages that take most of a run's time; the others together take little."""


class Rerun(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe as a bundle records it, ready to be run again.

    Attributes:
        floats: Its passes before the one that quantizes.
        quantizer: The one that quantizes.
        source: The model that it begins with: the bundle's float artifact.
        context: With samples to calibrate on.
        cache: Folder of results; None keeps nothing.
    """

    floats: tuple[Pass, ...]
    quantizer: Pass
    source: Model
    context: Context
    cache: Path | None = None

    def run(self, floats: Sequence[Pass], quantizer: Pass, emit: Emit = silent) -> tuple[Model, Model]:
        """The model before it is quantized, and after."""
        recipe = Recipe(name="explained", description="", passes=(*floats, quantizer))
        context = msgspec.structs.replace(self.context, emit=emit)
        models = [model for model, _ in pipeline.trace(recipe, self.source, context, cache=self.cache)]
        return (models[-2] if floats else self.source), models[-1]

    @property
    def is_long(self) -> bool:
        """Whether a run takes many times a calibration."""
        return getattr(self.quantizer, "rounding", "nearest") != "nearest"

    def stages(self) -> Iterator[tuple[str, tuple[Pass, ...], Pass]]:
        """The recipe with all that recovers accuracy turned off, then one more thing turned on each time."""
        settings = {name: plain for name, plain in PLAIN.items() if _differs(self.quantizer, name, plain)}
        plain = msgspec.structs.replace(self.quantizer, **settings)
        kept = tuple(each for each in self.floats if pass_name(each) == "graph.simplify")
        yield "plain: nearest, min/max", kept, plain
        for each in self.floats:
            if each not in kept:
                kept = (*kept, each)
                yield pass_name(each), kept, plain
        for name in settings:
            value = getattr(self.quantizer, name)
            plain = msgspec.structs.replace(plain, **{name: value})
            yield (f"{name} = {value}" if isinstance(value, str) else name), self.floats, plain

    def with_override(self, override: Override, emit: Emit = silent) -> tuple[Model, Model]:
        """The recipe with one more override, run; its models as `run` gives them.

        Raises:
            RecipeError: The pass that quantizes takes no overrides.
        """
        overrides: tuple[Override, ...] | None = getattr(self.quantizer, "overrides", None)
        if overrides is None:
            raise RecipeError("the pass takes no overrides", where=pass_name(self.quantizer))
        quantizer = msgspec.structs.replace(self.quantizer, overrides=(*overrides, override))
        return self.run(self.floats, quantizer, emit)


class Progress:
    """Turns the stages of one run into progress of a stage that counts runs.

    Args:
        running: The stage that counts runs, `Progress.UNITS` for each.
        runs: How many are done.
    """

    UNITS = 1000

    def __init__(self, running: Stage, runs: int) -> None:
        self._running, self._start = running, runs * self.UNITS
        self._reached = 0.0
        self._stages: dict[str, tuple[float, int]] = {}

    def __call__(self, event: Event) -> None:
        """Takes one event of the run."""
        match event:
            case StageStarted(name, total) if total:
                self._stages[name] = (self._reached, total)
            case StageAdvanced(name, done) if name in self._stages:
                start, total = self._stages[name]
                share = 0.9 if name in _LONG else 0.1
                self._reach(start + (1 - start) * share * min(1.0, done / total))
            case StageEnded():
                self._reach(self._reached + 0.02 * (1 - self._reached))

    def _reach(self, part: float) -> None:
        self._reached = max(self._reached, part)
        self._running.advance(self._start + int(self._reached * self.UNITS))


def load_rerun(steps: Sequence[Step], source: Model, context: Context, *, cache: Path | None) -> Rerun | None:
    """The recipe that a bundle's steps record; None where none of them quantized.

    Raises:
        RecipeError: A pass is not known here, or its settings are not.
    """
    passes = [_load(step) for step in steps]
    quantizers = [at for at, each in enumerate(passes) if each.needs_calibration and _quantizes(each)]
    if not quantizers:
        return None
    return Rerun(
        floats=tuple(passes[: quantizers[-1]]),
        quantizer=passes[quantizers[-1]],
        source=source,
        context=msgspec.structs.replace(context, emit=silent),
        cache=cache,
    )


def _load(step: Step) -> Pass:
    kind = load_pass(step.use)
    try:
        return msgspec.convert(step.settings, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(
            "the bundle's step has settings that this edgepipe does not know",
            where=step.use,
            got=str(error),
            remedy="make the bundle again",
        ) from error


def _quantizes(each: Pass) -> bool:
    return hasattr(each, "overrides")


def _differs(each: Pass, name: str, plain: object) -> bool:
    """Whether a pass has that setting, and it is not the plain one."""
    missing: Any = object()
    return getattr(each, name, missing) not in (missing, plain)
