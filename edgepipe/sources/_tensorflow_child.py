"""Converts a Keras file or a SavedModel to ONNX and runs it for reference, in a process of its own.

TensorFlow takes seconds and hundreds of megabytes to import, logs as it pleases and brings its own
protocol buffers: all of that stays here and ends with the process.

Usage: python -m edgepipe.sources._tensorflow_child FOLDER, where FOLDER holds `request.json` and,
optionally, `sample.npy`. It leaves `model.onnx` and `reference.npz` there. Failures are one line of
JSON on stdout with exit status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.errors import EdgepipeError
from edgepipe.sources.fidelity import Trial
from edgepipe.sources.graph import OPSET, freeze, read_converted
from edgepipe.sources.source import Request


class Unreadable(Exception):
    """TensorFlow or Keras cannot load the file."""


def open_keras(path: str) -> tuple[Any, list[Any]]:
    """The forward function of a .keras or .h5 file, and the specs of its inputs."""
    import keras
    import tensorflow as tf

    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    if not getattr(model, "inputs", None):
        raise Unreadable("the model was saved before it knew its input shape; call it once, then save it")
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in model.inputs]

    def forward(*tensors: Any) -> Any:
        return model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)

    return forward, specs


def open_savedmodel(path: str) -> tuple[Any, list[Any]]:
    """The serving function of a SavedModel folder, and the specs of its inputs."""
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(path)
    except AttributeError:
        # Objects of an older TensorFlow, as optimizers are, may not come back; the graph alone does
        return _open_graph(path)
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    signatures = dict(loaded.signatures)
    serving = signatures[_serving(signatures)]
    by_name = serving.structured_input_signature[1]
    names = sorted(by_name)
    specs = [tf.TensorSpec(by_name[name].shape, by_name[name].dtype, name=name) for name in names]

    def forward(*tensors: Any) -> Any:
        outputs = serving(**dict(zip(names, tensors, strict=True)))
        return [outputs[name] for name in sorted(outputs)]

    # A signature keeps but weak references to the variables of what it was loaded with
    forward.keeps = loaded  # type: ignore[attr-defined]
    return forward, specs


def _open_graph(path: str) -> tuple[Any, list[Any]]:
    """As `open_savedmodel`, through the loader of TensorFlow 1, which restores no Python objects."""
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = tf.Graph()
    try:
        with v1.Session(graph=graph) as session:
            signatures = v1.saved_model.load(session, [tf.saved_model.SERVING], path).signature_def
            signature = signatures[_serving(signatures)]
            inputs = [signature.inputs[name] for name in sorted(signature.inputs)]
            outputs = [signature.outputs[name] for name in sorted(signature.outputs)]
            ends = [tensor.name.partition(":")[0] for tensor in outputs]
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ends)
            specs = [
                tf.TensorSpec(graph.get_tensor_by_name(tensor.name).shape, tensor.dtype, name=name)
                for name, tensor in zip(sorted(signature.inputs), inputs, strict=True)
            ]
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    whole = v1.wrap_function(lambda: tf.graph_util.import_graph_def(frozen, name=""), [])
    forward = whole.prune(
        [whole.graph.as_graph_element(tensor.name) for tensor in inputs],
        [whole.graph.as_graph_element(tensor.name) for tensor in outputs],
    )
    return forward, specs


def _serving(signatures: Mapping[str, Any]) -> str:
    """Name of the signature to convert: the one that serves, else the first."""
    if not signatures:
        raise Unreadable("it has no signature; save it with model.export(folder)")
    return "serving_default" if "serving_default" in signatures else min(signatures)


def convert(folder: Path) -> None:
    """Writes `model.onnx` and `reference.npz` into `folder`."""
    import tensorflow as tf
    import tf2onnx

    asked = json.loads((folder / "request.json").read_text())
    opener = open_keras if asked["kind"] == "keras" else open_savedmodel
    forward, specs = opener(asked["path"])
    function = tf.function(forward, input_signature=specs)
    goal = folder / "model.onnx"
    tf2onnx.convert.from_function(function, input_signature=specs, opset=OPSET, output_path=str(goal))
    shape = asked["input_shape"]
    request = Request(
        path=Path(asked["path"]),
        origin=asked["path"],
        sample=np.load(folder / "sample.npy") if (folder / "sample.npy").exists() else None,
        seed=asked["seed"],
    )
    try:
        proto = read_converted(goal)
        model, _ = freeze(proto, "model", None if shape is None else tuple(shape), asked["path"])
        trial = Trial(model.inputs, request)
    except EdgepipeError:
        return  # the parent process meets the same error on the same graph, and reports it
    reference = {}
    for run, feed in enumerate(trial.feeds):
        outputs = tf.nest.flatten(function(*(tf.constant(tensor) for tensor in feed)))
        for number, output in enumerate(outputs):
            reference[f"{run}.{number}"] = output.numpy()
    np.savez(folder / "reference.npz", **reference)
    (folder / "versions.json").write_text(json.dumps({"tensorflow": tf.__version__}))


def main(arguments: list[str]) -> int:
    """Converts, or says in JSON why not."""
    try:
        convert(Path(arguments[0]))
    except Exception as error:  # noqa: BLE001 - the parent process reports whatever went wrong
        sys.stdout.write("\n" + json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
