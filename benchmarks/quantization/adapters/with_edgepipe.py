"""edgepipe, through its Python interface.

Times: `seconds` from the float ONNX file to the artifacts of both runtimes on disk; `passes` of it alone the
recipe's passes; `compress` a whole `edgepipe compress`, which also checks the job and seals golden samples.
Imports are in none of them: what edgepipe loads when it is first needed is loaded before, as its peers do.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from adapter import Reply, Request, serve

import edgepipe
from edgepipe import pipeline, sources
from edgepipe.convert import ort, tflite
from edgepipe.data import make_dataset
from edgepipe.passes import Context
from edgepipe.recipe import load_recipe
from edgepipe.target import load_target

TARGET = "x86"
LOADED_LATE = (
    "ai_edge_litert.schema_py_generated",
    "flatbuffers",
    "onnx.numpy_helper",
    "onnx.version_converter",
    "onnx_ir.passes.common",
    "onnxruntime",
    "scipy.linalg",
    "edgepipe.sources.onnx",
)
"""What edgepipe imports inside of functions."""


def quantize(request: Request) -> Reply:
    """Settings: recipe (a shipped one), compress (whether to time that)."""
    recipe = request.settings["recipe"]
    for module in LOADED_LATE:
        importlib.import_module(module)
    load_recipe(recipe)  # imports the passes
    started, cpu_started = time.perf_counter(), time.process_time()
    source = sources.load(str(request.onnx)).model
    with tempfile.TemporaryDirectory() as work:
        context = Context(
            target=load_target(TARGET),
            calibration=make_dataset(request.x, request.y, "calibration.npz"),
            work=Path(work),
        )
        began = time.perf_counter()
        model, steps = pipeline.run(load_recipe(recipe), source, context, cache=None)
        passes = time.perf_counter() - began
    artifacts = {"onnx": request.folder / "int8.onnx", "tflite": request.folder / "int8.tflite"}
    artifacts["onnx"].write_bytes(ort.emit(model, activation=context.target.activation).payload)
    artifacts["tflite"].write_bytes(tflite.emit(model, ports="integer").payload)
    detail = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "passes": passes,
        "steps": {step.use: step.seconds for step in steps},
        "settings": msgspec.to_builtins([step.settings for step in steps]),
    }
    if request.settings.get("compress"):
        detail["compress"] = _compress(request, recipe)
    return Reply(artifacts, detail)


def _compress(request: Request, recipe: str) -> float:
    """Seconds of the whole command; it wants samples to evaluate on beside those to calibrate on."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, x=np.concatenate([request.x, request.x[:8]]))
        job = edgepipe.Job(
            model=str(request.onnx),
            target=TARGET,
            data=data,
            recipe=recipe,
            calibration_samples=len(request.x),
        )
        started = time.perf_counter()
        edgepipe.compress(job, Path(folder) / "bundle")
        return time.perf_counter() - started


if __name__ == "__main__":
    serve(("edgepipe", "onnxruntime", "numpy"), quantize)
