"""Commands around one model or bundle: compress, convert, evaluate, push, bench, probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.ask import ask_place
from edgepipe.cli.show import ProgressView, print_result


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(
        epilog="**Example**: `edgepipe compress model.onnx --target raspberrypi4 --data val.npz -o bundle`"
    )(compress)
    app.command(epilog="**Example**: `edgepipe convert qdq.onnx --to tflite -o model.tflite`")(convert)
    app.command(epilog="**Example**: `edgepipe evaluate bundle --data test.npz --against model.onnx`")(
        evaluate
    )
    app.command(epilog="**Example**: `edgepipe push bundle --host pi@10.0.0.5`")(push)
    app.command(epilog="**Example**: `edgepipe bench bundle --host pi@10.0.0.5 --duration 20`")(bench)
    app.command(epilog="**Example**: `edgepipe probe --host nvidia@10.0.0.7`")(probe)


def compress(
    model: o.ModelArgument = None,
    target: o.TargetOption = None,
    data: o.DataOption = None,
    weights: o.WeightsOption = None,
    input_shape: o.InputShapeOption = None,
    recipe: o.RecipeOption = None,
    ports: o.PortsOption = None,
    calibration_samples: o.CalibrationSamplesOption = None,
    calibrate_random: o.CalibrateRandomOption = False,
    limit: o.LimitOption = None,
    seed: o.SeedOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.")] = Path("bundle"),
    as_json: o.JsonOption = False,
) -> None:
    """Compress and convert a model into a bundle, without a device."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.report import table

    options = jobs.Options(
        model=model, target=target, data=data, weights=weights, input_shape=input_shape, recipe=recipe,
        ports=ports, calibration_samples=calibration_samples, calibrate_random=calibrate_random, limit=limit,
        seed=seed,
    )  # fmt: skip
    job = jobs.resolve_job(options, jobs.current_project())
    with ProgressView() as emit:
        made = workflow.compress(job, output, emit=emit)
    print_result(table.bundle_summary(made.bundle), made.bundle.manifest, as_json=as_json)


def convert(
    model: Annotated[str, typer.Argument(help="Any source that `edgepipe deploy` takes.")],
    to: Annotated[str, typer.Option("--to", help="tflite or onnx.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    weights: o.WeightsOption = None,
    input_shape: o.InputShapeOption = None,
    float16: Annotated[
        bool, typer.Option("--float16", help="Store float weights in half precision (TFLite).")
    ] = False,
    ports: o.PortsOption = None,
    as_json: o.JsonOption = False,
) -> None:
    """Change the format alone: decisions of a quantized model (QDQ) are kept."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.report import table

    source = jobs.SourceSpec(model=model, weights=weights, input_shape=jobs.parse_shape(input_shape))
    with ProgressView() as emit:
        emission = workflow.convert(
            source, to, output, float16=float16, ports=jobs.parse_ports(ports), emit=emit
        )
    print_result(
        table.emission_summary(emission, output), table.emission_data(emission, output), as_json=as_json
    )


def evaluate(
    subject: Annotated[str, typer.Argument(help="A bundle's folder, or a model.", metavar="MODEL|BUNDLE")],
    data: o.DataOption = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Model to compare with.", show_default="the bundle's float artifact"),
    ] = None,
    limit: o.LimitOption = None,
    as_json: o.JsonOption = False,
) -> None:
    """Accuracy with its interval, agreement and SQNR of every artifact, here, on the same samples."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.report import table

    with ProgressView() as emit:
        evaluations = workflow.evaluate_subject(
            subject, jobs.resolve_data(data, limit, jobs.current_project()), against=against, emit=emit
        )
    print_result(table.evaluation_table(evaluations), evaluations, as_json=as_json)


def push(
    bundle: o.BundleArgument,
    host: o.HostOption = None,
    identity: o.IdentityOption = None,
    accept_new_host_key: o.AcceptNewHostKeyOption = False,
    ask_password: o.AskPasswordOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Copy a bundle and the agent to a device; what is there already is not sent again."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.bundle import read_manifest
    from edgepipe.report import table

    view = ProgressView()
    place = jobs.resolve_place(
        ask_place(host, False, identity, accept_new_host_key, view if ask_password else None),
        jobs.current_project(),
        read_manifest(bundle).target,
    )
    with view as emit:
        pushed = workflow.push(bundle, place, emit=emit)
    print_result(table.push_summary(pushed), pushed, as_json=as_json)


def bench(
    context: typer.Context,
    bundle: o.BundleArgument,
    target: o.TargetOption = None,
    host: o.HostOption = None,
    emulate: o.EmulateOption = False,
    emulator: o.EmulatorOption = None,
    identity: o.IdentityOption = None,
    accept_new_host_key: o.AcceptNewHostKeyOption = False,
    ask_password: o.AskPasswordOption = False,
    duration_s: o.DurationOption = 10.0,
    min_runs: o.RunsOption = 64,
    threads: o.ThreadsOption = None,
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Check and measure a bundle on a device, and keep the result as a run."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.bundle import read_manifest
    from edgepipe.report import table

    view = ProgressView()
    place = jobs.resolve_place(
        ask_place(host, emulator or emulate, identity, accept_new_host_key, view if ask_password else None),
        jobs.current_project(),
        target or read_manifest(bundle).target,
    )
    effort = jobs.Effort(min_duration_s=duration_s, min_runs=min_runs, threads=threads)
    with view as emit:
        run = workflow.bench(
            bundle, place, effort, target=target, store=store, emit=emit, command=context.obj
        )
    print_result(table.deploy_summary(run, store), run, as_json=as_json)


def probe(
    target: o.TargetOption = None,
    host: o.HostOption = None,
    emulate: o.EmulateOption = False,
    emulator: o.EmulatorOption = None,
    identity: o.IdentityOption = None,
    accept_new_host_key: o.AcceptNewHostKeyOption = False,
    ask_password: o.AskPasswordOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Show what a device is: board, CPU, memory, Python, runtimes, power sensors, throttling."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.report import table

    view = ProgressView()
    place = jobs.resolve_place(
        ask_place(host, emulator or emulate, identity, accept_new_host_key, view if ask_password else None),
        jobs.current_project(),
        target,
    )
    with view as emit:
        facts = workflow.probe(place, target, emit=emit)
    print_result(table.facts_table(facts), workflow.facts_data(facts), as_json=as_json)
