"""`edgepipe deploy`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.ask import ask_place
from edgepipe.cli.show import ProgressView, print_result

EPILOG = """
**Examples**

`edgepipe deploy model.onnx --target raspberrypi5 --host pi@10.0.0.5 --data val.npz`

`edgepipe deploy net.py:build --weights net.pt --target jetson --host nvidia@10.0.0.7 --data photos/`

`edgepipe deploy model.tflite --target x86 --emulate --data val.npz --json`

`edgepipe deploy --target jetson`  with the rest in edgepipe.toml
"""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog=EPILOG)(deploy)


def deploy(
    context: typer.Context,
    model: o.ModelArgument = None,
    target: o.TargetOption = None,
    host: o.HostOption = None,
    emulate: o.EmulateOption = False,
    emulator: o.EmulatorOption = None,
    data: o.DataOption = None,
    weights: o.WeightsOption = None,
    input_shape: o.InputShapeOption = None,
    recipe: o.RecipeOption = None,
    ports: o.PortsOption = None,
    calibration_samples: o.CalibrationSamplesOption = None,
    calibrate_random: o.CalibrateRandomOption = False,
    limit: o.LimitOption = None,
    identity: o.IdentityOption = None,
    accept_new_host_key: o.AcceptNewHostKeyOption = False,
    ask_password: o.AskPasswordOption = False,
    duration_s: o.DurationOption = 3.0,
    min_runs: o.RunsOption = 64,
    threads: o.ThreadsOption = None,
    seed: o.SeedOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Keep the bundle in this folder.", show_default="inside the run"),
    ] = None,
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Compress a model, push it to a device, check and measure it there, and report what is true."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.report import table

    project = jobs.current_project()
    options = jobs.Options(
        model=model, target=target, data=data, weights=weights, input_shape=input_shape, recipe=recipe,
        ports=ports, calibration_samples=calibration_samples, calibrate_random=calibrate_random, limit=limit,
        seed=seed,
    )  # fmt: skip
    job = jobs.resolve_job(options, project, host)
    view = ProgressView()
    place = jobs.resolve_place(
        ask_place(host, emulator or emulate, identity, accept_new_host_key, view if ask_password else None),
        project,
        target,
    )
    effort = jobs.Effort(min_duration_s=duration_s, min_runs=min_runs, threads=threads)
    with view as emit:
        run = workflow.deploy(
            job, place, effort, store=store, bundle_folder=output, emit=emit, command=context.obj
        )
    print_result(table.deploy_summary(run, store), run, as_json=as_json)
