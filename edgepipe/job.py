"""What the user asked for, whole: options given, filled up from edgepipe.toml, checked for sense.

Records only: nothing is loaded here, so that contradictions show before any work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgepipe.errors import UsageError
from edgepipe.preprocess import Preprocessing
from edgepipe.project import HostEntry, Project, find_project, load_project

PortType = Literal["float32", "integer"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of which model, for which kind of board, with which data.

    Attributes:
        model: The source: a file, a SavedModel folder, or "file.py:factory".
        target: Name of the target, or the path of a target file.
        weights: state_dict for a torch factory.
        input_shape: Shape of one input batch where the model leaves it open.
        data: .npz or image folder; None only with `calibrate_random`, or where no data is needed.
        preprocessing: How images become the model's input; None for .npz data.
        calibration_samples: Samples to calibrate on; None for the default.
        calibrate_random: Make samples up, and brand the result as unfit for accuracy claims.
        limit: Use at most this many samples.
        recipe: Name of the recipe, or the path of a recipe file.
        ports: Type of the quantized artifacts' inputs and outputs; None for each format's default.
        seed: Seed of everything random.
    """

    model: str
    target: str
    weights: Path | None = None
    input_shape: tuple[int, ...] | None = None
    data: Path | None = None
    preprocessing: Preprocessing | None = None
    calibration_samples: int | None = None
    calibrate_random: bool = False
    limit: int | None = None
    recipe: str = "int8"
    ports: PortType | None = None
    seed: int = 0


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the device is, and how to get in.

    Attributes:
        host: "user@address[:port]" or a name of ~/.ssh/config; None with `emulate`.
        emulate: Use the embedded device on this machine's loopback.
        identity: Private key file, besides those of the agent and ~/.ssh/config.
        accept_new_host_key: Trust a host that is met for the first time.
        ask_password: Prompt for a password where keys do not do.
    """

    host: str | None = None
    emulate: bool = False
    identity: Path | None = None
    accept_new_host_key: bool = False
    ask_password: bool = False


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How long to measure.

    Attributes:
        min_duration_s: Least duration of the timed runs of each artifact.
        min_runs: Least number of timed runs of each artifact.
        threads: Inference threads; None for the target's.
    """

    min_duration_s: float = 3.0
    min_runs: int = 64
    threads: int | None = None
