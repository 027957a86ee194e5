"""A change of format alone: the decisions of a quantized model are kept, none are made."""

from __future__ import annotations

from pathlib import Path

from edgepipe import sources
from edgepipe.convert import ort, tflite
from edgepipe.convert.emission import Emission, PortType
from edgepipe.errors import UsageError
from edgepipe.events import Emit, Warned, silent, stage
from edgepipe.files import write_whole
from edgepipe.job import SourceSpec
from edgepipe.runtime import open_session

FORMATS = ("tflite", "onnx")


def convert(
    spec: SourceSpec,
    to: str,
    output: Path,
    *,
    float16: bool = False,
    ports: PortType | None = None,
    emit: Emit = silent,
) -> Emission:
    """Writes a model in another format.

    Args:
        spec: The model.
        to: "tflite" or "onnx".
        output: The file to write.
        float16: Store float weights in half precision; TFLite only.
        ports: Type of a quantized model's inputs and outputs; None for the format's default.
        emit: Where progress goes.

    Raises:
        UsageError: An unknown format, or float16 for ONNX.
        ModelError: The model is unreadable, holds an op that the format can't express, or gave a file
            that the format's runtime refuses.
        OutputError: The file can't be written.
    """
    if to not in FORMATS:
        raise UsageError("unknown format", where="--to", got=to, remedy=f"one of {', '.join(FORMATS)}")
    if float16 and to != "tflite":
        raise UsageError("--float16 is for TFLite", where="--to", got=to, remedy="use --to tflite")
    source = sources.load(
        spec.model,
        weights=None if spec.weights is None else str(spec.weights),
        input_shape=spec.input_shape,
        emit=emit,
    )
    with stage(emit, f"write {output}"):
        if to == "tflite":
            emission = tflite.emit(source.model, float16=float16, ports=ports or "integer")
        else:
            emission = ort.emit(source.model, activation="int8", ports=ports or "float32")
        open_session(emission.payload, emission.format)  # what its own runtime refuses is no result
        write_whole(output, emission.payload)
    for note in emission.notes:
        emit(Warned(note))
    return emission
