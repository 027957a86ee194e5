"""Float TFLite files, by way of tf2onnx; TensorFlow is not needed.

Weights that the file stores in int8 (dynamic-range quantization) or float16 become float32 first, so
that the graph is a float one throughout, and LiteRT runs that same float model as the reference.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.errors import ModelError, ModelUnreadable, UnsupportedOp
from edgepipe.events import stage
from edgepipe.runtime import open_session
from edgepipe.sources.batch import settle_batch
from edgepipe.sources.child import run_child
from edgepipe.sources.fidelity import Trial
from edgepipe.sources.graph import OPSET, freeze, read_converted
from edgepipe.sources.source import Request, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IDENTIFIER = b"TFL3"
QUANTIZED_REMEDY = "give the float model that it was made from; edgepipe quantizes it itself"


def load_tflite(request: Request) -> Source:
    """Loads a float .tflite file.

    Raises:
        ModelUnreadable: not a TFLite file, or a corrupt one.
        UnsupportedOp: a custom op, or one that tf2onnx does not know.
        ModelError: the model is quantized already, or an input size is unknown.
        FidelityError: the ONNX graph computes something else than LiteRT.
    """
    where = str(request.path)
    with stage(request.emit, "convert TFLite to ONNX") as running:
        payload, note = float_weights(_read(request.path), where)
        proto = _convert(payload, where)
        model, session = freeze(proto, request.path.stem, request.input_shape, where)
        model, session = settle_batch(model, session, request.emit)
        trial = Trial(model.inputs, request)
        original = open_session(payload, "tflite")
        reference = [original.run(feed) for feed in trial.feeds]
        by = f"LiteRT {version('ai-edge-litert')}"
        fidelity = trial.judge(reference, session, by=by, note=note)
        running.detail = str(fidelity)
    return Source(model=model, origin=request.origin, kind="tflite", fidelity=fidelity)


def float_weights(payload: bytes, where: str) -> tuple[bytes, str]:
    """The same model with every constant in float32, and a note on what was unpacked.

    ``real = (q - zero_point) * scale`` along the quantized dimension (TensorFlow Lite 8-bit
    quantization specification); float16 constants are widened, which is exact.

    Args:
        payload: A valid .tflite file.
        where: Its place, for messages.

    Returns:
        The file's bytes, the ones given where nothing had to change; and a note, or "".

    Raises:
        ModelError: activations are quantized, so there is no float model in the file.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(payload, 0)
    unpacked: set[str] = set()
    for graph in model.subgraphs:
        _refuse_quantized(graph, model.buffers, where)
        for tensor in graph.tensors:
            values = _stored(tensor, model.buffers)
            if values is None:
                continue
            unpacked.add(values.dtype.name)
            _store(tensor, _real(tensor, values), model.buffers)
        _drop_dequantize(graph, model)
    if not unpacked:
        return payload, ""
    builder = flatbuffers.Builder(len(payload))
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output()), (
        f"the file stores weights as {' and '.join(sorted(unpacked))}; edgepipe and the reference use "
        "their float32 values"
    )


def _read(path: Path) -> bytes:
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ModelUnreadable("the file cannot be read", where=str(path), got=error.strerror or "") from error
    if payload[4:8] != IDENTIFIER:
        raise ModelUnreadable(
            "the file is not a TFLite model",
            where=str(path),
            got=f"{len(payload)} bytes without the mark {IDENTIFIER.decode()}",
            remedy="convert the model again, or copy it again and compare the sizes",
        )
    try:
        open_session(payload, "tflite")
    except ModelUnreadable as error:
        if "custom op" in error.got:
            raise UnsupportedOp(
                "the model has an op that is no TFLite builtin",
                where=str(path),
                got=error.got,
                remedy="convert the model with TFLite builtins only",
            ) from error
        raise ModelUnreadable(
            "LiteRT cannot load the file; it may be corrupt",
            where=str(path),
            got=error.got,
            remedy="convert the model again, or copy it again and compare the sizes",
        ) from error
    return payload


