"""What an emitter gives: a file's bytes with all that a runtime and a bundle must know of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgepipe.bundle import ArtifactFormat, Port, Precision

PortType = Literal["float32", "integer"]
"""Type of the ports of a quantized artifact: float32 (it converts inside), or its own integers."""


class Emission(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact that is not yet in a bundle; fields as in `edgepipe.bundle.Artifact`.

    Attributes:
        notes: What of a quantized model the format could not keep, a sentence each.
    """

    format: ArtifactFormat
    precision: Precision
    payload: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    op_counts: dict[str, int]
    needs: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Precision and format: "int8.tflite"."""
        return f"{self.precision}.{self.format}"
