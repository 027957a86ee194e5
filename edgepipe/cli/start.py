"""Commands to start with: init and demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.show import ProgressView, print_file, print_result


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="**Example**: `edgepipe init --model model.onnx --target raspberrypi5`")(init)
    app.command(epilog="**Example**: `edgepipe demo`")(demo)


def init(
    model: Annotated[str | None, typer.Option(help="Fill in the model.", show_default=False)] = None,
    target: o.TargetOption = None,
    data: o.DataOption = None,
    host: o.HostOption = None,
    as_json: o.JsonOption = False,
) -> None:
    """Write an edgepipe.toml with comments into this folder, so that `edgepipe deploy` needs no arguments."""
    from edgepipe import project

    path = Path("edgepipe.toml")
    project.write_project(
        path, model=model, target=target, data=None if data is None else str(data), host=host
    )
    print_file(path, as_json=as_json)


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Where the demo's files go.")] = Path("edgepipe-demo"),
    as_json: o.JsonOption = False,
) -> None:
    """Train a small CNN on handwritten digits and deploy it here: the main job on real data."""
    from edgepipe import demo as demos
    from edgepipe.report import table

    with ProgressView() as emit:
        run = demos.run_demo(folder, emit=emit, command=context.obj)
    print_result(table.deploy_summary(run, folder / "runs"), run, as_json=as_json)
