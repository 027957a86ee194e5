"""Keras files and SavedModel folders, by way of tf2onnx and TensorFlow in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.errors import MissingExtra, ModelUnreadable
from edgepipe.events import stage
from edgepipe.sources.batch import settle_batch
from edgepipe.sources.child import run_child
from edgepipe.sources.fidelity import Trial
from edgepipe.sources.graph import freeze, read_converted
from edgepipe.sources.source import Kind, Request, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MARKS = {".keras": b"PK\x03\x04", ".h5": b"\x89HDF\r\n\x1a\n", ".hdf5": b"\x89HDF\r\n\x1a\n"}
"""What such files begin with: a zip archive, or HDF5."""


def load_keras(request: Request) -> Source:
    """Loads a .keras or .h5 file. Code in it (Lambda layers) is not run.

    Raises:
        MissingExtra: TensorFlow is not installed.
        ModelUnreadable: Keras cannot load the file.
        UnsupportedOp: an op that tf2onnx does not know.
        ModelError: input sizes are unknown, or the converter failed.
        FidelityError: the ONNX graph computes something else than Keras.
    """
    require_tensorflow()
    mark = MARKS[request.path.suffix.lower()]
    with request.path.open("rb") as file:
        if file.read(len(mark)) != mark:  # said at once, not after the seconds that TensorFlow takes to start
            raise ModelUnreadable(
                "the file is not a Keras model",
                where=str(request.path),
                got=f"{request.path.stat().st_size} bytes without the mark of a {request.path.suffix} file",
                remedy="save the model again with model.save(path)",
            )
    return _load(request, "keras")


def load_savedmodel(request: Request) -> Source:
    """Loads the serving function of a SavedModel folder; errors as those of `load_keras`."""
    require_tensorflow()
    return _load(request, "savedmodel")


def require_tensorflow() -> None:
    """Raises MissingExtra, with the command that installs it, where TensorFlow is absent."""
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingExtra(
            "reading a Keras model or a SavedModel needs TensorFlow",
            got="tensorflow is not installed",
            remedy="pip install 'edgepipe[tensorflow]'; a float .tflite or .onnx file does without it",
        )


def _load(request: Request, kind: Kind) -> Source:
    import numpy as np

    where = str(request.path)
    with (
        stage(request.emit, "convert TensorFlow to ONNX") as running,
        tempfile.TemporaryDirectory(prefix="edgepipe-") as temporary,
    ):
        folder = Path(temporary)
        asked = {
            "kind": kind,
            "path": str(request.path.resolve()),
            "input_shape": request.input_shape,
            "seed": request.seed,
        }
        (folder / "request.json").write_text(json.dumps(asked))
        if request.sample is not None:
            np.save(folder / "sample.npy", request.sample)
        run_child("edgepipe.sources._tensorflow_child", [temporary], where)
        proto = read_converted(folder / "model.onnx")
        model, session = freeze(proto, request.path.stem, request.input_shape, where)
        model, session = settle_batch(model, session, request.emit)
        trial = Trial(model.inputs, request)
        tensorflow = json.loads((folder / "versions.json").read_text())["tensorflow"]
        reference = _read_reference(folder / "reference.npz", len(trial.feeds))
        fidelity = trial.judge(reference, session, by=f"TensorFlow {tensorflow}")
        running.detail = str(fidelity)
    return Source(model=model, origin=request.origin, kind=kind, fidelity=fidelity)


def _read_reference(path: Path, runs: int) -> list[list[NDArray[np.generic]]]:
    """The child's outputs: one list for each run, in the order of the outputs."""
    import numpy as np

    with np.load(path) as archive:
        outputs = len(archive.files) // runs
        return [[archive[f"{run}.{number}"] for number in range(outputs)] for run in range(runs)]
