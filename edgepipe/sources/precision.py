"""Half and double precision graphs, made single precision: the one that passes and emitters know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.errors import ModelError
from edgepipe.graph.edit import quantizes_activations
from edgepipe.model import onnx_model
from edgepipe.sources.fidelity import RELATIVE_BOUND, Trial, run_onnx

if TYPE_CHECKING:
    import onnx

    from edgepipe.model import Model
    from edgepipe.runtime import Session
    from edgepipe.sources.fidelity import Tensors
    from edgepipe.sources.source import Fidelity, Request

HALF_BOUND = 3e-2
"""Largest error allowed against a float16 original, relative to the largest output.

Every float16 result is rounded by up to 4.9e-4 of its value, and a deep network adds up hundreds of
such roundings. The error is the original's: float32 is the closer one to what was trained.
"""

TYPE_ATTRIBUTES = {"to", "dtype", "output_datatype"}
"""Attributes by which an op says of which type its result is."""


def to_float32(proto: onnx.ModelProto) -> str:
    """Makes every float16 and float64 tensor of the graph float32, in place.

    Returns:
        The types that there were, for people: "float16"; "" where there was nothing to do.
    """
    import onnx

    names: dict[int, str] = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.DOUBLE: "float64"}
    found: set[str] = set()
    for graph in _graphs(proto.graph):
        for value in (*graph.input, *graph.output):
            tensor = value.type.tensor_type
            if tensor.elem_type in names:
                found.add(names[tensor.elem_type])
                tensor.elem_type = onnx.TensorProto.FLOAT
        for constant in _constants(graph):
            if constant.data_type in names:
                found.add(names[constant.data_type])
                _narrow(constant)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in TYPE_ATTRIBUTES and attribute.i in names:
                    found.add(names[attribute.i])
                    attribute.i = onnx.TensorProto.FLOAT
        if found:
            graph.ClearField("value_info")
    return " and ".join(sorted(found))


def compare_original(original: onnx.ModelProto, model: Model, session: Session, request: Request) -> Fidelity:
    """Checks the float32 graph, which `session` has loaded, against the original, run in its own precision.

    ONNX Runtime runs the original, or, as it has few float64 kernels, ONNX's reference implementation.
    Quantized activations are compared before they are rounded, on either side: a difference of one bit may
    fall on the next step of a grid, and grows from there.

    Raises:
        ModelError: neither can run the original.
        FidelityError: the float32 graph computes something else.
    """
    import onnx
    import onnxruntime

    dtypes = [np.dtype(spec.dtype) for spec in onnx_model(original, model.name).inputs]
    trial = Trial(model.inputs, request)
    native = [[x.astype(dtype) for x, dtype in zip(feed, dtypes, strict=True)] for feed in trial.feeds]
    # Both sides see the same numbers, or the rounding of the samples would count as an error.
    trial.feeds = [
        [x.astype(spec.dtype) for x, spec in zip(feed, model.inputs, strict=True)] for feed in native
    ]
    by = f"ONNX Runtime {onnxruntime.__version__} in the original precision"
    single: bytes | Session = session
    if quantizes_activations(original.graph):
        original = _unrounded(original)
        unrounded = _unrounded(original)
        to_float32(unrounded)
        single = unrounded.SerializeToString()
    try:
        reference = run_onnx(original.SerializeToString(), native)
    except ModelError:
        by = f"onnx {onnx.__version__}'s reference in the original precision"
        reference = _run_reference(original, native)
    half = any(dtype == np.float16 for dtype in _dtypes(original))
    return trial.judge(reference, single, by=by, bound=HALF_BOUND if half else RELATIVE_BOUND)


def _unrounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which activations pass their QuantizeLinear and DequantizeLinear as they are."""
    copy = proto.__class__()
    copy.CopyFrom(proto)
    constants = {tensor.name for tensor in copy.graph.initializer}
    before = {
        node.output[0]: node.input[0]
        for node in copy.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    }
    for node in copy.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in before:
            real = before[node.input[0]]
            node.op_type = "Identity"
            del node.input[:], node.attribute[:]
            node.input.append(real)
    return copy


def _run_reference(original: onnx.ModelProto, feeds: list[Tensors]) -> list[Tensors]:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(original)
        return [
            [np.asarray(y) for y in evaluator.run(None, dict(zip(evaluator.input_names, feed, strict=True)))]
            for feed in feeds
        ]
    except Exception as error:  # whatever a kernel written in Python raises
        raise ModelError(
            "the model cannot be run in its own precision, to compare it with float32",
            got=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            remedy="export the model in float32",
        ) from error


def _dtypes(proto: onnx.ModelProto) -> Iterator[np.dtype[np.generic]]:
    import onnx

    for graph in _graphs(proto.graph):
        types = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
        types += [constant.data_type for constant in _constants(graph)]
        types += [a.i for node in graph.node for a in node.attribute if a.name in TYPE_ATTRIBUTES and a.i]
        yield from (onnx.helper.tensor_dtype_to_np_dtype(each) for each in types if each)


def _narrow(tensor: onnx.TensorProto) -> None:
    from onnx import numpy_helper

    with np.errstate(over="ignore", under="ignore"):
        values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside of its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)
