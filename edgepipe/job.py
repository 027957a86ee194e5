"""What the user asked for, whole: options given, filled up from edgepipe.toml, checked for sense.

Records only: nothing is loaded here, so that contradictions show before any work.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import msgspec

from edgepipe.convert.emission import PortType
from edgepipe.errors import CalibrationDataMissing, UsageError
from edgepipe.preprocess import Preprocessing
from edgepipe.project import HostEntry, Project, find_project, load_project
from edgepipe.target import target_name

Prompt = Callable[[str], str]

Emulator = Literal["docker", "native"]
"""What stands for a board: a container with its userland and limits, or this machine's own processor."""

_NAME_TARGET = "--target NAME, see `edgepipe targets list`"
PATH_FIELDS = {"weights", "data", "path", "identity"}


class _Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Takes text for every field that is a path, as scripts write it."""

    def __post_init__(self) -> None:
        """Turns text into a `Path`."""
        for field in PATH_FIELDS & set(self.__struct_fields__):
            value = getattr(self, field)
            if isinstance(value, str):
                msgspec.structs.force_setattr(self, field, Path(value))


class Job(_Paths, frozen=True, kw_only=True):
    """What to make of which model, for which kind of board, with which data. Paths may be given as text.

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


class SourceSpec(_Paths, frozen=True, kw_only=True):
    """A model to load; fields as in `Job`."""

    model: str
    weights: Path | None = None
    input_shape: tuple[int, ...] | None = None


class DataSpec(_Paths, frozen=True, kw_only=True):
    """Samples to load; fields as in `Job`, `path` for its `data`."""

    path: Path
    preprocessing: Preprocessing | None = None
    limit: int | None = None


