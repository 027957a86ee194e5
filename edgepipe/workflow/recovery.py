"""A bundle's recipe run again: step by step, and with what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgepipe import pipeline
from edgepipe.bundle import Step
from edgepipe.errors import RecipeError
from edgepipe.events import silent
from edgepipe.model import Model
from edgepipe.passes import Context, Pass
from edgepipe.quantize.scheme import Override
from edgepipe.recipe import Recipe, load_pass, pass_name

PLAIN: dict[str, object] = {"ranges": "minmax", "rounding": "nearest", "bias_correction": False}
"""Settings of a pass that quantizes with nothing done to recover accuracy."""


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

    def run(self, floats: Sequence[Pass], quantizer: Pass) -> tuple[Model, Model]:
        """The model before it is quantized, and after."""
        recipe = Recipe(name="explained", description="", passes=(*floats, quantizer))
        models = [model for model, _ in pipeline.trace(recipe, self.source, self.context, cache=self.cache)]
        return (models[-2] if floats else self.source), models[-1]

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

    def with_override(self, override: Override) -> tuple[Model, Model]:
        """The recipe with one more override, run; its models as `run` gives them.

        Raises:
            RecipeError: The pass that quantizes takes no overrides.
        """
        overrides: tuple[Override, ...] | None = getattr(self.quantizer, "overrides", None)
        if overrides is None:
            raise RecipeError("the pass takes no overrides", where=pass_name(self.quantizer))
        return self.run(
            self.floats, msgspec.structs.replace(self.quantizer, overrides=(*overrides, override))
        )


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
