"""Commands on results that others shall check: reproduce, and runs export and import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.ask import ask_place
from edgepipe.cli.show import ProgressView, print_result

EPILOG = """
**Examples**

`edgepipe reproduce last`

`edgepipe reproduce run.zip --model net.onnx --data val.npz`

`edgepipe reproduce run.zip --host pi@10.0.0.5`

Ends with REPRODUCED and code 0, or with DIFFERS, the first difference and code 34.
"""
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", help="Folder of the run's bundle.", show_default="inside the run"),
]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog=EPILOG)(reproduce)


def register_exchange(group: typer.Typer) -> None:
    """Adds export and import to the group of commands on runs."""
    group.command("export", epilog="**Example**: `edgepipe runs export last -o run.zip`")(export_run)
    group.command("import", epilog="**Example**: `edgepipe runs import run.zip`")(import_run)


def reproduce(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's id, its first letters, or `last`; or an exported run's file.", metavar="RUN|FILE"
        ),
    ] = "last",
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model, where it is not where the run had it.", show_default=False),
    ] = None,
    weights: o.WeightsOption = None,
    data: o.DataOption = None,
    bundle: BundleOption = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="File of the target to emulate, where the run's is none of edgepipe's own.",
            rich_help_panel=o.DEVICE,
            show_default=False,
        ),
    ] = None,
    host: o.HostOption = None,
    emulate: o.EmulateOption = False,
    emulator: o.EmulatorOption = None,
    identity: o.IdentityOption = None,
    accept_new_host_key: o.AcceptNewHostKeyOption = False,
    ask_password: o.AskPasswordOption = False,
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Do a run again from what it records, and compare inputs, artifacts, outputs and metrics.

    Runs on the emulator of the run's target unless a host is named. Writes nothing into the store.
    """
    from edgepipe import job as jobs
    from edgepipe.errors import ReproductionDiffers
    from edgepipe.report.reproduction import reproduction_summary
    from edgepipe.workflow import reproducing

    view = ProgressView()
    chosen = emulator or emulate or host is None
    place = ask_place(host, chosen, identity, accept_new_host_key, view if ask_password else None)
    given = reproducing.Given(model=model, weights=weights, data=data, bundle=bundle, target=target)
    with view as emit:
        found = reproducing.reproduce(
            run, jobs.resolve_place(place, jobs.current_project()), store=store, given=given, emit=emit
        )
    print_result(reproduction_summary(found), found, as_json=as_json)
    if found.verdict == "DIFFERS":  # what was printed says it all
        raise typer.Exit(ReproductionDiffers.exit_code)


def export_run(
    run: Annotated[
        str, typer.Argument(help="A run's id, its first letters, or `last`.", metavar="RUN")
    ] = "last",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("run.zip"),
    with_model: Annotated[
        bool, typer.Option("--with-model", help="Put the model in, with its weights.")
    ] = False,
    with_data: Annotated[bool, typer.Option("--with-data", help="Put the data in.")] = False,
    bundle: BundleOption = None,
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Write a run as one file that anyone can check with `edgepipe reproduce FILE`.

    It holds the record with raw samples, the recipe, versions, artifacts and golden samples; model and data
    only where asked for.
    """
    from edgepipe.report.reproduction import export_summary
    from edgepipe.workflow import exporting

    with_inputs = (*(["model"] if with_model else []), *(["data"] if with_data else []))
    with ProgressView() as emit:
        exported = exporting.export_run(store, run, output, bundle=bundle, with_inputs=with_inputs, emit=emit)
    print_result(export_summary(exported), exported, as_json=as_json)


def import_run(
    file: Annotated[Path, typer.Argument(help="The file of an exported run.")],
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Put an exported run among one's own, to show and compare it."""
    from edgepipe.report import table
    from edgepipe.workflow import exporting

    with ProgressView() as emit:
        run = exporting.import_run(file, store, emit=emit)
    print_result(table.deploy_summary(run, store), run, as_json=as_json)
