"""Targets: kinds of board, as data. One TOML file each in targets/, with a one-level `extends`.

A file is named after its target and holds the fields of :class:`Target` but `name`. A file that says
``extends = "raspberrypi4"`` takes every field that it does not set from that target.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from device_agent.protocol import POWER_SOURCES, THROTTLE_SOURCES
from edgepipe.errors import TargetError

Activation = Literal["uint8", "int8", "int8-symmetric"]
RuntimeName = Literal["onnxruntime", "litert", "tflite-runtime"]
Count = Annotated[int, msgspec.Meta(ge=1)]
PythonVersion = Annotated[str, msgspec.Meta(pattern=r"^3\.\d+$")]


VENV = "~/.edgepipe/venv"
"""The virtual environment on a device whose Python the agent runs with, where it is there."""


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An inference runtime that the board can have.

    Attributes:
        name: "onnxruntime", "litert" (package ai-edge-litert) or "tflite-runtime".
        package: What to install with pip.
        version: The version that this profile was made for.
        beside: Other requirements that pip must be given with it: ["numpy<2"].
    """

    name: RuntimeName
    package: str
    version: str
    beside: tuple[str, ...] = ()

    @property
    def install_command(self) -> str:
        """What to type on the device to install it."""
        return install_command(f"{self.package}=={self.version}", *self.beside)

    @property
    def format(self) -> Literal["onnx", "tflite"]:
        """The artifact format that it runs."""
        return "onnx" if self.name == "onnxruntime" else "tflite"


class Emulation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a container stands for the board, where there is none.

    Attributes:
        board: Folder of docker/boards/ that holds what the board shows of itself.
        image: Base image from a registry, whose Python is that of the profile.
        suite: Debian release of the base that is made offline.
        qemu_cpu: QEMU's name of the processor; "" where only the machine's own architecture is meant.
        native: Whether a machine of the same architecture is such a device itself.
    """

    board: str
    image: str
    suite: Literal["bookworm", "trixie"]
    qemu_cpu: str = ""
    native: bool = False


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of board, and what edgepipe must know to make and measure artifacts for it.

    Attributes:
        name: Name of the file, and what `--target` takes.
        title: The board's name as its maker writes it.
        architecture: What `uname -m` says: "aarch64", "armv7l", "x86_64".
        cpu: Cores and clock, for people.
        cores: Number of CPU cores.
        memory_mb: RAM in MiB.
        os: Operating system that the profile assumes.
        python: Python version of that system: "3.11".
        runtimes: What can run there, the preferred one first.
        activation: Type of quantized activations that its kernels are fastest with.
        threads: Inference threads.
        execution_providers: ONNX Runtime's, in order of preference.
        power_sources: Names of the agent's power readers to try, in order; empty where there are none.
        throttle_sources: Names of the agent's throttle readers.
        emulation: How a container stands for the board; none where it cannot.
        facts: Where each figure comes from: an address or document by field name.
        notes: What a user should know.
    """

    name: str
    title: str
    architecture: Literal["aarch64", "armv7l", "x86_64"]
    cpu: str
    cores: Count
    memory_mb: Count
    os: str
    python: PythonVersion
    runtimes: Annotated[tuple[Runtime, ...], msgspec.Meta(min_length=1)]
    activation: Activation
    threads: Count
    execution_providers: tuple[str, ...] = ("CPUExecutionProvider",)
    power_sources: tuple[str, ...] = ()
    throttle_sources: tuple[str, ...] = ()
    emulation: Emulation | None = None
    facts: dict[str, str] = {}
    notes: str = ""

    @property
    def formats(self) -> tuple[Literal["onnx", "tflite"], ...]:
        """Artifact formats that some runtime of the board can run, the preferred one first."""
        return tuple(dict.fromkeys(runtime.format for runtime in self.runtimes))


def install_command(*requirements: str) -> str:
    """What to type on a device to install packages where the agent looks first.

    A virtual environment, as Debian 12 and Ubuntu 23.04 and later refuse pip for their own Python
    (PEP 668). It sees the system's packages, so that a board vendor's build of a runtime stays in use.
    """
    make = f"python3 -m venv --system-site-packages {VENV}"
    return f"{make} && {VENV}/bin/pip install " + " ".join(f"'{each}'" for each in requirements)


