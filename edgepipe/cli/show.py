"""What people see: events as progress on stderr, results on stdout, errors in one block."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgepipe.errors import EdgepipeError
from edgepipe.events import Event, StageAdvanced, StageEnded, StageStarted, Warned

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID


def print_result(table: RenderableType, data: Any, *, as_json: bool) -> None:
    """Prints `data` as JSON, or `table` for people, on stdout."""
    if as_json:
        import msgspec

        # Through msgspec for records, through json for the indentation that people can read.
        json.dump(msgspec.to_builtins(data), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    from rich.console import Console

    Console().print(table)


def print_error(error: EdgepipeError, *, as_json: bool) -> None:
    """Prints `error` on stderr, with what to do about it; as one JSON object on stdout for `--json`."""
    if as_json:
        json.dump({"error": error.to_dict()}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble(("error: ", "bold red"), (error.what, "bold"))
    for label, detail in (("where", error.where), ("got", error.got), ("do", error.remedy)):
        if detail:
            text.append(f"\n  {label:>5}: ", style="dim" if label != "do" else "bold green")
            text.append(detail.replace("\n", "\n         "))
    Console(stderr=True).print(text, soft_wrap=True)


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
