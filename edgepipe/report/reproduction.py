"""A reproduction on the terminal: everything that was compared, what changed since, the verdict."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from edgepipe.provenance import Check, Exported, Reproduction
from edgepipe.report import text
from edgepipe.report.layout import FigureTable, figure_table
from edgepipe.units import format_bytes

STYLES = {"equal": "green", "within": "green", "differs": "bold red", "not compared": "dim"}
_KINDS = {"embedded": "embedded: the host's CPU, no board", "emulated": "emulated"}
MOST_CHANGES = 12


def reproduction_summary(found: Reproduction) -> RenderableType:
    """What was compared, what is not as it was then, and the verdict at the end."""
    parts: list[RenderableType] = [Text.assemble((found.run, "bold"), " done again\n")]
    parts.append(Text("\n".join(_places(found)), "dim"))
    parts.append(_inputs(found.checks))
    parts.append(_artifacts(found.checks))
    parts += _told(found.checks)
    if found.changes:
        parts.append(Text("changed since then:", "dim"))
        shown = found.changes[:MOST_CHANGES]
        parts += [Text(f"  {change}", "dim") for change in shown]
        if len(found.changes) > len(shown):
            parts.append(Text(f"  and {len(found.changes) - len(shown)} more: --json", "dim"))
    style = "bold green" if found.verdict == "REPRODUCED" else "bold red"
    parts.append(Text.assemble("\n", (found.verdict, style), _why(found)))
    return Group(*parts)


def export_summary(exported: Exported) -> RenderableType:
    """The file, its digest, and what whoever checks the run must get elsewhere."""
    parts: list[RenderableType] = [
        Text.assemble((exported.file, "bold"), f", {format_bytes(exported.size_bytes)}, run {exported.run}"),
        Text(f"sha256 {exported.sha256}", "dim"),
    ]
    for one in exported.left_out:
        digest = f"sha256 {one.sha256}" if one.sha256 else "a folder"
        parts.append(Text(f"not in it: the {one.what}, {one.name}, {digest}"))
    options = " and ".join(f"--with-{what}" for what in ("model", "data") if _lacks(exported, what))
    if options:
        parts.append(Text(f"{options} puts them in", "dim"))
    return Group(*parts)


def _lacks(exported: Exported, what: str) -> bool:
    return any(one.what == what for one in exported.left_out)


def _places(found: Reproduction) -> list[str]:
    lines = [f"then: {_place(found.recorded_place, found.recorded_kind)}"]
    now = _place(found.place, found.kind) if found.place else "not run, as the inputs differ"
    return [*lines, f"now:  {now}"]


def _place(place: str, kind: str) -> str:
    return f"{place} [{_KINDS[kind]}]" if kind in _KINDS else place


def _inputs(checks: tuple[Check, ...]) -> Text:
    line = Text("\ninputs: ")
    for number, check in enumerate(check for check in checks if not check.artifact):
        line.append(", " if number else "")
        line.append(f"{check.subject} ")
        line.append(check.state, STYLES[check.state])
    return line


def _artifacts(checks: tuple[Check, ...]) -> RenderableType:
    """A row for each artifact, a column for each thing that was compared."""
    subjects = list(dict.fromkeys(check.subject for check in checks if check.artifact))
    if not subjects:
        return Text()
    states = {(check.artifact, check.subject): check.state for check in checks}
    table: FigureTable = figure_table("artifact", *subjects)
    for artifact in dict.fromkeys(check.artifact for check in checks if check.artifact):
        cells = [states.get((artifact, subject)) for subject in subjects]
        shown = (text.NONE if cell in (None, "not compared") else cell for cell in cells)
        table.add(Text(artifact, "bold"), *(Text(cell, STYLES.get(cell, "dim")) for cell in shown))
    return table


def _told(checks: tuple[Check, ...]) -> list[RenderableType]:
    """What differs after the first, in full; tolerances, and why some was not compared, each once."""
    differing = [check for check in checks if check.state == "differs"]
    told: list[RenderableType] = [
        Text.assemble(("differs too: ", STYLES["differs"]), str(check)) for check in differing[1:]
    ]
    for state in ("within", "not compared"):
        notes = dict.fromkeys(
            f"{check.subject} {state}: {check.note}"
            for check in checks
            if check.state == state and check.note and not check.note.startswith("95 %")
        )
        told += [Text(note, "dim") for note in notes]
    return told


def _why(found: Reproduction) -> str:
    if found.verdict == "DIFFERS":
        differing = sum(check.state == "differs" for check in found.checks)
        more = f", and in {differing - 1} more" if differing > 1 else ""
        return f" in {found.first_difference}{more}"
    compared = [check for check in found.checks if check.state != "not compared"]
    equal = sum(check.state == "equal" for check in compared)
    rest = len(compared) - equal
    without = len(found.checks) - len(compared)
    parts = [f"{equal} equal", f"{rest} within their tolerance" if rest else ""]
    return ": " + ", ".join(filter(None, [*parts, f"{without} not compared" if without else ""]))
