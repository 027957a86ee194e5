"""What a run records of how it came about, and the job that this record asks for again."""

from __future__ import annotations

import functools
import platform
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

import edgepipe
from edgepipe.bundle import Manifest, Step
from edgepipe.device.embedded import cpu_name
from edgepipe.job import Job
from edgepipe.pipeline import code_digest
from edgepipe.provenance import Environment, Origin, digest_path
from edgepipe.recipe import Recipe, pass_name
from edgepipe.runtime import usable_cores
from edgepipe.target import Target
from edgepipe.workflow.prepare import Prepared

_OF_DEVELOPERS = 'extra == "dev"'


def origin_of(prepared: Prepared) -> Origin:
    """The inputs and options of a job, with the digests of its files."""
    job = prepared.job
    return Origin(
        model=job.model,
        model_sha256=digest_path(model_path(job.model)),
        weights=None if job.weights is None else str(job.weights),
        weights_sha256=None if job.weights is None else digest_path(job.weights),
        data=None if job.data is None else str(job.data),
        data_sha256=None if job.data is None else digest_path(job.data),
        input_shape=job.input_shape,
        preprocessing=None if job.data is None else job.preprocessing,
        calibration_samples=job.calibration_samples,
        calibrate_random=job.calibrate_random,
        limit=job.limit,
        ports=job.ports,
        recipe=recipe_toml(prepared.recipe),
        target=prepared.target,
    )


def model_path(model: str) -> Path:
    """The file or folder of a model, for ``file.py:factory`` that of its code."""
    file, colon, _ = model.rpartition(":")
    return Path(file) if colon and file.endswith(".py") else Path(model)


def origin_from_manifest(manifest: Manifest, target: Target) -> Origin:
    """As far as a bundle alone tells: for runs of `edgepipe bench`, and those of older versions."""
    calibration = manifest.calibration
    quantized = [one for one in manifest.artifacts if not one.precision.startswith("float")]
    ports = {(one.format, port.scale is not None) for one in quantized for port in one.inputs}
    defaults = {("onnx", False), ("tflite", True)}
    return Origin(
        model=manifest.model_source,
        model_sha256=None,
        data=None if calibration is None or calibration.random else calibration.source,
        calibration_samples=None if calibration is None or calibration.random else calibration.samples,
        calibrate_random=calibration is not None and calibration.random,
        ports=None if ports <= defaults else "integer" if ("onnx", True) in ports else "float32",
        recipe=_toml("", quantized[0].precision if quantized else "float32", _tables(manifest.steps)),
        target=target,
    )


def job_of(origin: Origin, seed: int, recipe_name: str, folder: Path) -> Job:
    """The job that an origin records; its recipe and target are written into `folder`."""
    recipe = folder / f"{Path(recipe_name).stem}.toml"
    recipe.write_text(origin.recipe, encoding="utf-8")
    targets = folder / "targets"
    targets.mkdir()
    target = targets / f"{origin.target.name}.toml"
    table = {key: value for key, value in _plain(origin.target).items() if key != "name"}
    target.write_text(tomli_w.dumps(table), encoding="utf-8")
    return Job(
        model=origin.model,
        target=str(target),
        weights=None if origin.weights is None else Path(origin.weights),
        input_shape=origin.input_shape,
        data=None if origin.data is None else Path(origin.data),
        preprocessing=origin.preprocessing,
        calibration_samples=origin.calibration_samples,
        calibrate_random=origin.calibrate_random,
        limit=origin.limit,
        recipe=str(recipe),
        ports=origin.ports,
        seed=seed,
    )


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as a file that `load_recipe` reads, every setting written out: defaults change."""
    tables = [{"use": pass_name(each), **_plain(each)} for each in recipe.passes]
    return _toml(recipe.description, recipe.precision, tables)


def _tables(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    return [{"use": step.use, **_without_none(step.settings)} for step in steps]


def _toml(description: str, precision: str, passes: list[dict[str, Any]]) -> str:
    return tomli_w.dumps({"description": description, "precision": precision, "passes": passes})


def _plain(record: msgspec.Struct) -> dict[str, Any]:
    """A record as TOML can hold it."""
    found: dict[str, Any] = _without_none(msgspec.to_builtins(record))
    return found


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out, where it is the default."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_without_none(each) for each in value]
    return value


@functools.cache
def this_environment() -> Environment:
    """Where this process runs."""
    libc = " ".join(filter(None, platform.libc_ver()))
    return Environment(
        edgepipe=edgepipe.__version__,
        code=code_digest(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=", ".join(filter(None, [f"{platform.system()} {platform.machine()}", libc])),
        cpu=cpu_name(),
        cores=usable_cores(),
        packages=_packages(),
    )


def _packages() -> dict[str, str]:
    """Version of every installed package that edgepipe needs; its developers' tools are left out."""
    found: dict[str, str] = {}
    waiting = ["edgepipe"]
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        found[key] = installed.version
        for requirement in installed.requires or ():
            optional = "extra ==" in requirement and key != "edgepipe"
            if not optional and _OF_DEVELOPERS not in requirement:
                waiting += re.findall(r"^[\w.-]+", requirement)
    del found["edgepipe"]
    return found
