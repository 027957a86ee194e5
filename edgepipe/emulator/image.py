"""The image of an emulated device: built once from what goes into it, which its tag is the digest of."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from edgepipe.emulator.assets import docker_folder
from edgepipe.emulator.engine import Engine, last_lines
from edgepipe.errors import EmulatorFailed
from edgepipe.events import Emit, Warned, stage
from edgepipe.target import Emulation, Target

REPOSITORY = "edgepipe-device"
BASE_REPOSITORY = "edgepipe-base"
PLATFORMS = {"aarch64": "linux/arm64", "armv7l": "linux/arm/v7", "x86_64": "linux/amd64"}
DEBIAN_NAMES = {"aarch64": "arm64", "armv7l": "armhf", "x86_64": "amd64"}
SUITE_PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}

_SENT = ("Dockerfile", "device", "selftest")
_GLIBC_MINORS = range(17, 36)  # 2.35 is Ubuntu 22.04's, the oldest of the bases
_PULL_TIMEOUT_S = 900.0
_BUILD_TIMEOUT_S = 1800.0


class Base(msgspec.Struct, frozen=True):
    """What an image is built on.

    Attributes:
        name: As the engine knows it.
        id: Its digest.
        python: Version of its Python: "3.13".
    """

    name: str
    id: str
    python: str


def ensure_image(engine: Engine, target: Target, emulation: Emulation, emit: Emit) -> str:
    """The tag of the target's image, which is built where it is not there yet.

    Raises:
        EmulatorFailed: There is no base, a runtime has no wheel for the device, or the build fails.
    """
    base = _find_base(engine, target, emulation, emit)
    if base.python != target.python:
        emit(
            Warned(
                f"the emulated device has Python {base.python} of {base.name}, not {target.python}",
                f"with a registry in reach, `{engine.kind} rmi {base.name}` makes it of {emulation.image}",
            )
        )
    requirements = _requirements(target)
    tag = f"{REPOSITORY}:{target.architecture}-{_digest(target, base, requirements)[:16]}"
    if engine.inspect(tag, kind="image"):
        return tag
    with tempfile.TemporaryDirectory(prefix="edgepipe-image-") as name:
        context = Path(name)
        fill_context(target, base.python, context, emit)
        with stage(emit, "build the device's image") as building:
            _build(engine, target, base, context, tag)
            building.detail = f"{tag} on {base.name}"
    return tag


def fill_context(target: Target, python: str, context: Path, emit: Emit) -> None:
    """Writes into a folder what an image of the target is built of, wheels of its architecture included.

    Raises:
        EmulatorFailed: A runtime has no wheel for the device.
    """
    for each in _SENT:
        source = docker_folder() / each
        if source.is_dir():
            shutil.copytree(source, context / each, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / each)
    requirements = _requirements(target)
    with stage(emit, "fetch the device's runtimes") as fetching:
        _unpack_wheels(requirements, target, python, context / "site-packages")
        fetching.detail = f"{', '.join(requirements)} for {target.architecture}, Python {python}"


def platform_of(target: Target) -> str:
    """The target's architecture as container engines call it."""
    return PLATFORMS[target.architecture]


def _find_base(engine: Engine, target: Target, emulation: Emulation, emit: Emit) -> Base:
    """The base that was made offline, where there is one; else the registry's."""
    architecture = DEBIAN_NAMES[target.architecture]
    offline = f"{BASE_REPOSITORY}:{emulation.suite}-{architecture}"
    if found := engine.inspect(offline, kind="image"):
        return Base(offline, found[0]["Id"], SUITE_PYTHONS[emulation.suite])
    name = emulation.image
    platform = platform_of(target)
    here = engine.inspect(name, kind="image")
    if not here or here[0]["Architecture"] != platform.split("/")[1]:
        with stage(emit, f"pull {name}"):
            done = engine.attempt("pull", "--quiet", "--platform", platform, name, timeout_s=_PULL_TIMEOUT_S)
        if done.returncode != 0:
            script = docker_folder() / "make-base.py"
            raise EmulatorFailed(
                "the base of the emulated device cannot be pulled",
                where=f"{name} for {platform}",
                got=last_lines(done.stderr),
                remedy="go online, or make the base from Debian packages: "
                f"python3 {script} {emulation.suite} {architecture}",
            )
        here = engine.inspect(name, kind="image")
    return Base(name, here[0]["Id"], target.python)


def _requirements(target: Target) -> tuple[str, ...]:
    """What pip is asked for: the profile's runtimes at its versions."""
    return tuple(f"{each.package}=={each.version}" for each in target.runtimes)


def _debian_numpy(target: Target) -> bool:
    """Whether NumPy comes from Debian: PyPI has no wheel of it for 32-bit Arm."""
    return target.architecture == "armv7l"


def _digest(target: Target, base: Base, requirements: tuple[str, ...]) -> str:
    """Digest of everything that goes into the image."""
    parts: list[object] = [base.id, base.python, target.architecture, requirements]
    root = docker_folder()
    files = [root / "constraints" / f"{base.python}.txt"]
    for each in _SENT:
        files += sorted((root / each).rglob("*")) if (root / each).is_dir() else [root / each]
    sent = [file for file in files if file.is_file() and "__pycache__" not in file.parts]
    parts += [(str(file.relative_to(root)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in sent]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _unpack_wheels(requirements: tuple[str, ...], target: Target, python: str, folder: Path) -> None:
    """Installs wheels of the device's architecture into a folder: pip does so without running any of them."""
    folder.mkdir()
    architecture = target.architecture
    platforms = [f"manylinux_2_{minor}_{architecture}" for minor in _GLIBC_MINORS]
    platforms += [f"manylinux2014_{architecture}", f"linux_{architecture}"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-compile", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={each}" for each in platforms]
    constraints = docker_folder() / "constraints" / f"{python}.txt"
    command += [f"--constraint={constraints}"] if constraints.is_file() else []
    command += ["--no-deps"] if _debian_numpy(target) else []
    done = subprocess.run(
        [*command, f"--target={folder}", *requirements],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PULL_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise EmulatorFailed(
            "pip finds no wheels of the runtimes for the emulated device",
            where=f"{', '.join(requirements)} for {architecture}, Python {python}",
            got=last_lines(done.stderr),
            remedy="see whether PyPI can be reached, and whether this Python has pip (python -m ensurepip)",
        )


def _build(engine: Engine, target: Target, base: Base, context: Path, tag: str) -> None:
    arguments = [f"BASE={base.name}", f"DEBIAN_NUMPY={'yes' if _debian_numpy(target) else ''}"]
    options = [option for each in arguments for option in ("--build-arg", each)]
    if engine.kind == "podman":
        options += ["--format", "docker"]  # the OCI's format has no health check
    engine.run(
        "build", "--platform", platform_of(target), *options, "--tag", tag, str(context),
        timeout_s=_BUILD_TIMEOUT_S,
    )  # fmt: skip