def load_target(name_or_path: str | Path) -> Target:
    """Loads a shipped target by its name or its family's, or one of the user's by the path of its file.

    Args:
        name_or_path: "raspberrypi5", "jetson" (the family's default), or a path that ends in ".toml".

    Raises:
        TargetError: There is no such target or file, or the file is malformed.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        return _read_target(Path(text))
    path = _shipped().get(target_name(text))
    if path is None:
        raise _unknown(text)
    return _read_target(path)


def target_name(name_or_path: str) -> str:
    """What a target calls itself: a family's name resolved, a file's stem. The target need not exist.

    Raises:
        TargetError: The file of aliases is malformed.
    """
    if name_or_path.endswith(".toml"):
        return Path(name_or_path).stem
    return load_aliases().get(name_or_path, name_or_path)


def list_targets() -> tuple[Target, ...]:
    """Every shipped target, in order of name.

    Raises:
        TargetError: A file is malformed.
    """
    return tuple(_read_target(path) for _, path in sorted(_shipped().items()))


def load_aliases() -> dict[str, str]:
    """The target that each family name stands for.

    Raises:
        TargetError: The file of aliases is malformed.
    """
    path = targets_folder() / "aliases.toml"
    try:
        return msgspec.convert(_read_toml(path), dict[str, str])
    except msgspec.ValidationError as error:
        raise TargetError("the file of family names is malformed", where=str(path), got=str(error)) from error


def targets_folder() -> Path:
    """The folder of the shipped targets: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "targets"
    return in_wheel if in_wheel.is_dir() else package.parent / "targets"


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in targets_folder().glob("*.toml") if path.stem != "aliases"}


def _read_target(path: Path) -> Target:
    table = _read_toml(path)
    base_name = table.pop("extends", None)
    if base_name is not None:
        table = _extended(_base_table(base_name, path), table)
    if "name" in table:
        raise TargetError(
            "a target file does not name itself",
            where=f"{path}: name",
            remedy="remove the key; rename the file",
        )
    try:
        target = msgspec.convert({**table, "name": path.stem}, Target)
    except msgspec.ValidationError as error:
        raise _malformed(path, str(error)) from error
    _check_names(target, path)
    return target


def _check_names(target: Target, path: Path) -> None:
    """Refuses readers that the agent does not have; a provider may be of any build of ONNX Runtime."""
    for field, known in (("power_sources", POWER_SOURCES), ("throttle_sources", THROTTLE_SOURCES)):
        for name in getattr(target, field):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"take some of {', '.join(known)}"
                raise TargetError(
                    "the agent has no such reader", where=f"{path}: {field}", got=repr(name), remedy=remedy
                )
    for name in target.execution_providers:
        if not re.fullmatch(r"\w+ExecutionProvider", name):
            raise TargetError(
                "ONNX Runtime's execution providers have longer names",
                where=f"{path}: execution_providers",
                got=repr(name),
                remedy="write it in full, such as CUDAExecutionProvider",
            )


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = "check the path, or name a shipped target: edgepipe targets list"
        raise TargetError("there is no such target file", where=str(path), remedy=remedy) from error
    except OSError as error:
        raise TargetError(
            "the target file cannot be read", where=str(path), got=error.strerror or str(error)
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError("the target file is not valid TOML", where=str(path), got=str(error)) from error


def _base_table(base_name: object, path: Path) -> dict[str, object]:
    where = f"{path}: extends"
    if not isinstance(base_name, str):
        raise TargetError("`extends` names one shipped target", where=where, got=repr(base_name))
    base_path = _shipped().get(load_aliases().get(base_name, base_name))
    if base_path is None:
        raise _unknown(base_name, where=where)
    table = _read_toml(base_path)
    if "extends" in table:
        remedy = f"extend {table['extends']!r}, or copy {base_path.name}"
        raise TargetError("a target extends another one that extends a third", where=where, remedy=remedy)
    return table


def _extended(base: dict[str, object], own: dict[str, object]) -> dict[str, object]:
    """The base's fields under the file's own ones.

    A source goes with its figure: for a field that the file sets, the base's source is dropped.
    """
    base_facts, own_facts = base.get("facts", {}), own.get("facts", {})
    merged = {**base, **own}
    if isinstance(base_facts, dict) and isinstance(own_facts, dict):
        inherited = {field: source for field, source in base_facts.items() if field not in own}
        merged["facts"] = {**inherited, **own_facts}
    return merged


def _unknown(name: str, where: str = "") -> TargetError:
    names = sorted({*_shipped(), *load_aliases()})
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    remedy = f"did you mean {' or '.join(near)}? " if near else f"take one of {', '.join(names)}. "
    remedy += "Or give the path of a .toml file"
    return TargetError("there is no such target", where=where, got=name, remedy=remedy)


def _malformed(path: Path, complaint: str) -> TargetError:
    """Names the key that msgspec's complaint is about, which says "at `$.cores`" or "field `cores`"."""
    place = re.search(r" - at `\$\.?(.*)`$", complaint)
    unknown = re.search(r"unknown field `(.+?)`", complaint)
    missing = re.search(r"missing required field `(.+?)`", complaint)
    what, key, remedy = (
        "a key of the target file has a wrong value",
        "",
        "see targets/README.md for the fields",
    )
    if unknown:
        what, key = "the target file has an unknown key", unknown[1]
        near = difflib.get_close_matches(key, Target.__struct_fields__, n=1)
        remedy = f"did you mean {near[0]}?" if near else remedy
    elif missing:
        what, key = "the target file lacks a key", missing[1]
    parts = [part for part in (place[1] if place else "", key) if part]
    where = f"{path}: {'.'.join(parts)}" if parts else str(path)
    return TargetError(what, where=where, got=complaint.partition(" - at ")[0], remedy=remedy)
