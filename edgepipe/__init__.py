"""edgepipe: from a trained model to a measured INT8 artifact on an edge device.

The command line in Python::

    from pathlib import Path

    import edgepipe

    job = edgepipe.Job(model="model.onnx", target="x86", data=Path("val.npz"))
    run = edgepipe.deploy(job, edgepipe.Place(emulate=True))

Importing the package loads nothing heavy: each name is looked up when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepipe.bundle import Bundle, read_bundle
    from edgepipe.errors import EdgepipeError
    from edgepipe.job import DataSpec, Effort, Job, Place, SourceSpec
    from edgepipe.provenance import Reproduction
    from edgepipe.quantize.explain.explanation import Explanation
    from edgepipe.store import Run, list_runs, load_run
    from edgepipe.workflow import (
        bench,
        compare_outputs,
        compress,
        convert,
        deploy,
        evaluate_subject,
        explain,
        export_run,
        import_run,
        probe,
        push,
        reproduce,
    )

__version__ = "0.1.0"

# ONNX Runtime from 1.29 on reports to its maker and leaves files in the home folder, unless told so
# before its first import; what the user has set stands. Programs that edgepipe starts inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Bundle",
    "DataSpec",
    "EdgepipeError",
    "Effort",
    "Explanation",
    "Job",
    "Place",
    "Reproduction",
    "Run",
    "SourceSpec",
    "__version__",
    "bench",
    "compare_outputs",
    "compress",
    "convert",
    "deploy",
    "evaluate_subject",
    "explain",
    "export_run",
    "import_run",
    "list_runs",
    "load_run",
    "probe",
    "push",
    "read_bundle",
    "reproduce",
]

_PLACES = {
    "Bundle": "bundle",
    "read_bundle": "bundle",
    "EdgepipeError": "errors",
    "DataSpec": "job",
    "Effort": "job",
    "Job": "job",
    "Place": "job",
    "SourceSpec": "job",
    "Explanation": "quantize.explain.explanation",
    "Reproduction": "provenance",
    "Run": "store",
    "list_runs": "store",
    "load_run": "store",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"edgepipe.{_PLACES.get(name, 'workflow')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
