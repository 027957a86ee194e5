"""The last step of every source: an ONNX graph made uniform, checked, and frozen into a Model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.errors import ModelError, ModelUnreadable, UnsupportedOp
from edgepipe.graph import foreign
from edgepipe.graph.edit import quantizes_activations
from edgepipe.graph.opset import convert, standard_opset
from edgepipe.model import Model, onnx_model
from edgepipe.runtime import Session, open_session
from edgepipe.sources.canonical import canonicalize

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Float graphs of an older opset are upgraded to this one; newer ones stay as they are.

It is what torch's exporter writes natively, the newest that tf2onnx writes, and the first in which
reductions take their axes as an input: so passes and emitters see one form of every op. What a
board's runtime needs is decided when the artifact is emitted.
"""

QDQ_OPSET = 13
"""QDQ models from here on stay as they are: per-channel scales came with this opset."""


def freeze(
    proto: onnx.ModelProto,
    name: str,
    input_shape: tuple[int, ...] | None,
    where: str,
    *,
    checked: bool = False,
) -> tuple[Model, Session]:
    """Upgrades, sizes, checks and freezes `proto`, which it may change.

    Args:
        proto: The graph.
        name: What to call the model.
        input_shape: Sizes of its input; None for those it has.
        where: Its place, for messages.
        checked: Whether `check_valid` has accepted it already.

    Returns:
        The model, and ONNX Runtime with it loaded, for the checks that follow.

    Raises:
        ModelError: an input has an unknown size other than the batch, the graph has no inputs, or a
            weight is NaN.
        ModelUnreadable: the checker or ONNX Runtime refuses the graph.
        UnsupportedOp: ONNX Runtime knows no kernel for an op.
    """
    _mark_dynamic(proto)
    if not checked:
        check_valid(proto, where)
    _refuse_nan(proto, where)
    proto = upgrade(proto, where)
    if quantizes_activations(proto.graph):
        proto = foreign.settle(proto)
    resize_input(proto, input_shape, where)
    _require_known_sizes(proto, where)
    infer_outputs(proto)
    model = onnx_model(proto, name)
    return model, open_checked(model.payload, where)


def strip_traces(proto: onnx.ModelProto) -> None:
    """Removes what converters leave in a graph about the machine that they ran on."""

    def clean(graph: onnx.GraphProto) -> None:
        for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            item.ClearField("doc_string")
            item.ClearField("metadata_props")
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    clean(attribute.g)

    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    clean(proto.graph)
    for function in proto.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")


def read_converted(path: Path) -> onnx.ModelProto:
    """Reads what tf2onnx wrote: tidied, and in the one order and the one set of names."""
    import onnx

    proto = tidy_converted(onnx.load(path))
    canonicalize(proto)
    return proto


def tidy_converted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Removes a converter's traces, in place: one free batch, called "batch", and no unused op set."""
    strip_traces(proto)
    used = {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used | {""}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].HasField("dim_param"):
            sizes[0].dim_param = "batch"
    return proto


def check_valid(proto: onnx.ModelProto, where: str) -> None:
    """Raises ModelUnreadable unless ONNX's checker accepts the graph and it has inputs and outputs."""
    import onnx

    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:  # a damaged name breaks the message
        raise ModelUnreadable(
            "the file is not a valid ONNX model",
            where=where,
            got=first_line(error),
            remedy="export the model again, and check it with onnx.checker.check_model",
        ) from error
    if not _inputs(proto) or not proto.graph.output:
        raise ModelUnreadable(
            "the model has no inputs or no outputs",
            where=where,
            got=f"{len(_inputs(proto))} inputs, {len(proto.graph.output)} outputs",
        )


def open_checked(payload: bytes, where: str) -> Session:
    """Loads the model into ONNX Runtime, or raises what says why that cannot be, and what to do."""
    try:
        return open_session(payload, "onnx", threads=0)
    except UnicodeDecodeError as error:
        raise ModelUnreadable(
            "the model has a name that is no text; the file may be corrupt",
            where=where,
            got=first_line(error),
            remedy="export the model again, or copy it again and compare the sizes",
        ) from error
    except ModelUnreadable as error:
        if any(sign in error.got for sign in ("NOT_IMPLEMENTED", "is not a registered function/op")):
            raise UnsupportedOp(
                "ONNX Runtime has no kernel for an op of the model",
                where=where,
                got=error.got,
                remedy="export the model without custom ops",
            ) from error
        raise ModelUnreadable(
            "ONNX Runtime cannot load the model",
            where=where,
            got=error.got,
            remedy=f"export the model with opset {OPSET}, or install a newer onnxruntime",
        ) from error


