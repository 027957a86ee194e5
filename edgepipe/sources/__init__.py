"""Sources: every kind of model that edgepipe reads, brought into one float ONNX graph.

`load` looks at the name and imports only what that kind needs: no torch for a TFLite file, no
TensorFlow unless the model is a SavedModel or a Keras file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgepipe.errors import ModelError, ModelNotFound, ModelUnreadable, UsageError
from edgepipe.events import Emit, silent
from edgepipe.sources.source import Fidelity, Kind, Request, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Fidelity", "Kind", "Source", "load"]

READABLE = (
    "edgepipe reads .onnx, float .tflite, .pt2 (torch.export), file.py:factory (PyTorch code), .keras, .h5, "
    "SavedModel folders"
)
CHECKPOINTS = {".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"}


def load(
    source: str,
    *,
    weights: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    sample: NDArray[np.generic] | None = None,
    seed: int = 0,
    emit: Emit = silent,
) -> Source:
    """Loads a model of any supported kind as an ONNX graph, and checks the conversion.

    Args:
        source: A file, a folder, or ``file.py:factory``.
        weights: A checkpoint for the factory's module.
        input_shape: Shape of the input, batch first, where the source does not say it.
        sample: Real samples to check the conversion on, [n, ...] in the layout of the input;
            random ones are used without.
        seed: Seed of the random samples.
        emit: Where progress and warnings go.

    Raises:
        ModelNotFound: no such file, folder or factory.
        ModelUnreadable: not a model, a corrupt one, or a factory that raised.
        ModelError: input sizes that are unknown, a batch that is fixed at several samples, a weight that
            is NaN, or a TFLite model that is quantized already.
        UnsupportedOp: an op that the converter does not know.
        FidelityError: the ONNX graph computes something else than the source.
        MissingExtra: torch or TensorFlow is needed and not installed.
        UsageError: weights were given for a source that has its own.
    """
    path, factory = _split_factory(source)
    request = Request(
        path=path,
        origin=source,
        factory=factory,
        weights=None if weights is None else Path(weights),
        input_shape=input_shape,
        sample=sample,
        seed=seed,
        emit=emit,
    )
    _check(request)
    loaded = _loader(path, factory)(request)
    from edgepipe.sources.batch import free_batch

    return msgspec.structs.replace(loaded, model=free_batch(loaded.model, request.origin))


def _check(request: Request) -> None:
    if not request.path.exists():
        raise ModelNotFound(
            "there is no such model",
            where=str(request.path),
            remedy=_near_names(request.path) or "check the path; it is relative to the working folder",
        )
    if request.weights is not None and not request.factory:
        raise UsageError(
            "--weights goes with a torch factory only",
            where=request.origin,
            got=str(request.weights),
            remedy="name the model as file.py:factory",
        )
    if request.input_shape is not None and min(request.input_shape, default=0) < 1:
        raise UsageError(
            "--input-shape needs positive sizes, batch first",
            got=",".join(map(str, request.input_shape)),
            remedy="for instance --input-shape 1,3,224,224",
        )


def _split_factory(source: str) -> tuple[Path, str]:
    file, separator, factory = source.rpartition(":")
    return (Path(file), factory) if separator and file.endswith(".py") else (Path(source), "")


def _loader(path: Path, factory: str) -> Callable[[Request], Source]:
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ModelUnreadable(
                "the folder is no SavedModel",
                where=str(path),
                got="no saved_model.pb in it",
                remedy=READABLE,
            )
        from edgepipe.sources.keras import load_savedmodel

        return load_savedmodel
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from edgepipe.sources.onnx import load_onnx

        return load_onnx
    if suffix in {".tflite", ".lite"}:
        from edgepipe.sources.tflite import load_tflite

        return load_tflite
    if suffix in {".keras", ".h5", ".hdf5"}:
        from edgepipe.sources.keras import load_keras

        return load_keras
    if suffix == ".pt2":
        from edgepipe.sources.torch import load_exported

        return load_exported
    if suffix == ".py" and factory:
        from edgepipe.sources.torch import load_factory

        return load_factory
    raise _not_a_model(path)


def _not_a_model(path: Path) -> ModelError:
    suffix = path.suffix.lower()
    if suffix == ".py":
        return ModelUnreadable(
            "a Python file alone is no model",
            where=str(path),
            remedy=f"name the function or class that makes the module: {path}:make_model",
        )
    if suffix in CHECKPOINTS:
        return ModelUnreadable(
            "the file holds weights, not a model",
            where=str(path),
            remedy=f"name the code that makes the module too: model.py:factory --weights {path}",
        )
    if path.name == "saved_model.pb":
        return ModelUnreadable(
            "this is one file of a SavedModel", where=str(path), remedy=f"name its folder: {path.parent}"
        )
    return ModelUnreadable(
        "edgepipe reads no model of this kind",
        where=str(path),
        got=f"suffix {suffix}" if suffix else "no suffix",
        remedy=READABLE,
    )


def _near_names(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""
