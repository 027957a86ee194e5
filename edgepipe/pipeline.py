"""Drives a recipe: checks the chain, applies each pass, records what it did, caches the result."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import edgepipe
from edgepipe.bundle import Step
from edgepipe.data import Dataset
from edgepipe.errors import (
    CalibrationDataMissing,
    DataShapeMismatch,
    DataTypeMismatch,
)
from edgepipe.evaluate import sqnr_db
from edgepipe.events import stage
from edgepipe.files import write_whole
from edgepipe.graph.edit import is_quantized
from edgepipe.model import Model, digest_bytes, onnx_model
from edgepipe.passes import Context, Pass
from edgepipe.recipe import Recipe, check_chain, pass_name
from edgepipe.runtime import open_session

COMPARED_SAMPLES = 16
"""Calibration samples that the SQNR of a step is measured on."""
_BATCH = 4
"""Of these, how many run together where the model's batch is dynamic: all at once took much memory."""
CACHED_RESULTS = 32
"""Results that a cache keeps, the newest ones."""
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "torch")
"""Packages whose version can change what a pass gives."""


def run(
    recipe: Recipe, model: Model, context: Context, *, cache: Path | None
) -> tuple[Model, tuple[Step, ...]]:
    """Applies the passes of a recipe.

    Args:
        recipe: What to do.
        model: What to do it to; it stays as it is.
        context: What passes may look at.
        cache: Folder of results of earlier runs, made where absent; None keeps nothing.

    Returns:
        The last model, and what each pass did.

    Raises:
        RecipeError: The passes don't fit each other or the model.
        CalibrationDataMissing: A pass calibrates and the context has no samples.
        DataShapeMismatch: The samples do not have the shape of the model's input.
        DataTypeMismatch: They have another type.
        OutputError: The cache cannot be written.
        EdgepipeError: Whatever a pass raises.
    """
    steps = []
    for after, step in trace(recipe, model, context, cache=cache):
        model = after
        steps.append(step)
    return model, tuple(steps)


def trace(
    recipe: Recipe, model: Model, context: Context, *, cache: Path | None
) -> Iterator[tuple[Model, Step]]:
    """Applies the passes of a recipe one by one: the model after each, and what it did; see `run`."""
    check_chain(recipe.passes, given=model.format, where=f"recipe {recipe.name}")
    _check_calibration(recipe, model, context)
    compared = _Comparison(context.calibration)
    for each in recipe.passes:
        model, step = _apply(each, model, context, cache, compared)
        yield model, step


def _check_calibration(recipe: Recipe, model: Model, context: Context) -> None:
    needy = next((each for each in recipe.passes if each.needs_calibration), None)
    if needy is None or (model.format == "onnx" and is_quantized(model)):
        return
    if context.calibration is None or len(context.calibration) == 0:
        raise CalibrationDataMissing(
            f"pass {pass_name(needy)} calibrates on real samples, and there are none",
            where=f"recipe {recipe.name}",
            remedy="give --data FILE.npz or a folder of images; "
            "--calibrate-random makes samples up, for timing alone",
        )
    _check_samples(context.calibration, model)


def _check_samples(data: Dataset, model: Model) -> None:
    spec = model.inputs[0]
    wanted, got = spec.shape[1:], data.x.shape[1:]
    if len(wanted) != len(got) or any(
        size not in (None, found) for size, found in zip(wanted, got, strict=True)
    ):
        raise DataShapeMismatch(
            "the samples do not have the shape of the model's input",
            where=data.source,
            got=f"{list(got)}, not {spec}",
        )
    if data.x.dtype != np.dtype(spec.dtype):
        raise DataTypeMismatch(
            "the samples do not have the type of the model's input",
            where=data.source,
            got=f"{data.x.dtype}, not {spec}",
        )


def _apply(
    each: Pass, model: Model, context: Context, cache: Path | None, compared: _Comparison
) -> tuple[Model, Step]:
    name = pass_name(each)
    with stage(context.emit, name) as running:
        started = time.perf_counter()
        place = None if cache is None else cache / f"{cache_key(each, model, context)}.onnx"
        kept = _read_cache(place, model.name) if place is not None else None
        result = kept if kept is not None else each.apply(model, context)
        seconds = time.perf_counter() - started
        if place is not None and kept is None and each.gives == "onnx":
            _write_cache(place, result.payload)
        step = Step(
            use=name,
            settings=msgspec.to_builtins(each),
            digest_in=model.digest,
            digest_out=result.digest,
            size_in_bytes=model.size_bytes,
            size_out_bytes=result.size_bytes,
            sqnr_db=compared.sqnr_db(model, result),
            seconds=seconds,
            cached=kept is not None,
        )
        running.detail = _summary(step)
    return result, step


