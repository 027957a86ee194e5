"""Tables of figures that stay readable on a narrow terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

NARROW = 76
"""Columns below which a table would break its figures over several lines."""

_WHOLE = ("artifact", "verdict")


class FigureTable(Table):
    """A table whose rows become blocks, a line a figure, where the terminal is narrow."""

    def add(self, *cells: RenderableType) -> None:
        """Adds a row whose strings are shown as they are: names of users and devices are no markup."""
        self.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= NARROW:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.assemble((str(self.title), "dim"), "\n")
        labels = [str(column.header).replace("\n", ", ") for column in self.columns[1:]]
        width = max(map(len, labels), default=0)
        for name, *figures in zip(*(column.cells for column in self.columns), strict=True):
            yield _one_line(name, ", ")
            for label, figure in zip(labels, figures, strict=True):
                yield Text.assemble((f"  {label:{width}}  ", "dim"), _one_line(figure, " "))
            yield Text()


def figure_table(*columns: str, title: str | None = None) -> FigureTable:
    """A table whose columns are right-aligned where their name begins with ">"."""
    table = FigureTable(
        title=None if title is None else Text(title),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="dim",
        title_style="dim",
        title_justify="left",
    )
    for column in columns:
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=column in _WHOLE,
        )
    return table


def _one_line(cell: RenderableType, joint: str) -> Text:
    """A cell of several lines on one."""
    text = cell if isinstance(cell, Text) else Text(str(cell))
    return Text(joint).join(text.split("\n"))
