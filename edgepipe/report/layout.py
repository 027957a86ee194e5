"""Tables of figures that stay readable on a narrow terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

NARROW = 76
"""Columns below which a table would break its figures over several lines."""
SHORTEST = 20
"""What is left of a long name at least."""
_BETWEEN = 2
"""Columns that padding and lines take for each column of a table."""

_WHOLE = ("artifact", "verdict")


class FigureTable(Table):
    """A table that breaks no word: where the terminal is too narrow, rows become blocks, a line a figure."""

    def add(self, *cells: RenderableType) -> None:
        """Adds a row whose strings are shown as they are: names of users and devices are no markup."""
        self.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= NARROW and self._fits(console, options):
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

    def _fits(self, console: Console, options: ConsoleOptions) -> bool:
        """Gives each column the width of its longest word or figure and a share of the rest, if it can."""
        found = [
            [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
            for column in self.columns
        ]
        wished = [max(each.maximum for each in column) for column in found]
        words = [
            wish if column.no_wrap else max(each.minimum for each in cells)
            for cells, wish, column in zip(found, wished, self.columns, strict=True)
        ]
        figures = [
            wish if column.justify == "right" else word
            for word, wish, column in zip(words, wished, self.columns, strict=True)
        ]
        for least in (figures, words):
            rest = options.max_width - sum(least) - _BETWEEN * len(least)
            if rest >= 0:
                share = min(1.0, rest / max(1, sum(wished) - sum(least)))
                for column, width, wish in zip(self.columns, least, wished, strict=True):
                    column.width = width + int(share * (wish - width))
                return True
        return False


class LongName:
    """A name of which the end is shown where there is no room for all of it, with details below."""

    def __init__(self, name: str, detail: str) -> None:
        self.name, self.detail = name, detail

    def __str__(self) -> str:
        return f"{self.name}\n{self.detail}"

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least = max(min(len(self.name), SHORTEST), len(self.detail))
        return Measurement(least, max(least, len(self.name))).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(short(self.name, options.max_width), "bold", overflow="fold")
        yield Text(self.detail, "dim")


def short(name: str, length: int) -> str:
    """The end of a long name, which tells layers apart: whole parts of a path, if its last one has room."""
    if len(name) <= length:
        return name
    end = name[-length + 1 :]
    start = end.find("/" if "/" in name else ".", 0, -1)
    return "…" + end[max(start, 0) :]


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
