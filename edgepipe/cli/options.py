"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MAKING = "What to make"
DATA = "Data"
DEVICE = "Device"
MEASURING = "Measuring"

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        help="The model: .onnx, .tflite, .pt2, .keras, a SavedModel folder, or file.py:factory for PyTorch.",
        show_default="model of edgepipe.toml",
    ),
]
BundleArgument = Annotated[Path, typer.Argument(help="The folder of a bundle that `edgepipe compress` made.")]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        help="Kind of board: see `edgepipe targets list`.",
        rich_help_panel=MAKING,
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="state_dict for file.py:factory.", rich_help_panel=MAKING, show_default=False),
]
InputShapeOption = Annotated[
    str | None,
    typer.Option(
        help="Shape of one input batch, as 1,3,224,224, where the model leaves it open.",
        rich_help_panel=MAKING,
        show_default=False,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="Name or file: see `edgepipe recipes list`.",
        rich_help_panel=MAKING,
        show_default="int8",
    ),
]
PortsOption = Annotated[
    str | None,
    typer.Option(
        help="Type of the artifacts' inputs and outputs: integer or float32.",
        rich_help_panel=MAKING,
        show_default="integer for TFLite, float32 for ONNX",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of everything random.", show_default="0", rich_help_panel=MAKING)
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        "-d",
        help=".npz with `x` and, for accuracy, `y`; or class/*.jpg with [preprocessing] in edgepipe.toml.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
CalibrationSamplesOption = Annotated[
    int | None,
    typer.Option(
        help="Samples to calibrate on; the others are for evaluation.",
        min=1,
        rich_help_panel=DATA,
        show_default="128, at most a quarter",
    ),
]
CalibrateRandomOption = Annotated[
    bool,
    typer.Option(
        "--calibrate-random",
        help="Calibrate on random numbers: for timing only, the result is branded unfit for accuracy claims.",
        rich_help_panel=DATA,
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        help="Use at most this many samples of the data.", min=1, rich_help_panel=DATA, show_default=False
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(
        "--host",
        "-H",
        help="user@address[:port], a name of ~/.ssh/config, or a host of edgepipe.toml.",
        rich_help_panel=DEVICE,
        show_default=False,
    ),
]
EmulateOption = Annotated[
    bool,
    typer.Option(
        "--emulate",
        help="Use an emulated device of the target, which edgepipe starts; for x86 on x86, this machine.",
        rich_help_panel=DEVICE,
    ),
]
EmulatorOption = Annotated[
    Literal["docker", "native"] | None,
    typer.Option(
        "--emulator",
        help="What emulates: a container of the target's architecture, or this machine's own processor.",
        rich_help_panel=DEVICE,
        show_default="with --emulate: what suits the target",
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option("--identity", "-i", help="Private key file.", rich_help_panel=DEVICE, show_default=False),
]
AcceptNewHostKeyOption = Annotated[
    bool,
    typer.Option(
        "--accept-new-host-key",
        help="Trust a host that is met for the first time; a changed key is refused all the same.",
        rich_help_panel=DEVICE,
    ),
]
AskPasswordOption = Annotated[
    bool,
    typer.Option(
        "--ask-password", help="Prompt for a password where keys do not do.", rich_help_panel=DEVICE
    ),
]
DurationOption = Annotated[
    float,
    typer.Option(
        "--duration", help="Least seconds to measure each artifact.", min=0.1, rich_help_panel=MEASURING
    ),
]
RunsOption = Annotated[
    int,
    typer.Option("--min-runs", help="Least inferences of each artifact.", min=1, rich_help_panel=MEASURING),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="Inference threads.", min=1, rich_help_panel=MEASURING, show_default="the target's"),
]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout in place of tables.")]
