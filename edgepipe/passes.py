"""What a pass is: its own configuration, validation, help text and work in one frozen record.

A pass takes a model and gives a model; it never changes the one it was handed, and the same seed
gives the same bytes. `edgepipe.pipeline` drives passes; `edgepipe.recipe` names and loads them.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from edgepipe.data import Dataset
from edgepipe.events import Emit, silent
from edgepipe.model import Format, Model
from edgepipe.target import Target


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass may look at besides the model.

    Attributes:
        target: The kind of board that the model is made for.
        calibration: Samples to calibrate on; None where the recipe needs none.
        seed: Seed of everything random in a pass.
        work: A folder for intermediate files; it is removed afterwards.
        emit: Where progress and warnings go.
    """

    target: Target
    calibration: Dataset | None = None
    seed: int = 0
    work: Path
    emit: Emit = silent


class Pass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every pass. Fields are the keys that a recipe may set; their bounds are msgspec.Meta.

    The docstring of a pass names the paper and equation, or the vendor document, that it follows.
    """

    takes: ClassVar[Format] = "onnx"
    gives: ClassVar[Format] = "onnx"
    needs_calibration: ClassVar[bool] = False

    def apply(self, model: Model, context: Context) -> Model:
        """The model after this pass; `model` itself stays as it was."""
        raise NotImplementedError


def accepted_values(annotation: Any) -> str:
    """What a setting of that type takes, in words: "2 to 8", or its choices as TOML writes them."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(accepted_values(each) for each in arguments if each is not types.NoneType)
    if origin is typing.Literal:
        return ", ".join(msgspec.json.encode(value).decode() for value in arguments)
    if origin is tuple:
        each = accepted_values(arguments[0])
        return each.replace("a table", "tables") if each.startswith("a table") else f"a list of {each}"
    if origin is typing.Annotated:
        return _bounds(next((each for each in arguments if isinstance(each, msgspec.Meta)), msgspec.Meta()))
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return f"a table with {', '.join(annotation.__struct_fields__)}"
    return {bool: "true, false", int: "a whole number", float: "a number", str: "text"}.get(
        annotation, str(annotation)
    )


def _bounds(meta: msgspec.Meta) -> str:
    low = f"{meta.ge}" if meta.ge is not None else f"above {meta.gt}" if meta.gt is not None else ""
    high = f"{meta.le}" if meta.le is not None else f"below {meta.lt}" if meta.lt is not None else ""
    if low and high:
        return f"{low} to {high}" if meta.ge is not None and meta.le is not None else f"{low}, to {high}"
    if low:
        return f"{low} or more" if meta.ge is not None else low
    return f"{high} or less" if meta.le is not None else high or "any"