class Place(_Paths, frozen=True, kw_only=True):
    """Where the device is, and how to get in.

    Attributes:
        host: "user@address[:port]" or a name of ~/.ssh/config; None with `emulate`.
        emulate: Take a device that edgepipe starts: "docker" for a container of the target, "native" for the
            embedded device on this machine's loopback, True for what suits the target.
        identity: Private key file, besides those of the agent and ~/.ssh/config.
        accept_new_host_key: Trust a host that is met for the first time.
        prompt: Asked for a password where keys do not do; None where nobody can answer.
    """

    host: str | None = None
    emulate: bool | Emulator = False
    identity: Path | None = None
    accept_new_host_key: bool = False
    prompt: Prompt | None = None


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


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a command line says of a job, as typed; None where it says nothing. Fields as in `Job`."""

    model: str | None = None
    target: str | None = None
    weights: Path | None = None
    input_shape: str | None = None
    data: Path | None = None
    calibration_samples: int | None = None
    calibrate_random: bool = False
    limit: int | None = None
    recipe: str | None = None
    ports: str | None = None
    seed: int | None = None


def current_project() -> Project:
    """The project of the working folder; an empty one where it has no edgepipe.toml.

    Raises:
        ProjectError: edgepipe.toml is malformed.
    """
    path = find_project(Path())
    return Project() if path is None else load_project(path)


def resolve_job(options: Options, project: Project, host: str | None = None) -> Job:
    """The job that options ask for; what they leave out comes from the project.

    Args:
        options: What the command line says.
        project: What edgepipe.toml says.
        host: The device, if one is named: a host of the project may name its target.

    Raises:
        UsageError: There is no model or no target, or a value that makes no sense.
    """
    entry = project.hosts.get(host or project.host or "")
    model = options.model or project.model
    target = options.target or (entry.target if entry else None) or project.target
    # The project's weights and shape belong to its model and to no other. Its preprocessing goes with any: no
    # option says how images become an input, so whoever names another model has edited the file for it.
    own_model = options.model is None
    random = options.calibrate_random
    return Job(
        model=_required(model, "model", "its file"),
        target=_required(target, "target", _NAME_TARGET),
        weights=options.weights or (_path(project.weights) if own_model else None),
        input_shape=parse_shape(options.input_shape) or (project.input_shape if own_model else None),
        data=options.data or (None if random else _path(project.data)),
        preprocessing=project.preprocessing,
        calibration_samples=options.calibration_samples or project.calibration_samples,
        calibrate_random=random,
        limit=options.limit,
        recipe=options.recipe or project.recipe or "int8",
        ports=parse_ports(options.ports),
        seed=project.seed if options.seed is None else options.seed,
    )


def resolve_target(target: str | None, project: Project) -> str:
    """The target that is meant: the one given, else the project's.

    Raises:
        UsageError: There is none.
    """
    return _required(target or project.target, "target", _NAME_TARGET)


def resolve_data(data: Path | None, limit: int | None, project: Project) -> DataSpec:
    """The samples to evaluate on.

    Raises:
        CalibrationDataMissing: Neither the command line nor the project names any.
    """
    path = data or _path(project.data)
    if path is None:
        raise CalibrationDataMissing(
            "there is no data to evaluate on", remedy="give --data FILE.npz or a folder of images"
        )
    return DataSpec(path=path, preprocessing=project.preprocessing, limit=limit)


def resolve_place(place: Place, project: Project, target: str | None = None) -> Place:
    """The place with a host of edgepipe.toml filled in; one that names nothing takes the project's host.

    Args:
        place: What the command line says.
        project: What edgepipe.toml says.
        target: Target that was asked for: without a host, a board of that kind is taken.

    Raises:
        UsageError: No host is named, and which of the project's is meant is not clear.
    """
    if place.emulate:
        return place
    name = place.host or _host_for(target, project)
    entry = project.hosts.get(name or "")
    if entry is None:
        return msgspec.structs.replace(place, host=name)
    address = f"[{entry.address}]" if ":" in entry.address else entry.address
    user = f"{entry.user}@" if entry.user else ""
    port = f":{entry.port}" if entry.port else ""
    return msgspec.structs.replace(
        place, host=f"{user}{address}{port}", identity=place.identity or _path(entry.identity_file)
    )


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Reads "1,3,224,224".

    Raises:
        UsageError: Something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError as error:
        raise UsageError(
            "the shape is not a list of numbers",
            where="--input-shape",
            got=text,
            remedy="write it as 1,3,224,224",
        ) from error


def parse_ports(text: str | None) -> PortType | None:
    """Reads "integer" or "float32".

    Raises:
        UsageError: Something else.
    """
    if text is None:
        return None
    for known in get_args(PortType):
        if text == known:
            return text  # type: ignore[return-value]  # just compared with every literal
    raise UsageError(
        "unknown type of ports", where="--ports", got=text, remedy=f"one of {', '.join(get_args(PortType))}"
    )


def _host_for(target: str | None, project: Project) -> str | None:
    """The project's host of that kind, the default one first: never silently another kind of board."""
    if target is None or not project.hosts:
        return project.host
    kinds = {name: _kind(entry, project) for name, entry in project.hosts.items()}
    of_kind = [name for name, kind in kinds.items() if kind == target_name(target)]
    if project.host in of_kind:
        return project.host
    if len(of_kind) == 1:
        return of_kind[0]
    if not of_kind and (project.host is None or kinds[project.host] is None):
        return project.host
    hosts = ", ".join(f"{name} is {kind or 'of no kind that is told'}" for name, kind in kinds.items())
    raise UsageError(
        f"several hosts of edgepipe.toml are {target_name(target)}"
        if of_kind
        else f"no host of edgepipe.toml is {target_name(target)}",
        where="[hosts] of edgepipe.toml",
        got=hosts,
        remedy="name the one that you mean: --host " + " or --host ".join(of_kind or kinds),
    )


def _kind(entry: HostEntry, project: Project) -> str | None:
    """Name of the target that a host of the project is; None where nothing tells."""
    target = entry.target or project.target
    return None if target is None else target_name(target)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _required(value: str | None, noun: str, remedy: str) -> str:
    if value is None:
        raise UsageError(
            f"no {noun} is named",
            remedy=f"give {remedy}, or set `{noun}` in edgepipe.toml (`edgepipe init` writes one)",
        )
    return value
