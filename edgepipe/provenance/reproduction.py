"""What came out when a run was done again."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgepipe.provenance.environment import Change

State = Literal["equal", "within", "differs", "not compared"]
"""Of a check: bit for bit the same; within the tolerance that is told; neither; no comparison, and why."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a run records, beside what was found now.

    Attributes:
        subject: What is compared: "model", "file", "accuracy".
        artifact: Of which artifact; "" for an input.
        state: How it ended.
        recorded: What the run says.
        found: What was found now.
        note: The tolerance, what a difference comes from, or why nothing was compared.
    """

    subject: str
    artifact: str = ""
    state: State
    recorded: str = ""
    found: str = ""
    note: str = ""

    def __str__(self) -> str:
        """``outputs of int8.tflite: recorded 3fa0…, found 77b1… (2 of 4 samples)``."""
        found = ", ".join(
            f"{word} {text}" for word, text in (("recorded", self.recorded), ("found", self.found)) if text
        )
        note = f"({self.note})" if self.note else ""
        return f"{self.name}: {' '.join(filter(None, [found, note]))}"

    @property
    def name(self) -> str:
        """``accuracy of int8.onnx``."""
        return f"{self.subject} of {self.artifact}" if self.artifact else self.subject


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """A run done again, and whether the same came out.

    Attributes:
        run: Id of the run.
        verdict: "REPRODUCED" if no check differs.
        first_difference: The first check that differs, in words; "" if none does.
        checks: Everything that was compared, in the order of the work.
        changes: What of the surroundings is not as it was then: no difference by itself, but what one may
            come from.
        place: Where the artifacts ran now; "" where the work ended before.
        kind: Whether that is a real board; "" likewise.
        recorded_place: Where they ran then.
        recorded_kind: Whether that was a real board.
    """

    run: str
    verdict: Literal["REPRODUCED", "DIFFERS"]
    first_difference: str
    checks: tuple[Check, ...]
    changes: tuple[Change, ...]
    place: str
    kind: str
    recorded_place: str
    recorded_kind: str
