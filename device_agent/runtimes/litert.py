"""LiteRT (package ai-edge-litert) and its predecessor tflite-runtime: the same interpreter."""

import importlib
from typing import Any, List, Sequence

from device_agent.records import Plan
from device_agent.runtimes.session import Runtime, RuntimeMissing, RuntimeTooOld, Session

_PACKAGES = {"litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}


def load(name: str) -> Runtime:
    """Imports the runtime "litert" or "tflite-runtime", and NumPy with it.

    Raises:
        RuntimeMissing: The import failed.
    """
    package = _PACKAGES[name]
    try:
        numpy = importlib.import_module("numpy")
        interpreter = importlib.import_module(package + ".interpreter")
    except Exception as error:
        raise RuntimeMissing("import {}: {}: {}".format(package, type(error).__name__, error)) from error
    version = getattr(importlib.import_module(package), "__version__", "")
    return _LiteRt(numpy, interpreter, version)


class _LiteRt(Runtime):
    def __init__(self, numpy: Any, interpreter: Any, version: str) -> None:
        self.version = version
        self._numpy = numpy
        self._interpreter = interpreter

    def open(self, path: str, plan: Plan) -> Session:
        try:
            interpreter = self._interpreter.Interpreter(model_path=path, num_threads=plan.threads)
            session = _LiteRtSession(self._numpy, interpreter, plan)
        except (RuntimeError, ValueError) as error:
            if "Didn't find op for builtin opcode" in str(error):
                raise RuntimeTooOld(str(error)) from error
            raise
        return session


class _LiteRtSession(Session):
    timed = "Interpreter.invoke() alone: inputs set before it, outputs read after it"

    def __init__(self, numpy: Any, interpreter: Any, plan: Plan) -> None:
        self._numpy = numpy
        self._interpreter = interpreter
        self._ports = plan.inputs
        for detail, port in zip(interpreter.get_input_details(), plan.inputs):
            if tuple(detail["shape"]) != port.shape:
                interpreter.resize_tensor_input(detail["index"], list(port.shape))
        interpreter.allocate_tensors()
        self._inputs = [detail["index"] for detail in interpreter.get_input_details()]
        self._outputs = [detail["index"] for detail in interpreter.get_output_details()]
        if len(self._inputs) != len(plan.inputs) or len(self._outputs) != len(plan.outputs):
            raise ValueError(
                "the model has {} inputs and {} outputs, the plan {} and {}".format(
                    len(self._inputs), len(self._outputs), len(plan.inputs), len(plan.outputs)
                )
            )
        self.providers = ("XNNPACK",) if _delegates(interpreter) else ("built-in kernels",)
        self.invoke = interpreter.invoke  # type: ignore[method-assign]  # one call less in the timed section

    def prepare(self, tensors: Sequence[bytes]) -> Any:
        return [
            self._numpy.frombuffer(tensor, port.dtype).reshape(port.shape)
            for tensor, port in zip(tensors, self._ports)
        ]

    def feed(self, prepared: Any) -> None:
        for index, array in zip(self._inputs, prepared):
            self._interpreter.set_tensor(index, array)

    def outputs(self) -> List[bytes]:
        return [self._interpreter.get_tensor(index).tobytes() for index in self._outputs]


def _delegates(interpreter: Any) -> bool:
    """Whether a delegate took part of the graph; on a CPU that is XNNPACK."""
    try:
        # Private, and the only way that the interpreter offers.
        details = interpreter._get_ops_details()  # noqa: SLF001
    except Exception:  # noqa: BLE001  older releases lack it or fail on delegated graphs
        return False
    return any(detail.get("op_name") == "DELEGATE" for detail in details)
