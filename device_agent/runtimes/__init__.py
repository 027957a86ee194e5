"""Inference runtimes, one family a file; each imports its packages inside ``load``."""

from device_agent.runtimes import litert, onnxruntime
from device_agent.runtimes.session import Runtime, RuntimeMissing, RuntimeTooOld, Session

__all__ = ["Runtime", "RuntimeMissing", "RuntimeTooOld", "Session", "load"]


def load(name: str) -> Runtime:
    """Imports the runtime of that name.

    Raises:
        RuntimeMissing: The import failed.
    """
    return onnxruntime.load(name) if name == "onnxruntime" else litert.load(name)
