"""ONNX Runtime."""

import importlib
from typing import Any, List, Sequence

from device_agent.records import Plan
from device_agent.runtimes.session import Runtime, RuntimeMissing, RuntimeTooOld, Session

# What its loader says of a model that is newer than itself.
_TOO_NEW = (
    "Unsupported model IR version",
    "max supported IR version",
    "is under development and support for this is limited",
    "No Op registered for",
    "is not a registered function/op",
    "Could not find an implementation for",
)


def load(name: str) -> Runtime:
    """Imports ONNX Runtime, and NumPy with it.

    Raises:
        RuntimeMissing: The import failed.
    """
    try:
        numpy = importlib.import_module("numpy")
        module = importlib.import_module(name)
        version = module.__version__
    except Exception as error:
        raise RuntimeMissing("import {}: {}: {}".format(name, type(error).__name__, error)) from error
    return _OnnxRuntime(numpy, module, version)


class _OnnxRuntime(Runtime):
    def __init__(self, numpy: Any, module: Any, version: str) -> None:
        self.version = version
        self._numpy = numpy
        self._module = module

    def open(self, path: str, plan: Plan) -> Session:
        options = self._module.SessionOptions()
        options.intra_op_num_threads = plan.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; its warnings are about what the host decided
        providers = list(plan.providers) or ["CPUExecutionProvider"]
        try:
            session = self._module.InferenceSession(path, options, providers=providers)
        except Exception as error:  # its exceptions have no common base but this
            if any(text in str(error) for text in _TOO_NEW):
                raise RuntimeTooOld(str(error)) from error
            raise
        return _OnnxRuntimeSession(self._numpy, session, plan)


class _OnnxRuntimeSession(Session):
    timed = "InferenceSession.run() alone: inputs are arrays made before it, output arrays are made in it"

    def __init__(self, numpy: Any, session: Any, plan: Plan) -> None:
        self.providers = tuple(session.get_providers())
        self._numpy = numpy
        self._run = session.run
        self._ports = plan.inputs
        self._names = [port.name for port in plan.outputs]
        self._feed: Any = {}
        self._results: Any = []

    def prepare(self, tensors: Sequence[bytes]) -> Any:
        return {
            port.name: self._numpy.frombuffer(tensor, port.dtype).reshape(port.shape)
            for tensor, port in zip(tensors, self._ports)
        }

    def feed(self, prepared: Any) -> None:
        self._feed = prepared

    def invoke(self) -> None:
        self._results = self._run(self._names, self._feed)

    def outputs(self) -> List[bytes]:
        return [array.tobytes() for array in self._results]
