"""Artifacts that return their layers too, so that two runtimes can be compared layer by layer.

Nothing else of a file is touched: an ONNX graph gets more outputs, and in a TFLite file the list of outputs
alone is written anew, behind all that is there. A runtime may still fuse less than it did; whoever looks at
layers has to see that the model's own outputs stay what they were.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from edgepipe.bundle import ArtifactFormat

if TYPE_CHECKING:
    import onnx

_ACTIVATIONS = frozenset(
    {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh"}
)
_OUTPUTS_SLOT = 8  # of the schema's table SubGraph: tensors, inputs, outputs, operators, name
_VECTOR_ALIGNMENT = 4


class Tap(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that an artifact returns besides its outputs.

    Attributes:
        tensor: Its name in the artifact.
        layer: The node that makes it, as the model names it.
        op: What that node is: "Conv", "CONV_2D".
        scale: Step of its integers; None for a float tensor.
        zero_point: The integer that stands for 0.0.
    """

    tensor: str
    layer: str
    op: str
    scale: float | None = None
    zero_point: int = 0


class Tapped(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact's file with more outputs, which follow its own ones in the order of the work.

    Attributes:
        payload: The file's bytes.
        taps: One for each output that was added.
    """

    payload: bytes
    taps: tuple[Tap, ...]


def tap(payload: bytes, format: ArtifactFormat) -> Tapped:  # noqa: A002  the noun
    """Lets an artifact return every layer: where it is quantized their integers, else their floats."""
    return _tap_onnx(payload) if format == "onnx" else _tap_tflite(payload)


def steps_of_outputs(payload: bytes, format: ArtifactFormat) -> tuple[float | None, ...]:  # noqa: A002  likewise
    """The step of each float output that lies on a grid, as a dequantization gives it; else None."""
    return _onnx_steps(payload) if format == "onnx" else _tflite_steps(payload)


def _onnx_steps(payload: bytes) -> tuple[float | None, ...]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(payload).graph
    scales = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, float] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[1] in scales:
            scale = numpy_helper.to_array(scales[node.input[1]])
            if scale.size == 1:
                found[node.output[0]] = float(scale.reshape(()))
    return tuple(found.get(value.name) for value in graph.output)


def _tflite_steps(payload: bytes) -> tuple[float | None, ...]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(payload, 0)
    graph = model.Subgraphs(0)
    found: dict[int, float] = {}
    for at in range(graph.OperatorsLength()):
        op = graph.Operators(at)
        if model.OperatorCodes(op.OpcodeIndex()).BuiltinCode() == schema.BuiltinOperator.DEQUANTIZE:
            grid = graph.Tensors(op.Inputs(0)).Quantization()
            if grid is not None and grid.ScaleLength() == 1:
                found[op.Outputs(0)] = float(grid.Scale(0))
    return tuple(found.get(graph.Outputs(at)) for at in range(graph.OutputsLength()))


def _tap_onnx(payload: bytes) -> Tapped:
    """Taps what QuantizeLinear makes, which leaves it to the runtime to fuse it with the op before."""
    import onnx

    from edgepipe.graph.edit import quantizes_activations, return_also

    proto = onnx.load_from_string(payload)
    graph = proto.graph
    quantized = quantizes_activations(graph)
    taps = tuple(_rounded(graph) if quantized else _computed(graph))
    present = {value.name for value in [*graph.output, *graph.input]}
    taps = tuple(each for each in taps if each.tensor not in present)
    return_also(graph, [each.tensor for each in taps])
    return Tapped(payload=proto.SerializeToString(deterministic=True), taps=taps)


def _rounded(graph: onnx.GraphProto) -> list[Tap]:
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants or node.input[1] not in constants:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        if scale.size != 1:
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        made_by = producer.get(node.input[0], node)
        found.append(
            Tap(
                tensor=node.output[0],
                layer=made_by.name or node.input[0],
                op=made_by.op_type,
                scale=float(scale.reshape(())),
                zero_point=0 if zero is None else int(numpy_helper.to_array(zero).reshape(())),
            )
        )
    return found


def _computed(graph: onnx.GraphProto) -> list[Tap]:
    """Each node's output; not before an activation function, which runtimes compute along with it."""
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    return [
        Tap(tensor=node.output[0], layer=node.name or node.output[0], op=node.op_type)
        for node in graph.node
        if node.op_type not in {"Constant", "Shape", "DequantizeLinear"}
        and not (len(readers.get(node.output[0], ())) == 1 and readers[node.output[0]][0] in _ACTIVATIONS)
    ]


def _tap_tflite(payload: bytes) -> Tapped:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(payload, 0)
    graph = model.Subgraphs(0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    outputs = [graph.Outputs(at) for at in range(graph.OutputsLength())]
    taps, indices = [], []
    for at in range(graph.OperatorsLength()):
        op = graph.Operators(at)
        code = model.OperatorCodes(op.OpcodeIndex())
        for index in (op.Outputs(place) for place in range(op.OutputsLength())):
            if index in outputs or index < 0:
                continue
            tensor = graph.Tensors(index)
            name, grid = tensor.Name().decode(), tensor.Quantization()
            quantized = grid is not None and grid.ScaleLength() == 1
            indices.append(index)
            taps.append(
                Tap(
                    tensor=name,
                    layer=name,
                    op=names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())],
                    scale=float(grid.Scale(0)) if quantized else None,
                    zero_point=int(grid.ZeroPoint(0)) if quantized else 0,
                )
            )
    return Tapped(payload=_with_outputs(payload, graph, [*outputs, *indices]), taps=tuple(taps))


def _with_outputs(payload: bytes, graph: object, outputs: list[int]) -> bytes:
    """The file with another list of outputs, appended: offsets of a flatbuffer lead forward."""
    table = graph._tab  # type: ignore[attr-defined]  # noqa: SLF001  the generated classes offer no other way
    field = table.Pos + table.Offset(_OUTPUTS_SLOT)
    padding = -len(payload) % _VECTOR_ALIGNMENT
    vector = struct.pack(f"<I{len(outputs)}i", len(outputs), *outputs)
    longer = bytearray(payload + b"\0" * padding + vector)
    struct.pack_into("<I", longer, field, len(payload) + padding - field)
    return bytes(longer)
