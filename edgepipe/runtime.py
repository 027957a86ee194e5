"""Inference on the host: one session for each artifact file, and the way from source tensors to its ports.

Devices run the same files through the agent; what this module computes is the reference that golden
samples and evaluation are made of, never a device's latency.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepipe.bundle import ArtifactFormat, Port
from edgepipe.errors import DataShapeMismatch, DataTypeMismatch, ModelError, ModelUnreadable
from edgepipe.events import Emit, silent, stage

BATCH = 16
"""Samples for each call where the file takes any batch: enough to amortise the call, small in memory."""


def usable_cores() -> int:
    """Cores that this process may run on: more threads than that wait for one another, spinning."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Session(Protocol):
    """A loaded artifact that can run. Tensors are those of the file: its layout, its types.

    Attributes:
        runtime: "onnxruntime" or "litert".
        version: Version of the runtime's package.
        providers: Execution providers in use, the preferred one first.
        dynamic_batch: True where the file declares its batch size free.
    """

    runtime: str
    version: str
    providers: tuple[str, ...]
    dynamic_batch: bool

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the file's order, each an array that the caller owns.

        Raises:
            ModelError: The runtime refused the tensors or failed on them.
        """
        ...


class OnnxSession:
    """ONNX Runtime on the CPU. Fields as in `Session`."""

    runtime = "onnxruntime"

    def __init__(self, payload: bytes, *, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # fatal alone: what matters is raised, the rest is noise
        try:
            self._session = onnxruntime.InferenceSession(payload, options, ["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises a dozen unrelated classes
            raise _unreadable("ONNX Runtime", error) from error
        self.version = _version("onnxruntime")
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._names = [node.name for node in self._session.get_inputs()]
        shapes = [node.shape for node in self._session.get_inputs()]
        self.dynamic_batch = all(shape and not isinstance(shape[0], int) for shape in shapes)

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """As `Session.run`."""
        try:
            return list(self._session.run(None, dict(zip(self._names, inputs, strict=True))))
        except Exception as error:
            raise _failed("ONNX Runtime", error) from error


class TfliteSession:
    """LiteRT with its default kernels (XNNPACK). Fields as in `Session`."""

    runtime = "litert"
    providers: tuple[str, ...] = ("XNNPACK",)

    def __init__(self, payload: bytes, *, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            with _quiet_stderr():
                self._interpreter = Interpreter(model_content=payload, num_threads=threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise _unreadable("LiteRT", error) from error
        self.version = _version("ai-edge-litert")
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        signatures = [detail["shape_signature"] for detail in self._inputs]
        self.dynamic_batch = all(len(signature) and signature[0] == -1 for signature in signatures)

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """As `Session.run`; a dynamic batch resizes the interpreter's tensors when its size changes."""
        try:
            self._resize(inputs)
            for detail, value in zip(self._inputs, inputs, strict=True):
                self._interpreter.set_tensor(detail["index"], value)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs]
        except (ValueError, RuntimeError) as error:
            raise _failed("LiteRT", error) from error

    def _resize(self, inputs: Sequence[NDArray[Any]]) -> None:
        changed = False
        for detail, value in zip(self._inputs, inputs, strict=True):
            if self.dynamic_batch and tuple(detail["shape"]) != value.shape:
                self._interpreter.resize_tensor_input(detail["index"], value.shape)
                changed = True
        if changed:
            self._interpreter.allocate_tensors()
            self._inputs = self._interpreter.get_input_details()


def open_session(payload: bytes, format: ArtifactFormat, *, threads: int = 1) -> Session:  # noqa: A002  the noun
    """Loads an artifact into the host's runtime of its format.

    Args:
        payload: The file's bytes.
        format: "onnx" or "tflite".
        threads: Inference threads; 0, for ONNX Runtime alone, is one a core.

    Raises:
        ModelUnreadable: The runtime does not accept the file.
    """
    if format == "onnx":
        return OnnxSession(payload, threads=threads)
    return TfliteSession(payload, threads=threads)


