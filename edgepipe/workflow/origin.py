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
from edgepipe.errors import ProjectError
from edgepipe.job import Job
from edgepipe.pipeline import code_digest
from edgepipe.preprocess import Preprocessing
from edgepipe.provenance import Environment, Origin, digest_path
from edgepipe.recipe import Recipe, pass_name
from edgepipe.runtime import usable_cores
from edgepipe.store import Run
from edgepipe.target import Target
from edgepipe.workflow.prepare import Prepared

_OF_DEVELOPERS = re.compile(r"extra == ['\"]dev['\"]")


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
        preprocessing=None if job.preprocessing is None else msgspec.to_builtins(job.preprocessing),
        calibration_samples=job.calibration_samples,
        calibrate_random=job.calibrate_random,
        limit=job.limit,
        ports=job.ports,
        recipe=recipe_toml(prepared.recipe),
        target=target_toml(prepared.target),
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
        target=target_toml(target),
    )


def job_of(origin: Origin, run: Run, folder: Path) -> Job:
    """The job that a run records; its recipe and target are written into `folder`.

    Raises:
        ProjectError: This edgepipe does not know the recorded preprocessing.
    """
    # Names of an exported record are anybody's: none may lead out of the folder.
    recipe = folder / "recipe" / f"{Path(run.recipe).name}.toml"
    target = folder / "target" / f"{Path(run.target).name}.toml"
    for path, text in ((recipe, origin.recipe), (target, origin.target)):
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
    return Job(
        model=origin.model,
        target=str(target),
        weights=None if origin.weights is None else Path(origin.weights),
        input_shape=origin.input_shape,
        data=None if origin.data is None else Path(origin.data),
        preprocessing=_preprocessing(origin),
        calibration_samples=origin.calibration_samples,
        calibrate_random=origin.calibrate_random,
        limit=origin.limit,
        recipe=str(recipe),
        ports=origin.ports,
        seed=run.seed,
    )


def _preprocessing(origin: Origin) -> Preprocessing | None:
    try:
        return msgspec.convert(origin.preprocessing, Preprocessing | None)
    except msgspec.ValidationError as error:
        raise ProjectError(
            "this edgepipe does not know the preprocessing of the run",
            where="origin.preprocessing of the run's record",
            got=str(error),
            remedy="take the edgepipe that made the run",
        ) from error


def target_toml(target: Target) -> str:
    """A target as a file that `load_target` reads; its name is the file's."""
    return tomli_w.dumps({key: value for key, value in _plain(target).items() if key != "name"})


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
            if not optional and not _OF_DEVELOPERS.search(requirement):
                waiting += re.findall(r"^[\w.-]+", requirement)
    del found["edgepipe"]
    return found
