"""Converts one float .tflite file to ONNX with tf2onnx, in a process of its own and without TensorFlow.

tf2onnx imports `tensorflow` wherever it is loaded, but of what its TFLite path runs only three things
come from there: the interpreter (for tensor shapes), a record for constants, and its conversion to
NumPy. This process answers that import with exactly those, the interpreter being LiteRT's; whatever
else tf2onnx might ask for fails with an AttributeError, and none of it is visible to another process.
With a real TensorFlow installed the stand-in serves too: it saves the seconds that importing it takes.

Usage: python -m edgepipe.sources._tflite_child FILE.tflite FILE.onnx OPSET. Failures are one line of
JSON on stdout with exit status 1.
"""

from __future__ import annotations

import json
import logging
import sys
import types
from typing import Any

import numpy as np

NUMPY_TYPES: dict[int, Any] = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 8: np.complex64,
    9: np.int64, 10: np.bool_, 17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
"""TensorFlow's numbers of types (tensorflow/core/framework/types.proto)."""

STRING = 7


class Dimension:
    """One size of a constant."""

    size = 0


class Dimensions(list[Dimension]):
    """Sizes of a constant, grown as protocol buffers grow."""

    def add(self) -> Dimension:
        """Appends a size and gives it to be set."""
        self.append(Dimension())
        return self[-1]


class Constant:
    """What tf2onnx needs of TensorFlow's TensorProto."""

    def __init__(self) -> None:
        self.tensor_content = b""
        self.tensor_shape = types.SimpleNamespace(dim=Dimensions())
        self.dtype = 0


def to_ndarray(constant: Constant) -> np.ndarray[Any, np.dtype[Any]]:
    """A constant's values in its shape."""
    shape = [dimension.size for dimension in constant.tensor_shape.dim]
    return np.frombuffer(constant.tensor_content, NUMPY_TYPES[constant.dtype]).reshape(shape)


def stand_in_for_tensorflow() -> None:
    """Answers tf2onnx's imports of TensorFlow, and of its own TensorFlow.js reader, in this process."""
    from ai_edge_litert.interpreter import Interpreter

    def module(name: str, **contents: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(contents)
        sys.modules[name] = made
        return made

    lite = types.SimpleNamespace(Interpreter=Interpreter)
    module("tensorflow", __version__="2", __path__=[], lite=lite, string=STRING, make_ndarray=to_ndarray)
    module("tensorflow.core", __path__=[])
    records = module("tensorflow.core.framework.tensor_pb2", TensorProto=Constant)
    module("tensorflow.core.framework", __path__=[], tensor_pb2=records)
    module("tf2onnx.tfjs_utils", graphs_from_tfjs=None)


def convert(source: str, goal: str, opset: int) -> None:
    """Writes the ONNX graph of `source` to `goal`."""
    stand_in_for_tensorflow()
    import onnx
    from tf2onnx import optimizer
    from tf2onnx.tfonnx import process_tf_graph

    logging.disable(logging.CRITICAL)
    graph = optimizer.optimize_graph(process_tf_graph(None, opset=opset, tflite_path=source))
    proto = graph.make_model("edgepipe")
    for node in proto.graph.node:
        if node.domain in {"", "ai.onnx"} and not onnx.defs.has(node.op_type):
            raise NotImplementedError(
                f"op {node.op_type.removeprefix('TFL_')} ({node.name}) is not supported"
            )
    onnx.save(proto, goal)


def main(arguments: list[str]) -> int:
    """Converts, or says in JSON why not."""
    source, goal, opset = arguments
    try:
        convert(source, goal, int(opset))
    except Exception as error:  # noqa: BLE001 - the parent process reports whatever went wrong
        sys.stdout.write(json.dumps({"error": type(error).__name__, "message": str(error)}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
