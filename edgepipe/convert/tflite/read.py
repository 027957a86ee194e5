"""Reads an ONNX model into a Graph: batch frozen to 1, constants folded, Q/DQ pairs turned into grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Graph, Grid, Node, Value
from edgepipe.errors import ModelError, UnsupportedOp
from edgepipe.graph.opset import standard_opset
from edgepipe.model import Model

if TYPE_CHECKING:
    import onnx

# What ONNX passes as an input though it shapes the graph; older op sets passed most of it as attributes.
SETTINGS: dict[str, tuple[str, ...]] = {
    "Clip": ("", "min", "max"),
    "Expand": ("", "shape"),
    "Pad": ("", "pads", "value", "axes"),
    "ReduceMax": ("", "axes"),
    "ReduceMean": ("", "axes"),
    "ReduceMin": ("", "axes"),
    "ReduceSum": ("", "axes"),
    "Reshape": ("", "shape"),
    "Resize": ("", "roi", "scales", "sizes"),
    "Slice": ("", "starts", "ends", "axes", "steps"),
    "Split": ("", "split"),
    "Squeeze": ("", "axes"),
    "Tile": ("", "repeats"),
    "Unsqueeze": ("", "axes"),
    "Upsample": ("", "scales"),
}
# Setting of a node whose activations the kernel is to quantize as they come.
DYNAMIC = "quantizes_dynamically"
# Ops that hand their first input on as it is at inference.
ALIASES = frozenset({"Identity", "Dropout"})
# Ops that only move elements: a per-tensor grid survives them.
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Concat", "Gather"})
# Types that quantized tensors have in ONNX: their widths, and what takes the unsigned to the signed.
_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}
_SHIFTS = {"uint4": 8, "uint8": 128, "uint16": 32768}
# Shape inference needs the elements of small constants (shapes, axes, pads) and never those of weights.
SMALL = 1024


def read(model: Model) -> Graph:
    """Reads an ONNX model, float or quantized as QDQ.

    Args:
        model: Format "onnx". A free batch dimension becomes 1.

    Raises:
        UnsupportedOp: An op that cannot be read statically: its shape depends on data, or it is
            quantized in a way that TFLite does not have.
        ModelError: An input has an unknown size, or a scale is not a positive number.
    """
    reader = _Reader(model)
    for node in reader.proto.graph.node:
        reader.add(node)
    return reader.graph().pruned()


class _Reader:
    """Walks the nodes once, in order; knows the shape of every value and the elements of constants."""

    def __init__(self, model: Model) -> None:
        from onnx import numpy_helper

        self.proto = _inlined(model.to_onnx())
        self.opset = standard_opset(self.proto)
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        self.dynamic: set[str] = set()
        for tensor in self.proto.graph.initializer:
            self.constant(tensor.name, numpy_helper.to_array(tensor))
        self.inputs = tuple(spec.name for spec in model.inputs)
        for spec in model.inputs:
            self.values[spec.name] = Value(spec.name, _frozen(spec.name, spec.shape), spec.dtype)

    def graph(self) -> Graph:
        outputs = tuple((port.name, self.resolve(port.name)) for port in self.proto.graph.output)
        return Graph(tuple(self.nodes), self.values, self.inputs, outputs)

    def resolve(self, name: str) -> str:
        return self.aliases.get(name, name)

    def constant(self, name: str, data: Array, grid: Grid | None = None) -> None:
        dtype = "float32" if grid else data.dtype.name
        self.values[name] = Value(name, data.shape, dtype, data, grid)

    def add(self, proto: onnx.NodeProto) -> None:
        """Takes in one ONNX node; what is quantized at run time stays float, and its readers are told."""
        from onnx import numpy_helper

        if proto.domain not in {"", "ai.onnx"}:
            raise _refusal(proto, f"it is of the domain {proto.domain}, not of standard ONNX")
        if proto.op_type == "DynamicQuantizeLinear" or self.dynamic.intersection(proto.input[1:]):
            self.dynamic.update(proto.output)
            self.aliases[proto.output[0]] = self.resolve(proto.input[0])
            return
        inputs = [self.values[self.resolve(name)] if name else None for name in proto.input]
        if proto.op_type == "QuantizeLinear":
            self.quantize(proto, inputs)
        elif proto.op_type == "DequantizeLinear":
            self.dequantize(proto, inputs)
        elif proto.op_type in ALIASES or _is_float_cast(proto, inputs):
            self.aliases[proto.output[0]] = self.resolve(proto.input[0])
        elif proto.op_type == "Constant" and proto.attribute[0].name == "value":
            self.constant(proto.output[0], numpy_helper.to_array(proto.attribute[0].t))
        elif proto.op_type == "Shape":
            self.shape(proto, inputs)
        elif all(value is None or value.data is not None for value in inputs):
            self.fold(proto, inputs)
        else:
            self.keep(proto, inputs)

    def shape(self, proto: onnx.NodeProto, inputs: list[Value | None]) -> None:
        settings = _attributes(proto)
        sizes = _given(proto, inputs).shape[settings.get("start", 0) : settings.get("end")]
        self.constant(proto.output[0], np.array(sizes, np.int64))

    def quantize(self, proto: onnx.NodeProto, inputs: list[Value | None]) -> None:
        value, grid = _given(proto, inputs), self.grid(proto, inputs)
        name = proto.output[0]
        if value.data is not None:
            self.constant(name, grid.quantized(value.real()), grid)
        elif grid.axis is not None:
            raise _refusal(proto, "it quantizes an activation per channel, which TFLite does not have")
        elif value.grid is None or value.grid == grid:
            self.values[value.name] = msgspec.structs.replace(value, grid=grid)
            self.aliases[name] = value.name
        else:
            self.values[name] = msgspec.structs.replace(value, name=name, grid=grid)
            self.nodes.append(Node("Requantize", proto.name or name, (value.name,), (name,), {}, self.opset))

    def dequantize(self, proto: onnx.NodeProto, inputs: list[Value | None]) -> None:
        value, grid = _given(proto, inputs), self.grid(proto, inputs)
        name = proto.output[0]
        if value.data is not None and value.grid is None:
            self.constant(name, _signed(value.data), grid)
        elif value.grid is None and value.dtype in _BITS:
            self.values[value.name] = msgspec.structs.replace(value, dtype="float32", grid=grid)
            self.aliases[name] = value.name
        elif value.grid == grid:
            self.aliases[name] = value.name
        else:
            raise _refusal(proto, "it reads integers on another scale than they were written on")

    def grid(self, proto: onnx.NodeProto, inputs: list[Value | None]) -> Grid:
        """The grid that a Q or DQ node names, in signed terms: unsigned ones are shifted, uint8 by 128."""
        value, scale, zero = _given(proto, inputs), *(*inputs[1:], None)[:2]
        if scale is None or scale.data is None or (zero is not None and zero.data is None):
            raise _refusal(proto, "its scale or zero point is computed at run time")
        settings = _attributes(proto)
        steps = np.atleast_1d(np.asarray(scale.data)).astype(np.float32)
        usable = np.isfinite(steps) & (steps > 0)
        if value.data is None and not usable.all():
            raise ModelError(
                "a scale is not a positive number", where=proto.name or proto.output[0], got=str(steps[0]),
                remedy="calibrate again: this tensor saw no data, or only NaN",
            )  # fmt: skip
        dtype = _integer_type(value, zero, settings)
        if dtype not in _BITS:
            raise _refusal(proto, f"its type is {dtype}, and TFLite has integers of 4, 8 and 16 bits")
        zeros = np.zeros(steps.shape, np.int64) if zero is None else np.atleast_1d(np.asarray(zero.data))
        points = tuple(int(point) - _SHIFTS.get(dtype, 0) for point in zeros)
        if _BITS[dtype] == 16 and value.data is None and any(points):
            raise _refusal(proto, "it has 16 bits and a zero point", "quantize to 16 bits symmetrically")
        axis = settings.get("axis", 1) % max(len(value.shape), 1) if steps.size > 1 else None
        # Channels of zeros may have any scale, even NaN, which would not equal itself.
        scales = tuple(map(float, np.where(usable, steps, 0)))
        return Grid(scales, points, axis, _BITS[dtype])

    def fold(self, proto: onnx.NodeProto, inputs: list[Value | None]) -> None:
        """Computes a node whose inputs are all constant."""
        constants = [value for value in inputs if value is not None]
        grid = constants[0].grid if constants else None
        if grid is not None and proto.op_type in MOVES:
            grids = {value.grid for value in constants if value.dtype == "float32"}
            if len(grids) == 1 and (grid.axis is None or proto.op_type == "Transpose"):
                if grid.axis is not None:
                    rank = len(constants[0].shape)
                    perm = _attributes(proto).get("perm", tuple(reversed(range(rank))))
                    grid = msgspec.structs.replace(grid, axis=list(perm).index(grid.axis))
                feeds = [None if value is None else value.data for value in inputs]
                return self.constant(proto.output[0], self.evaluate(proto, feeds)[0], grid)
        feeds = [None if value is None else np.asarray(value.real(), value.dtype) for value in inputs]
        for name, result in zip(proto.output, self.evaluate(proto, feeds), strict=True):
            self.constant(name, result)
        return None

    def evaluate(self, proto: onnx.NodeProto, feeds: list[Array | None]) -> list[Array]:
        """The outputs of one node, by ONNX's own reference implementation."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        names = [name for name in proto.input if name]
        given = {name: feed for name, feed in zip(proto.input, feeds, strict=True) if feed is not None}
        inputs = [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output]
        graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)])
        try:
            return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, given)]
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise _refusal(proto, f"its constant inputs could not be folded: {error}") from error

    def keep(self, proto: onnx.NodeProto, inputs: list[Value | None]) -> None:
        """Takes in a node that runs on the device."""
        settings = _attributes(proto)
        names = [self.resolve(name) if name else "" for name in proto.input]
        for index, key in enumerate(SETTINGS.get(proto.op_type, ())):
            value = inputs[index] if index < len(inputs) else None
            if key and value is not None:
                if value.data is None:
                    raise _refusal(proto, f"its {key} is computed at run time")
                settings[key] = value.real()
                names[index] = ""
        while names and not names[-1]:
            names.pop()
        for name, shape, dtype in self.infer(proto, inputs):
            if dtype in {"float16", "float64"}:
                raise _refusal(proto, f"it computes in {dtype}")
            self.values[name] = Value(name, shape, dtype)
        if proto.input[0] in self.dynamic:
            settings[DYNAMIC] = True
        outputs = tuple(proto.output)
        name = proto.name or outputs[0]
        self.nodes.append(Node(proto.op_type, name, tuple(names), outputs, settings, self.opset))

    def infer(
        self, proto: onnx.NodeProto, inputs: list[Value | None]
    ) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and type of each output, by ONNX's own shape inference of this one node."""
        import onnx

        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for name, value in zip(proto.input, inputs, strict=True):
            if value is not None:
                element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
                types[name] = onnx.helper.make_tensor_type_proto(element, value.shape)
                if value.data is not None and value.grid is None and value.data.size <= SMALL:
                    data[name] = onnx.numpy_helper.from_array(value.data, name)
        try:
            schema = onnx.defs.get_schema(proto.op_type, self.opset, "")
            opsets = [onnx.helper.make_opsetid("", self.opset)]
            found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets)
        except onnx.defs.SchemaError as error:
            raise _refusal(proto, f"op set {self.opset} of ONNX has no such op") from error
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise _refusal(proto, f"its shapes or types do not fit: {error}") from error
        shapes = [(name, *_static(proto, found.get(name))) for name in proto.output if name]
        if _attributes(proto).get("ceil_mode", 0):
            source = types[proto.input[0]].tensor_type.shape.dim
            sizes = tuple(size.dim_value for size in source)
            shapes = [(name, _without_overhang(proto, sizes, shape), dtype) for name, shape, dtype in shapes]
        return shapes


