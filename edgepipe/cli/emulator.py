"""`edgepipe emulator`: devices in containers, for want of boards."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.show import ProgressView, print_result

DownTargetOption = Annotated[
    str | None,
    typer.Option("--target", "-t", help="The device to take down.", show_default="all of them"),
]


def register(app: typer.Typer) -> None:
    """Adds the command group to `app`."""
    group = typer.Typer(help="Emulated devices: start, stop, list, log in.", no_args_is_help=True)
    group.command("up", epilog="**Example**: `edgepipe emulator up --target raspberrypi4`")(up)
    group.command("down", epilog="**Example**: `edgepipe emulator down`")(down)
    group.command("list", epilog="**Example**: `edgepipe emulator list --json`")(list_devices)
    group.command("shell", epilog="**Example**: `edgepipe emulator shell --target raspberrypi4`")(shell)
    app.add_typer(group, name="emulator")


def up(target: o.TargetOption = None, as_json: o.JsonOption = False) -> None:
    """Start an emulated device of a target, or find the one that runs; its image is built the first time."""
    from edgepipe import job as jobs
    from edgepipe.emulator import device, tables
    from edgepipe.target import load_target

    board = load_target(jobs.resolve_target(target, jobs.current_project()))
    with ProgressView() as emit:
        started = device.up(board, emit=emit)
    print_result(tables.device_summary(started), started, as_json=as_json)


def down(target: DownTargetOption = None, as_json: o.JsonOption = False) -> None:
    """Take emulated devices down; their images stay, so that the next start is quick."""
    from edgepipe.emulator import device, tables
    from edgepipe.target import target_name

    with ProgressView() as emit:
        gone = device.down(None if target is None else target_name(target), emit=emit)
    print_result(tables.gone_text(gone), {"down": gone}, as_json=as_json)


def list_devices(as_json: o.JsonOption = False) -> None:
    """List the emulated devices that you started."""
    from edgepipe.emulator import device, tables

    found = device.devices()
    print_result(tables.devices_table(found), found, as_json=as_json)


def shell(target: o.TargetOption = None) -> None:
    """Log in to an emulated device, by ssh and with its own key; it is started where need be."""
    from edgepipe import job as jobs
    from edgepipe.emulator import device
    from edgepipe.target import load_target

    board = load_target(jobs.resolve_target(target, jobs.current_project()))
    with ProgressView() as emit:
        started = device.up(board, emit=emit)
    raise typer.Exit(device.log_in(started))
