"""Serializes a Program as a TFLite flatbuffer: the same program, the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgepipe.convert.tflite.graph import Array, Grid
from edgepipe.convert.tflite.program import Operator, Options, Program, Tensor

_SCHEMA_VERSION = 3
_IDENTIFIER = b"TFL3"
# Kernels load weights with vector instructions; the schema asks for this alignment of every buffer.
_ALIGNMENT = 16
# TensorFlow reserves so many bytes for the version string; readers expect them.
_VERSION_BYTES = 16
# Builtin codes past this one do not fit the deprecated 8-bit field, which then says so.
_LAST_NARROW_CODE = 127
_ENUMERATIONS = {
    "padding": "Padding",
    "fusedActivationFunction": "ActivationFunctionType",
    "mode": "MirrorPadMode",
}
_TYPES = {
    "bool": "BOOL",
    "float16": "FLOAT16",
    "float32": "FLOAT32",
    "int4": "INT4",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
}


def write(program: Program, *, description: str, min_runtime_version: str) -> bytes:
    """The file's bytes: equal weights stored once, buffers aligned to 16 bytes, one signature.

    Args:
        program: What to write.
        description: The model's description, for people.
        min_runtime_version: Metadata that TensorFlow's own converter writes too.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    writer = _Writer(schema)
    model = writer.model(program, description, min_runtime_version)
    size = sum(tensor.data.nbytes for tensor in program.tensors if tensor.data is not None)
    builder = flatbuffers.Builder(size + 65536)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


class _Writer:
    """Turns records into the schema's object classes."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        # By convention buffer 0 is the empty one, shared by all tensors without data.
        self.buffers: list[Any] = [schema.BufferT()]
        self.places: dict[bytes, int] = {}

    def model(self, program: Program, description: str, min_runtime_version: str) -> Any:
        schema = self.schema
        codes = list(dict.fromkeys((op.code, op.version) for op in program.operators))
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors = [self.tensor(tensor) for tensor in program.tensors]
        graph.inputs = [index for _, index in program.inputs]
        graph.outputs = [index for _, index in program.outputs]
        graph.operators = [self.operator(op, codes.index((op.code, op.version))) for op in program.operators]
        model = schema.ModelT()
        model.version = _SCHEMA_VERSION
        model.description = description
        model.operatorCodes = [self.code(code, version) for code, version in codes]
        model.subgraphs = [graph]
        model.signatureDefs = [self.signature(program)]
        model.metadata = [self.metadata("min_runtime_version", min_runtime_version)]
        model.buffers = self.buffers
        return model

    def code(self, name: str, version: int) -> Any:
        record = self.schema.OperatorCodeT()
        record.builtinCode = getattr(self.schema.BuiltinOperator, name)
        record.deprecatedBuiltinCode = min(record.builtinCode, _LAST_NARROW_CODE)
        record.version = version
        return record

    def tensor(self, tensor: Tensor) -> Any:
        record = self.schema.TensorT()
        record.name = tensor.name
        record.shape = np.array(tensor.shape, np.int32)
        record.type = getattr(self.schema.TensorType, _TYPES[tensor.dtype])
        record.hasRank = True
        if tensor.data is not None:
            record.buffer = self.buffer(_packed(tensor.data) if tensor.dtype == "int4" else tensor.data)
        if tensor.grid is not None:
            record.quantization = self.quantization(tensor.grid)
        return record

    def quantization(self, grid: Grid) -> Any:
        record = self.schema.QuantizationParametersT()
        record.scale = np.array(grid.scale, np.float32)
        record.zeroPoint = np.array(grid.zero_point, np.int64)
        record.quantizedDimension = grid.axis or 0
        return record

    def buffer(self, data: Array) -> int:
        """Index of the buffer that holds these bytes."""
        content = np.ascontiguousarray(data).tobytes()
        if content not in self.places:
            self.places[content] = len(self.buffers)
            self.buffers.append(_aligned(self.schema, content))
        return self.places[content]

    def operator(self, op: Operator, code: int) -> Any:
        record = self.schema.OperatorT()
        record.opcodeIndex = code
        record.inputs = np.array(op.inputs, np.int32)
        record.outputs = np.array(op.outputs, np.int32)
        if op.options is not None:
            record.builtinOptionsType = getattr(self.schema.BuiltinOptions, op.options.table)
            record.builtinOptions = self.options(op.options)
        return record

    def options(self, options: Options) -> Any:
        record = getattr(self.schema, f"{options.table}T")()
        for field, content in options.fields.items():
            if not hasattr(record, field):
                raise AttributeError(f"{options.table} has no field {field}")
            setattr(record, field, self.option(field, content))
        return record

    def option(self, field: str, content: Any) -> Any:
        if isinstance(content, str):
            return getattr(getattr(self.schema, _ENUMERATIONS[field]), content)
        return np.array(content, np.int32) if isinstance(content, tuple) else content

    def signature(self, program: Program) -> Any:
        record = self.schema.SignatureDefT()
        record.signatureKey = "serving_default"
        record.inputs = [self.port(name, index) for name, index in program.inputs]
        record.outputs = [self.port(name, index) for name, index in program.outputs]
        return record

    def port(self, name: str, index: int) -> Any:
        record = self.schema.TensorMapT()
        record.name = name
        record.tensorIndex = index
        return record

    def metadata(self, name: str, text: str) -> Any:
        record = self.schema.MetadataT()
        record.name = name
        record.buffer = self.buffer(np.frombuffer(text.encode().ljust(_VERSION_BYTES, b"\0"), np.uint8))
        return record


def _packed(integers: Array) -> Array:
    """Two integers of 4 bits to a byte, the first one in its lower half: uint8 [ceil(n / 2)]."""
    halves = np.append(integers.reshape(-1), np.zeros(integers.size % 2, np.int8)).astype(np.uint8) & 15
    return np.asarray(halves[::2] | halves[1::2] << 4, np.uint8)


def _aligned(schema: Any, content: bytes) -> Any:
    """A buffer whose data starts at a multiple of 16 bytes; the generated class aligns to 1 only."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> int:  # noqa: N802  the name that the generated code calls
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head = builder.head - len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return int(schema.BufferEnd(builder))

    return Aligned()
