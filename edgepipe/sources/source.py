"""What a source is asked for, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edgepipe.events import Emit, silent
from edgepipe.model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["onnx", "torch", "torch-export", "tflite", "savedmodel", "keras"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked to load.

    Attributes:
        path: The file or folder.
        origin: The source as the user named it.
        factory: Name of the function or class in a Python file; "" for every other source.
        weights: A checkpoint for the factory's module; None where it brings its own.
        input_shape: Shape of the model's input, batch first; None where the source says it.
        sample: Real samples for the fidelity check, [n, ...] in the layout of the input; or None.
        seed: Seed of random samples where no real ones are given.
        emit: Where progress and warnings go.
    """

    path: Path
    origin: str
    factory: str = ""
    weights: Path | None = None
    input_shape: tuple[int, ...] | None = None
    sample: NDArray[np.generic] | None = None
    seed: int = 0
    emit: Emit = silent


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """How closely the float ONNX graph reproduces what its source computes.

    Attributes:
        samples: Number of samples compared.
        sample_source: "given" for the user's samples, "random" for standard normal ones.
        max_abs_error: Largest absolute difference of any output element.
        peak: Largest absolute value of any output element of the source.
        sqnr_db: 10 log10 of the outputs' energy over that of their error; None where all are equal.
        reference: The runtime that ran the source: "LiteRT 2.3.0".
        note: What else must be known to read these figures, or "".
    """

    samples: int
    sample_source: Literal["given", "random"]
    max_abs_error: float
    peak: float
    sqnr_db: float | None
    reference: str
    note: str = ""

    def __str__(self) -> str:
        """``equal to LiteRT 2.3.0 within 6.7e-07 (110 dB) on 8 random samples``."""
        level = "" if self.sqnr_db is None else f" ({self.sqnr_db:.0f} dB)"
        close = "bit for bit" if self.sqnr_db is None else f"within {self.max_abs_error:.1e}{level}"
        plural = "" if self.samples == 1 else "s"
        note = f"; {self.note}" if self.note else ""
        samples = f"{self.samples} {self.sample_source} sample{plural}"
        return f"equal to {self.reference} {close} on {samples}{note}"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it came in, in the one form that everything after it takes.

    Attributes:
        model: The ONNX graph: float, or QDQ where the source was a QDQ model.
        origin: What the user named.
        kind: What it was.
        fidelity: None where nothing was converted, so nothing could differ.
    """

    model: Model
    origin: str
    kind: Kind
    fidelity: Fidelity | None
