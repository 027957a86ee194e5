"""Commands on what was measured: runs list, show, compare, export and import, and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.reproduce import register_exchange
from edgepipe.cli.show import ProgressView, print_file, print_result

RunArgument = Annotated[str, typer.Argument(help="A run's id, its first letters, or `last`.", metavar="RUN")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    group = typer.Typer(help="What was measured: list, show, compare, export, import.", no_args_is_help=True)
    group.command("list", epilog="**Example**: `edgepipe runs list --json`")(list_runs)
    group.command("show", epilog="**Example**: `edgepipe runs show last`")(show_run)
    group.command("compare", epilog="**Example**: `edgepipe runs compare 20261122 last`")(compare_runs)
    register_exchange(group)
    app.add_typer(group, name="runs")
    app.command(epilog="**Example**: `edgepipe report last -o report.html`")(report)


def list_runs(store: o.StoreOption = Path("runs"), as_json: o.JsonOption = False) -> None:
    """List every run, the newest first."""
    from edgepipe import store as stores
    from edgepipe.report import table

    found = stores.list_runs(store)
    print_result(table.runs_table(found), found, as_json=as_json)


def show_run(
    run: RunArgument = "last", store: o.StoreOption = Path("runs"), as_json: o.JsonOption = False
) -> None:
    """Show one run whole."""
    from edgepipe import store as stores
    from edgepipe.report import table

    found = stores.load_run(store, run)
    print_result(table.deploy_summary(found, store), found, as_json=as_json)


def compare_runs(
    first: RunArgument,
    second: RunArgument,
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Compare two runs, artifact by artifact; says so where they can't be compared."""
    from edgepipe import store as stores
    from edgepipe.report import table

    comparison = table.compare(stores.load_run(store, first), stores.load_run(store, second))
    print_result(table.comparison_table(comparison), comparison, as_json=as_json)


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Runs to show.", metavar="RUN...", show_default="last")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("report.html"),
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Write runs as one HTML file that opens anywhere, offline."""
    from edgepipe import store as stores
    from edgepipe.events import stage
    from edgepipe.report import html

    with ProgressView() as emit, stage(emit, "write report"):
        html.write_report([stores.load_run(store, run) for run in runs or ["last"]], output)
    print_file(output, as_json=as_json)
