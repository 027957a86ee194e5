"""A model on its way through the pipeline: a format, a payload that nobody mutates, and a digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    import onnx

Format = Literal["onnx", "torch", "tflite"]


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output of a model.

    Attributes:
        name: Its name in the graph.
        dtype: NumPy's name of its type: "float32", "int8", ...
        shape: Its dimensions; None where any size goes (the batch, as a rule).
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """``input float32 [?, 3, 224, 224]``."""
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} [{sizes}]"


class Model(msgspec.Struct, frozen=True):
    """A model in one of the formats that passes take and give.

    The payload of an ONNX or TFLite model is its serialized bytes, so that no pass can change the
    model of its caller by accident; that of a torch model is the module, which a pass must copy.

    Attributes:
        name: A short name for people and file names: the stem of the source file.
        format: "onnx", "torch" or "tflite".
        payload: bytes, or a torch.nn.Module.
        inputs: What goes in.
        outputs: What comes out.
        digest: sha256 (hex) of the payload; of the weights and the module's text for torch.
    """

    name: str
    format: Format
    payload: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str

    @property
    def size_bytes(self) -> int:
        """Size of the serialized payload; 0 for a torch module, which has none."""
        return len(self.payload) if isinstance(self.payload, bytes) else 0

    def to_onnx(self) -> onnx.ModelProto:
        """Parses a fresh ModelProto, which the caller owns. For format "onnx" only."""
        import onnx

        if self.format != "onnx":
            raise TypeError(f"a {self.format} model has no ONNX graph")
        return onnx.load_from_string(self.payload)


def digest_bytes(data: bytes) -> str:
    """The sha256 of `data`, in hex: how edgepipe names contents everywhere."""
    return hashlib.sha256(data).hexdigest()


def onnx_model(proto: onnx.ModelProto, name: str) -> Model:
    """Freezes `proto` into a Model: serialized deterministically, with specs read off its graph."""
    import onnx

    initializers = {tensor.name for tensor in proto.graph.initializer}

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        sizes = (size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
        return TensorSpec(value.name, dtype, tuple(sizes))

    payload = proto.SerializeToString(deterministic=True)
    return Model(
        name=name,
        format="onnx",
        payload=payload,
        inputs=tuple(spec(value) for value in proto.graph.input if value.name not in initializers),
        outputs=tuple(spec(value) for value in proto.graph.output),
        digest=digest_bytes(payload),
    )
