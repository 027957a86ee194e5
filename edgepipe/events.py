"""What long work says while it runs. Work emits events; the command line turns them into progress bars.

A workflow never prints. It is handed an ``Emit`` and the caller decides what becomes of each event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec


class Event(msgspec.Struct, frozen=True, tag=True):
    """Base of everything that work may say."""


class StageStarted(Event, frozen=True):
    """A stage of work begins; `total` counts its units of progress, None where unknown."""

    stage: str
    total: int | None = None


class StageAdvanced(Event, frozen=True):
    """`done` units of the stage are finished, of the total that it started with."""

    stage: str
    done: int


class StageEnded(Event, frozen=True):
    """The stage is over; `detail` is what it found, in a few words."""

    stage: str
    detail: str = ""


class Warned(Event, frozen=True):
    """Something that does not stop the work but that the user should know."""

    text: str
    remedy: str = ""


Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Drops the event; the default of every `emit` parameter."""


class Stage:
    """A running stage: `advance` it, and set `detail` to say what came out of it."""

    def __init__(self, name: str, emit: Emit) -> None:
        self.name = name
        self.detail = ""
        self._emit = emit

    def advance(self, done: int) -> None:
        """Reports that `done` units are finished in all."""
        self._emit(StageAdvanced(self.name, done))


@contextmanager
def stage(emit: Emit, name: str, total: int | None = None) -> Iterator[Stage]:
    """Emits the start and, unless an error ends it, the end of a stage."""
    emit(StageStarted(name, total))
    running = Stage(name, emit)
    yield running
    emit(StageEnded(name, running.detail))