def _refuse_nan(proto: onnx.ModelProto, where: str) -> None:
    """Infinity has its uses, as in masks; NaN has none, and its results would be blamed on the data."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except ValueError:  # of another length than its shape says: ONNX Runtime tells it
            continue
        broken = int(np.count_nonzero(np.isnan(values)))
        if broken:
            raise ModelError(
                "a weight of the model is not a number",
                where=f"{where}, tensor {tensor.name}",
                got=f"{broken} of {values.size} values are NaN",
                remedy="the model was saved broken, perhaps after its training diverged: take an earlier one",
            )


def upgrade(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Gives `proto` itself where its opset is new enough, else an upgraded copy.

    Raises:
        ModelError: the version converter cannot upgrade the model.
    """
    from onnx import version_converter

    opset = standard_opset(proto)
    if opset >= (QDQ_OPSET if quantizes_activations(proto.graph) else OPSET):
        return proto
    try:
        return convert(proto, OPSET)
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the model cannot be upgraded from opset {opset} to {OPSET}",
            where=where,
            got=first_line(error),
            remedy=f"export it again with opset {OPSET}",
        ) from error


def resize_input(proto: onnx.ModelProto, shape: tuple[int, ...] | None, where: str) -> None:
    """Sets the sizes of the one input to `shape`, in place; a batch of any size stays so.

    Raises:
        ModelError: several inputs, or a size that contradicts one that the model fixes.
    """
    if shape is None:
        return
    inputs = _inputs(proto)
    if len(inputs) != 1:
        raise ModelError(
            "--input-shape is for models with one input",
            where=where,
            got=", ".join(value.name for value in inputs),
            remedy="export the model with all its input sizes fixed",
        )
    tensor = inputs[0].type.tensor_type
    if not tensor.HasField("shape"):
        for _ in shape:
            tensor.shape.dim.add()
        tensor.shape.dim[0].dim_param = "batch"
    fixed = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    if len(fixed) != len(shape) or any(
        have not in {None, want} for have, want in zip(fixed, shape, strict=True)
    ):
        raise ModelError(
            "--input-shape contradicts the model",
            where=f"{where}, input {inputs[0].name}",
            got=f"{list(shape)} for {_sizes_text(fixed)}",
            remedy="leave --input-shape away, or give a shape that fits, batch first",
        )
    if all(size.HasField("dim_value") for size in list(tensor.shape.dim)[1:]):
        return
    for size, want in list(zip(tensor.shape.dim, shape, strict=True))[1:]:
        size.dim_value = want
    proto.graph.ClearField("value_info")


def infer_outputs(proto: onnx.ModelProto) -> None:
    """Fills in sizes of the outputs that follow from those of the inputs, in place."""
    from onnx import shape_inference

    if all(
        value.type.tensor_type.HasField("shape")
        and all(size.HasField("dim_value") for size in list(value.type.tensor_type.shape.dim)[1:])
        for value in proto.graph.output
    ):
        return
    bare = proto.__class__()
    bare.CopyFrom(proto)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(bare, data_prop=True)
    for value, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        if found.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.CopyFrom(found.type.tensor_type.shape)


def first_line(error: BaseException) -> str:
    """The first line of a library's message: what says most in least room."""
    text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in constants]


def _mark_dynamic(proto: onnx.ModelProto) -> None:
    """Some exporters write 0 or -1 where any size goes; the standard leaves the value out."""
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.HasField("dim_value") and size.dim_value <= 0:
                size.ClearField("dim_value")


def _require_known_sizes(proto: onnx.ModelProto, where: str) -> None:
    for value in _inputs(proto):
        tensor = value.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
        if not tensor.HasField("shape") or None in sizes[1:]:
            raise ModelError(
                "the model's input has sizes that are not fixed",
                where=f"{where}, input {value.name}",
                got=_sizes_text(sizes) if tensor.HasField("shape") else "no shape at all",
                remedy="give them, batch first: --input-shape 1,3,224,224",
            )


def _sizes_text(sizes: list[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"