def _summary(step: Step) -> str:
    sqnr = "" if step.sqnr_db is None else f"output SQNR {step.sqnr_db:.1f} dB on calibration samples"
    return ", ".join(filter(None, ["from the cache" if step.cached else "", sqnr]))


def cache_key(each: Pass, model: Model, context: Context) -> str:
    """Digest of all that the result of a pass depends on.

    That is: the model, the pass and its settings, the calibration samples, the seed, what the target
    asks for, the code of edgepipe, and the versions of the packages that compute.
    """
    parts = {
        "model": model.digest,
        "use": pass_name(each),
        "settings": msgspec.to_builtins(each),
        "calibration": context.calibration.digest if each.needs_calibration and context.calibration else None,
        "seed": context.seed,
        "activation": context.target.activation,
        "code": code_digest(),
        "versions": _versions(),
    }
    return digest_bytes(json.dumps(parts, sort_keys=True).encode())


@functools.cache
def code_digest() -> str:
    """sha256 over edgepipe's sources: between two releases its version says nothing."""
    sources = sorted(Path(edgepipe.__file__).parent.rglob("*.py"))
    return digest_bytes(b"".join(path.read_bytes() for path in sources))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _read_cache(place: Path, name: str) -> Model | None:
    """The model kept there; None where there is none, or it is damaged."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        payload = place.read_bytes()
        digest, _, content = payload.partition(b"\n")
        if digest.decode("ascii", "replace") != digest_bytes(content):
            return None
        return onnx_model(onnx.load_from_string(content), name)
    except (OSError, DecodeError):
        return None


def _write_cache(place: Path, content: bytes) -> None:
    """Keeps a model with its digest, and forgets the oldest."""
    write_whole(
        place,
        digest_bytes(content).encode() + b"\n" + content,
        what="a result cannot be kept in the cache",
        remedy="make room there, or name another cache folder",
    )
    _forget_oldest(place.parent)


def _forget_oldest(folder: Path) -> None:
    """Keeps the cache from growing without end; another process may be doing the same."""
    oldest_first = sorted(folder.glob("*.onnx"), key=_written_ns)
    for path in oldest_first[:-CACHED_RESULTS]:
        with suppress(OSError):  # a cache that is too large is no failure
            path.unlink()


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


class _Comparison:
    """Outputs of the models between the passes on some calibration samples, each computed once.

    Args:
        data: The calibration samples; None where there are none.
    """

    def __init__(self, data: Dataset | None) -> None:
        self._data = data
        self._last: tuple[str, list[NDArray[Any]]] = ("", [])

    def sqnr_db(self, before: Model, after: Model) -> float | None:
        """SQNR of the outputs after a pass against those before; None where unknown or exact."""
        if (
            self._data is None
            or before.digest == after.digest
            or {before.format, after.format} != {"onnx"}
            or len(before.inputs) != 1
        ):
            return None
        few = not is_quantized(after)
        exact, found = self._outputs(before, self._data, few=few), self._outputs(after, self._data)
        runs = min(len(exact), len(found))
        if not runs:
            return None
        pair = [np.concatenate(each[:runs]) for each in (exact, found)]
        return sqnr_db(*pair) if np.isfinite(pair).all() else None

    def _outputs(self, model: Model, data: Dataset, *, few: bool = False) -> list[NDArray[Any]]:
        """All outputs in a row, by batch; none where the samples do not fill one. The last ones are kept.

        A model that another pass takes gets all samples, for whatever that does. `few` is for the first,
        where it is compared with a graph in float alone, which differs on any sample or on none.
        """
        if self._last[0] != model.digest:
            fixed = model.inputs[0].shape[0]
            size, count = fixed or _BATCH, min(_BATCH if few else COMPARED_SAMPLES, len(data))
            batches = [data.x[start : min(start + size, count)] for start in range(0, count, size)]
            full = [np.ascontiguousarray(batch) for batch in batches if len(batch) == (fixed or len(batch))]
            session = open_session(model.payload, "onnx", threads=0)
            runs = [session.run([batch]) for batch in full]
            self._last = model.digest, [np.concatenate([each.ravel() for each in run]) for run in runs]
        return self._last[1]