def _static(proto: onnx.NodeProto, found: onnx.TypeProto | None) -> tuple[tuple[int, ...], str]:
    import onnx

    tensor = found.tensor_type if found is not None else None
    if (
        tensor is None
        or not tensor.HasField("shape")
        or any(not d.HasField("dim_value") for d in tensor.shape.dim)
    ):
        raise _refusal(proto, "its output shape depends on data")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return tuple(size.dim_value for size in tensor.shape.dim), dtype


def _without_overhang(
    proto: onnx.NodeProto, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of a pool in ceil mode less the windows that start behind the input.

    The standard leaves them out since op set 22, and runtimes always have; shape inference does not.
    """
    settings = _attributes(proto)
    count = len(sizes) - 2
    strides, pads = settings.get("strides", [1] * count), settings.get("pads", [0] * 2 * count)
    kept = [
        result - ((result - 1) * stride >= size + before)
        for result, stride, size, before in zip(shape[2:], strides, sizes[2:], pads[:count], strict=True)
    ]
    return (*shape[:2], *kept)


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions written out."""
    if not proto.functions:
        return proto
    from onnx.inliner import inline_local_functions

    return inline_local_functions(proto)


def _frozen(name: str, shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape with a free batch dimension set to 1."""
    sizes = tuple(1 if axis == 0 and size is None else size for axis, size in enumerate(shape))
    known = tuple(size for size in sizes if size)
    if len(known) != len(sizes):
        raise ModelError(
            "an input of the model has no fixed size", where=name, got=str(list(shape)),
            remedy="export the model with fixed sizes; only the batch (first) dimension may be free",
        )  # fmt: skip
    return known


def _attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in proto.attribute}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}


def _is_float_cast(proto: onnx.NodeProto, inputs: list[Value | None]) -> bool:
    """Whether a Cast takes float32 to a float: what lies between such casts computes in float32 here."""
    if proto.op_type != "Cast" or inputs[0] is None or inputs[0].dtype != "float32":
        return False
    return _attributes(proto)["to"] in {1, 10, 11}  # FLOAT, FLOAT16, DOUBLE


def _signed(integers: Array) -> Array:
    """Unsigned integers as the signed that stand for the same reals once their zero point is shifted too.

    Those of 4 bits, which NumPy computes with slowly or not at all, become int8.
    """
    dtype = integers.dtype.name
    moved = integers.astype(np.int32) - _SHIFTS.get(dtype, 0)
    return np.asarray(moved.astype("int8" if _BITS[dtype] < 8 else f"int{_BITS[dtype]}"))


def _integer_type(value: Value, zero: Value | None, settings: dict[str, Any]) -> str:
    """NumPy's name of the type that a Q node writes or a DQ node reads."""
    if zero is not None:
        return zero.dtype
    if value.dtype != "float32":
        return value.dtype
    return {0: "uint8", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16"}.get(
        settings.get("output_dtype", 0), "another one"
    )


def _given(proto: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """The first input, which the op cannot do without."""
    if not inputs or inputs[0] is None:
        raise _refusal(proto, "its input is left out")
    return inputs[0]


def _refusal(proto: onnx.NodeProto, why: str, remedy: str = "") -> UnsupportedOp:
    return UnsupportedOp(
        f"TFLite cannot express this {proto.op_type}: {why}",
        where=f"node {proto.name or proto.output[0]}",
        got=proto.op_type,
        remedy=remedy
        or "change this part of the model, or take a target whose runtimes are ONNX Runtime alone",
    )
