"""Writes TFLite from ONNX, straight to a flatbuffer: read, fuse, lower, write.

A float model gives float32 (or float16 weights); a model quantized as QDQ gives int8, with the very
scales, zero points and weights that its Q/DQ nodes name.
"""

from __future__ import annotations

from collections import Counter

from edgepipe.convert.emission import Emission, PortType
from edgepipe.convert.precision import precision_of
from edgepipe.convert.tflite.fuse import fuse
from edgepipe.convert.tflite.lower import lower
from edgepipe.convert.tflite.read import read
from edgepipe.convert.tflite.settle import settle
from edgepipe.convert.tflite.versions import least_runtimes
from edgepipe.convert.tflite.write import write
from edgepipe.model import Model

__all__ = ["check", "emit"]


def check(model: Model) -> None:
    """Finds out whether TFLite can express the model, without writing it.

    Args:
        model: Format "onnx", float or QDQ.

    Raises:
        UnsupportedOp: It cannot; the error names the first node at fault, and why.
        ModelError: An input has an unknown size, or a scale is not a positive number.
    """
    lower(settle(fuse(read(model))).graph, float16=False, ports="integer")


def emit(model: Model, *, float16: bool = False, ports: PortType = "integer") -> Emission:
    """Writes the model as TFLite: channels last, a free batch frozen to 1, the same bytes for the same model.

    Args:
        model: Format "onnx", float or QDQ.
        float16: Whether a float model's weights are stored as float16.
        ports: Type of a quantized model's inputs and outputs: its own integers, or float32 with a
            QUANTIZE or DEQUANTIZE inside.

    Raises:
        UnsupportedOp: TFLite cannot express a node.
        ModelError: An input has an unknown size, or a scale is not a positive number.
    """
    settled = settle(fuse(read(model)))
    quantized = settled.graph.quantized()
    program, inputs, outputs = lower(settled.graph, float16=float16 and not quantized, ports=ports)
    needs = least_runtimes(program)
    payload = write(program, description=model.name, min_runtime_version=f"{needs['tflite-runtime']}.0")
    precision = precision_of(model.to_onnx())
    counts = Counter(operator.code for operator in program.operators)
    return Emission(
        format="tflite",
        precision="float16" if float16 and not quantized else precision,
        payload=payload,
        inputs=inputs,
        outputs=outputs,
        op_counts=dict(sorted(counts.items())),
        needs=needs,
        notes=settled.notes,
    )
