"""What a pass is: its own configuration, validation, help text and work in one frozen record.

A pass takes a model and gives a model; it never changes the one it was handed, and the same seed
gives the same bytes. `edgepipe.pipeline` drives passes; `edgepipe.recipe` names and loads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

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
