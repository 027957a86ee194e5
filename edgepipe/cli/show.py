"""What people see: events as progress on stderr, results on stdout, errors in one block."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgepipe.errors import EdgepipeError, OutputError
from edgepipe.events import Event, StageAdvanced, StageEnded, StageStarted, Warned

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID


STDOUT = "standard output"


def print_result(table: RenderableType, data: Any, *, as_json: bool) -> None:
    """Prints `data` as JSON, or `table` for people, on stdout.

    Raises:
        OutputError: Stdout cannot be written.
    """
    if as_json:
        from edgepipe.files import to_json

        with _writing():
            sys.stdout.write(to_json(data).decode())
        return
    from rich.console import Console

    with _writing():
        Console().print(table)


def print_file(path: Path, *, as_json: bool) -> None:
    """Prints the path of a file that was written, in one piece.

    Raises:
        OutputError: Stdout cannot be written.
    """
    line = json.dumps({"file": str(path)}) if as_json else str(path)
    with _writing():
        sys.stdout.write(line + "\n")


def print_error(error: EdgepipeError, *, as_json: bool) -> None:
    """Prints `error` on stderr, with what to do about it; as one JSON object on stdout for `--json`."""
    if as_json and error.where != STDOUT:
        with suppress(OutputError), _writing():  # where stdout takes nothing, stderr may
            sys.stdout.write(json.dumps({"error": error.to_dict()}, indent=2) + "\n")
            return
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("error: ", "bold red"), (error.what, "bold"))
    for label, detail in (("where", error.where), ("got", error.got), ("do", error.remedy)):
        if detail:
            text.append(f"\n  {label:>5}: ", style="dim" if label != "do" else "bold green")
            text.append(detail.replace("\n", "\n         "))
    Console(stderr=True).print(text, soft_wrap=True)


@contextmanager
def _writing() -> Iterator[None]:
    """Turns what keeps stdout from being written into one error, at once and not when the program ends."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer goes nowhere, or Python complains of it on its way out.
        with suppress(OSError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has seen enough: `| head -1`
            raise SystemExit(1) from error
        raise OutputError(
            "the result cannot be written",
            where=STDOUT,
            got=error.strerror or str(error),
            remedy="free some space, or send the output elsewhere",
        ) from error


class ProgressView:
    """Shows events on stderr while work runs: bars on a terminal, one line a finished stage elsewhere.

    Use it as a context manager; the view itself is the `emit` that workflows take.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks.values():  # what an error cut off must not look finished
            self._progress.remove_task(task)
        self._progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the terminal to somebody who is asked a question."""
        live = self._progress.live
        if not live.is_started:
            yield
            return
        live.transient, kept = True, live.transient  # the bars come back below the answer
        live.stop()
        try:
            yield
        finally:
            live.transient = kept
            live.start()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case StageStarted(stage, total):
                if stage in self._tasks:  # begun a second time, after an error
                    self._progress.remove_task(self._tasks[stage])
                self._tasks[stage] = self._progress.add_task(stage, total=total, detail="")
            case StageAdvanced(stage, done):
                self._progress.update(self._tasks[stage], completed=done)
            case StageEnded(stage, detail):
                self._finish(stage, detail)
            case Warned(text, remedy):
                self._warn(text, remedy)

    def _warn(self, text: str, remedy: str) -> None:
        from rich.markup import escape

        advice = f" [dim]({escape(remedy)})[/dim]" if remedy else ""
        line = f"[yellow]warning:[/yellow] {escape(text)}{advice}"
        self._console.print(line, soft_wrap=True, highlight=False)

    def _finish(self, stage: str, detail: str) -> None:
        from rich.markup import escape

        task = self._tasks.pop(stage)
        elapsed_s = self._progress.tasks[self._progress.task_ids.index(task)].elapsed or 0.0
        self._progress.remove_task(task)
        line = f"[green]✓[/green] {escape(stage)} [dim]{elapsed_s:.1f} s[/dim]  {escape(detail)}"
        self._console.print(line.rstrip(), soft_wrap=True, highlight=False)
