"""edgepipe.toml: what a folder's model, data, preprocessing and hosts are, so that no command repeats it.

Keys are read strictly: one that edgepipe does not know is an error with the nearest name, never
ignored. No key takes a password; SSH keys, the agent and a prompt are the ways in.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgepipe.errors import OutputError, ProjectError
from edgepipe.files import write_whole
from edgepipe.host import parse_host
from edgepipe.preprocess import Preprocessing
from edgepipe.target import load_target

FILE_NAME = "edgepipe.toml"
SECRET_KEYS = {"password", "passwd", "passphrase", "secret", "token"}

Positive = Annotated[int, msgspec.Meta(ge=1)]
PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


TEMPLATE = """\
# What this folder deploys. With this file, `edgepipe deploy` needs no arguments; an option given on
# the command line goes before a key given here. Paths start at this file's folder.

# The trained model: .onnx, float .tflite, .pt2 (torch.export), .keras, .h5, a SavedModel folder,
# or file.py:factory for PyTorch code.
{model}

# state_dict for the factory's module: .pt, .pth or .safetensors.
# weights = "model.pth"

# Shape of the input, batch first, where the model itself does not fix it.
# input_shape = [1, 3, 224, 224]

# Samples: an .npz with `x` (in the layout and scale of the model's input) and labels `y`,
# or a folder class/*.jpg, for which [preprocessing] below is needed.
{data}

# How many samples calibrate the quantization; the others evaluate it. Default: a quarter, at most 128.
# calibration_samples = 128

# Kind of board: `edgepipe targets list`.
{target}

# What is done to the model: `edgepipe recipes list`.
# recipe = "int8"

# The device, by its name below.
{host}

# Seed of everything random.
# seed = 0

# How an image becomes the model's input: value = (pixel * scale - mean) / std. It must be what the
# model was trained with; wrong numbers raise no error, they only cost accuracy.
# [preprocessing]
# resize = 256                    # length of the shorter side
# crop = 224                      # square cut from the centre
# color = "rgb"                   # "rgb", "bgr" or "gray"
# scale = 0.00392156862745098     # 1/255
# mean = [0.485, 0.456, 0.406]    # one for each channel, or one for all
# std = [0.229, 0.224, 0.225]
# layout = "NCHW"                 # "NCHW" or "NHWC", as the model's input
# interpolation = "bilinear"      # "nearest", "bilinear", "bicubic" or "lanczos"

# Devices. Passwords have no place here: keys, the ssh-agent and ~/.ssh/config are used, and
# --ask-password prompts. An address may be an alias of ~/.ssh/config.
{table}
# identity_file = "~/.ssh/id_ed25519"
# target = "raspberrypi5"         # where it differs from the target above
"""


class HostEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that the project names: the table [hosts.NAME].

    Attributes:
        address: Its name or number on the network, or an alias of ~/.ssh/config.
        port: SSH port; None for ~/.ssh/config's, or 22.
        user: Login name; None for ~/.ssh/config's, or the caller's.
        identity_file: Private key; None for those of the agent and ~/.ssh/config.
        target: Kind of board that it is; None for the project's.
    """

    address: Text
    port: PortNumber | None = None
    user: Text | None = None
    identity_file: str | None = None
    target: Text | None = None