def quantize(values: NDArray[Any], port: Port) -> NDArray[Any]:
    """Values as a port wants them: a cast for a float port, the nearest step for an integer one.

    ``q = saturate(round_half_to_even(x / scale) + zero_point)``, in float32, which is the definition
    of ONNX's QuantizeLinear (operator set 19).
    """
    dtype = np.dtype(port.dtype)
    if port.scale is None:
        return np.ascontiguousarray(values, dtype=dtype)
    steps = np.rint(values.astype(np.float32) / np.float32(port.scale)) + port.zero_point
    limits = np.iinfo(dtype)
    return np.ascontiguousarray(np.clip(steps, limits.min, limits.max).astype(dtype))


def dequantize(values: NDArray[Any], port: Port) -> NDArray[np.float32]:
    """Real values of a port's tensor: ``x = (q - zero_point) * scale``, float32."""
    if port.scale is None:
        return values.astype(np.float32)
    return (values.astype(np.int32) - port.zero_point).astype(np.float32) * np.float32(port.scale)


def to_port(samples: NDArray[Any], port: Port) -> NDArray[Any]:
    """Samples of the source's layout, permuted and quantized for an input port.

    Raises:
        DataTypeMismatch: The samples are not numbers.
        DataShapeMismatch: They have another shape than the port.
    """
    if samples.dtype.kind not in "fiub":
        raise DataTypeMismatch("the samples are not numbers", where=port.name, got=str(samples.dtype))
    inverse = np.argsort(port.permutation)
    wanted = tuple(port.shape[axis] for axis in inverse)[1:]
    if samples.ndim != len(port.shape) or samples.shape[1:] != wanted:
        raise DataShapeMismatch(
            "the samples do not have the shape of the model's input",
            where=port.name,
            got=f"samples of {list(samples.shape[1:])}, the model takes {list(wanted)}",
            remedy="give the data in the source model's own layout, samples along the first axis",
        )
    return quantize(samples.transpose(port.permutation), port)


def from_port(values: NDArray[Any], port: Port) -> NDArray[np.float32]:
    """An output port's tensor dequantized, in the source's layout: float32."""
    return np.ascontiguousarray(dequantize(values, port).transpose(np.argsort(port.permutation)))


def infer(
    session: Session,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    x: NDArray[Any],
    *,
    emit: Emit = silent,
    title: str = "infer",
) -> list[NDArray[np.float32]]:
    """Runs samples through an artifact, from the source model's layout back to it.

    One sample a call, except where the file's batch is dynamic.

    Args:
        session: The loaded artifact.
        inputs: Its one input port.
        outputs: Its output ports.
        x: Samples in the SOURCE layout and scale: float32 [n, ...].
        emit: Where progress goes.
        title: What the progress is called.

    Returns:
        One float32 array [n, ...] for each output, in the source's layout, dequantized.

    Raises:
        DataShapeMismatch: The samples do not fit the port.
        DataTypeMismatch: The samples are not numbers.
        ModelError: The artifact has more than one input, or the runtime failed.
    """
    if len(inputs) != 1:
        names = ", ".join(port.name for port in inputs)
        raise ModelError("a data set feeds one input, but the model has more", got=names)
    step = BATCH if session.dynamic_batch else 1
    chunks: list[list[NDArray[np.float32]]] = []
    with stage(emit, title, total=len(x)) as running:
        for start in range(0, len(x), step):
            results = session.run([to_port(x[start : start + step], inputs[0])])
            chunks.append([from_port(value, port) for value, port in zip(results, outputs, strict=True)])
            running.advance(min(start + step, len(x)))
    if not chunks:
        return [np.zeros((0, *_source_shape(port)[1:]), np.float32) for port in outputs]
    return [np.concatenate(column) for column in zip(*chunks, strict=True)]


def _source_shape(port: Port) -> tuple[int, ...]:
    return tuple(port.shape[axis] for axis in np.argsort(port.permutation))


@functools.cache
def _version(package: str) -> str:
    """Version of an installed package: reading its metadata takes as long as loading a small model."""
    return version(package)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Points file descriptor 2 at nothing: LiteRT announces its delegate there, amid progress bars."""
    saved = os.dup(2)
    sink = os.open(Path(os.devnull), os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def _unreadable(runtime: str, error: Exception) -> ModelUnreadable:
    return ModelUnreadable(
        f"{runtime} does not accept the model",
        got=str(error).strip(),
        remedy="check that the file is whole and that its operators are known to this runtime's version",
    )


def _failed(runtime: str, error: Exception) -> ModelError:
    return ModelError(f"{runtime} failed while running the model", got=str(error).strip())
