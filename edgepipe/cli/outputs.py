"""`edgepipe outputs`: what one bundle computes in several places."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.ask import ask_place
from edgepipe.cli.show import ProgressView, print_result

EPILOG = """
**Examples**

`edgepipe outputs bundle --target raspberrypi4 --target x86`

`edgepipe outputs bundle --target raspberrypi5 --host pi@10.0.0.5 --data val.npz --layers`
"""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog=EPILOG)(outputs)


def outputs(
    bundle: o.BundleArgument,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Run on the emulated device of this target; may be repeated.",
            rich_help_panel=o.DEVICE,
            show_default="the bundle's, where no host is named",
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            "-H",
            help="Run on this board; may be repeated.",
            rich_help_panel=o.DEVICE,
            show_default=False,
        ),
    ] = None,
    emulator: o.EmulatorOption = None,
    data: o.DataOption = None,
    samples: Annotated[
        int, typer.Option(help="How many samples of the data to run.", min=1, rich_help_panel=o.DATA)
    ] = 16,
    layers: Annotated[bool, typer.Option("--layers", help="Compare the output of every layer too.")] = False,
    identity: o.IdentityOption = None,
    accept_new_host_key: o.AcceptNewHostKeyOption = False,
    ask_password: o.AskPasswordOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Run a bundle's artifacts in several places: exact or how many steps apart, from which layer on.

    All are compared with what this host computes on the same samples: the bundle's golden ones, or --data.
    """
    from edgepipe import job as jobs
    from edgepipe.bundle import read_manifest
    from edgepipe.report.outputs import outputs_summary
    from edgepipe.target import load_target
    from edgepipe.workflow.outputs import Stop, compare_outputs

    project = jobs.current_project()
    own = read_manifest(bundle).target
    view = ProgressView()
    prompt = view if ask_password else None
    names = target or ([] if host else [own])
    stops = [
        Stop(name=name, place=ask_place(None, emulator or True, None, False, None), target=load_target(name))
        for name in names
    ]
    for name in host or ():
        entry = project.hosts.get(name)
        place = jobs.resolve_place(ask_place(name, False, identity, accept_new_host_key, prompt), project)
        stops.append(Stop(name=name, place=place, target=load_target((entry and entry.target) or own)))
    spec = None if data is None else jobs.resolve_data(data, None, project)
    with view as emit:
        report = compare_outputs(bundle, stops, data=spec, samples=samples, layers=layers, emit=emit)
    print_result(outputs_summary(report), report, as_json=as_json)