def _convert(payload: bytes, where: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        source, goal = Path(folder, "model.tflite"), Path(folder, "model.onnx")
        source.write_bytes(payload)
        run_child("edgepipe.sources._tflite_child", [str(source), str(goal), str(OPSET)], where)
        return read_converted(goal)


def _refuse_quantized(graph: Any, buffers: list[Any], where: str) -> None:
    """A constant may be quantized, a value that ops compute may not."""
    for tensor in graph.tensors:
        parameters = tensor.quantization
        scaled = parameters is not None and parameters.scale is not None and len(parameters.scale) > 0
        constant = buffers[tensor.buffer].data is not None
        if scaled and not constant and tensor.type in _integer_types():
            raise ModelError(
                "the model is quantized already, and edgepipe needs a float one",
                where=f"{where}, tensor {_name(tensor)}",
                got=_integer_types()[tensor.type],
                remedy=QUANTIZED_REMEDY,
            )


def _integer_types() -> dict[int, str]:
    from ai_edge_litert.schema_py_generated import TensorType

    return {TensorType.INT8: "int8", TensorType.UINT8: "uint8", TensorType.INT16: "int16"}


def _stored(tensor: Any, buffers: list[Any]) -> NDArray[np.generic] | None:
    """The values of a constant that is not stored in float32 but stands for real numbers."""
    import numpy as np
    from ai_edge_litert.schema_py_generated import TensorType

    data = buffers[tensor.buffer].data
    if data is None:
        return None
    raw = np.asarray(data, np.uint8).tobytes()
    if tensor.type == TensorType.FLOAT16:
        return np.frombuffer(raw, np.float16)
    parameters = tensor.quantization
    if tensor.type in _integer_types() and parameters is not None and parameters.scale is not None:
        return np.frombuffer(raw, np.dtype(_integer_types()[tensor.type]))
    return None


def _real(tensor: Any, values: NDArray[np.generic]) -> NDArray[np.float32]:
    import numpy as np

    if values.dtype == np.float16:
        return values.astype(np.float32)
    parameters = tensor.quantization
    shape = [1] * len(tensor.shape)
    if len(parameters.scale) > 1:
        shape[parameters.quantizedDimension] = len(parameters.scale)
    scale = np.asarray(parameters.scale, np.float32).reshape(shape)
    zero_point = np.asarray(0 if parameters.zeroPoint is None else parameters.zeroPoint, np.int64)
    steps = values.reshape(tensor.shape).astype(np.int64) - zero_point.reshape(shape)
    return steps.astype(np.float32) * scale


def _store(tensor: Any, values: NDArray[np.float32], buffers: list[Any]) -> None:
    import numpy as np
    from ai_edge_litert.schema_py_generated import BufferT, TensorType

    buffer = BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    buffers.append(buffer)  # not in place: tensors may share a buffer
    tensor.buffer = len(buffers) - 1
    tensor.type = TensorType.FLOAT32
    tensor.quantization = None


def _drop_dequantize(graph: Any, model: Any) -> None:
    """Removes DEQUANTIZE ops whose input is now a float32 constant; the output becomes that constant."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, TensorType

    kept = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        source = graph.tensors[operator.inputs[0]] if len(operator.inputs) else None
        if (
            max(code.builtinCode, code.deprecatedBuiltinCode) == BuiltinOperator.DEQUANTIZE
            and source is not None
            and source.type == TensorType.FLOAT32
            and model.buffers[source.buffer].data is not None
        ):
            graph.tensors[operator.outputs[0]].buffer = source.buffer
        else:
            kept.append(operator)
    graph.operators = kept


def _name(tensor: Any) -> str:
    return tensor.name.decode(errors="replace") if isinstance(tensor.name, bytes) else str(tensor.name)