class Project(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """edgepipe.toml. Once loaded, its paths no longer depend on the file's folder.

    Attributes:
        model: The source: a file, a SavedModel folder, or "file.py:factory".
        weights: state_dict for a torch factory.
        input_shape: Shape of one input batch where the model leaves it open.
        data: .npz or image folder.
        calibration_samples: Samples to calibrate on; None for the default.
        target: Kind of board where the command names none.
        recipe: Recipe where the command names none.
        host: Name of the host in `hosts` where the command names none.
        seed: Seed of everything random.
        preprocessing: How images become the model's input.
        hosts: Devices by name.
    """

    model: Text | None = None
    weights: Text | None = None
    input_shape: tuple[Positive, ...] | None = None
    data: Text | None = None
    calibration_samples: Positive | None = None
    target: Text | None = None
    recipe: Text | None = None
    host: Text | None = None
    seed: int = 0
    preprocessing: Preprocessing | None = None
    hosts: dict[str, HostEntry] = {}


def find_project(folder: Path) -> Path | None:
    """The edgepipe.toml of `folder`, or None; parent folders are not searched."""
    path = folder / FILE_NAME
    return path if path.is_file() else None


def load_project(path: Path) -> Project:
    """Reads an edgepipe.toml. Relative paths in it start at its own folder.

    Raises:
        ProjectError: the file is missing, is no TOML, or has a key or value that does not fit.
    """
    text = _read(path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProjectError("the file is not TOML", where=str(path), got=str(error)) from error
    _refuse_secrets(table, path, text)
    try:
        project = msgspec.convert(table, Project)
    except msgspec.ValidationError as error:
        raise _explain(error, path, text) from error
    if project.host is not None and project.host not in project.hosts:
        raise ProjectError(
            "the default host is not described",
            where=_place(path, text, "host"),
            got=project.host,
            remedy=_near(project.host, list(project.hosts)) or f"add a table [hosts.{project.host}]",
        )
    return _resolve_paths(project, path.parent)


def write_project(
    path: Path,
    *,
    model: str | None = None,
    target: str | None = None,
    data: str | None = None,
    host: str | None = None,
) -> None:
    """Writes a commented edgepipe.toml with every key; those given are filled in.

    Args:
        path: The new file.
        model: The source model.
        target: Kind of board.
        data: .npz or image folder.
        host: "user@address[:port]" of a first device, which becomes the default.

    Raises:
        ProjectError: the file is there already.
        TargetError: there is no such target.
        UsageError: the host is not of that form.
        OutputError: the folder cannot be written.
    """
    if path.exists():
        raise ProjectError(
            "the file is there already, and edgepipe does not overwrite it",
            where=str(path),
            remedy="edit it, or move it away first",
        )
    if not path.parent.is_dir():
        raise OutputError("there is no such folder", where=str(path.parent), remedy="make it first")
    if target is not None:
        load_target(target)
    text = project_text(model=model, target=target, data=data, host=host)
    write_whole(
        path,
        text.encode(),
        what="the project file cannot be written",
        remedy="check that the folder is yours to write",
    )


def project_text(
    *, model: str | None = None, target: str | None = None, data: str | None = None, host: str | None = None
) -> str:
    """The contents of a fresh edgepipe.toml: every key with a comment, those not given commented out."""

    def line(key: str, value: str | None, example: str) -> str:
        return f"# {key} = {_quote(example)}" if value is None else f"{key} = {_quote(value)}"

    return TEMPLATE.format(
        model=line("model", model, "model.onnx"),
        data=line("data", data, "val.npz"),
        target=line("target", target, "raspberrypi5"),
        host='# host = "board"' if host is None else 'host = "board"',
        table=_host_table(host),
    )


def _host_table(host: str | None) -> str:
    example = HostEntry(address="192.0.2.7", port=22, user="pi")
    entry = example if host is None else _host_entry(host)
    lines = ["[hosts.board]", f"address = {_quote(entry.address)}"]
    lines.append(f"port = {entry.port}" if entry.port else "# port = 22")
    lines.append(f"user = {_quote(entry.user)}" if entry.user else '# user = "pi"')
    if host is None:
        lines = [f"# {text}" for text in lines]
    return "\n".join(lines)


def _host_entry(text: str) -> HostEntry:
    host = parse_host(text)
    return HostEntry(address=host.hostname, port=host.port, user=host.user or None)


def _quote(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ProjectError(
            "there is no project file", where=str(path), remedy="write one with `edgepipe init`"
        ) from error
    except UnicodeDecodeError as error:
        raise ProjectError(
            "the project file is not UTF-8 text", where=str(path), got=f"byte {error.start}"
        ) from error
    except OSError as error:
        raise ProjectError(
            "the project file cannot be read", where=str(path), got=error.strerror or str(error)
        ) from error


def _refuse_secrets(table: dict[str, Any], path: Path, text: str) -> None:
    """Says why there is no such key before the parser says that it does not know it."""
    for key, value in table.items():
        if isinstance(value, dict):
            _refuse_secrets(value, path, text)
        elif key.lower() in SECRET_KEYS:
            raise ProjectError(
                "a project file holds no secrets",
                where=_place(path, text, key),
                got=f"key `{key}`",
                remedy="remove it; log in with a key file, the ssh-agent, or --ask-password",
            )


def _explain(error: msgspec.ValidationError, path: Path, text: str) -> ProjectError:
    """The message of msgspec with the line that it is about, and the nearest key where one is unknown."""
    message, _, json_path = str(error).partition(" - at `$")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", message)
    keys = [key for key in re.findall(r"\.(\w+)", json_path) if key != "hosts"]
    if unknown is None:
        key = keys[-1] if keys else ""
        return ProjectError(
            "a value in the project file does not fit", where=_place(path, text, key), got=message
        )
    key = unknown[1]
    record: type[msgspec.Struct] = Project
    if json_path.startswith(".preprocessing"):
        record = Preprocessing
    elif json_path.startswith(".hosts"):
        record = HostEntry
    known = [field.name for field in msgspec.structs.fields(record)]
    return ProjectError(
        "the project file has a key that edgepipe does not know",
        where=_place(path, text, key),
        got=f"`{key}`",
        remedy=_near(key, known) or f"keys here are {', '.join(known)}",
    )


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(f'`{match}`' for match in near)}?" if near else ""


def _place(path: Path, text: str, key: str) -> str:
    """The file with the line that sets `key` or opens its table, where one is found."""
    pattern = re.compile(rf"\s*(\[.*)?\b{re.escape(key)}\b\"?\s*[=.\]]")
    for number, line in enumerate(text.splitlines(), start=1):
        if key and pattern.match(line):
            return f"{path}, line {number}"
    return str(path)


def _resolve_paths(project: Project, folder: Path) -> Project:
    def resolve(text: str | None) -> str | None:
        return None if text is None else str(folder / Path(text).expanduser())

    hosts = {
        name: msgspec.structs.replace(entry, identity_file=resolve(entry.identity_file))
        for name, entry in project.hosts.items()
    }
    return msgspec.structs.replace(
        project,
        model=resolve(project.model),
        weights=resolve(project.weights),
        data=resolve(project.data),
        hosts=hosts,
    )
