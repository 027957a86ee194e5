"""ONNX artifacts for ONNX Runtime: the quantization decisions in the form that each CPU's kernels fuse."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgepipe.bundle import Port
from edgepipe.convert import floats, opset, qdq
from edgepipe.convert.emission import Emission, PortType
from edgepipe.convert.precision import precision_of
from edgepipe.errors import ModelError, UnsupportedOp
from edgepipe.graph import edit, overhang
from edgepipe.graph.edit import is_quantized
from edgepipe.model import Model, TensorSpec
from edgepipe.target import Activation

if TYPE_CHECKING:
    import onnx


def check(model: Model) -> None:
    """Makes sure that ONNX Runtime can load the model: a question of its ops and types.

    Raises:
        UnsupportedOp: It cannot.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(model.payload, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen unrelated classes
        raise UnsupportedOp(
            "ONNX Runtime cannot load the model",
            where=model.name,
            got=str(error).splitlines()[0],
            remedy="export the model with standard ONNX ops, or replace the op that is named",
        ) from error


def emit(model: Model, *, activation: Activation, ports: PortType = "float32") -> Emission:
    """Writes the ONNX artifact of a float or QDQ model.

    The QDQ form stays as it is: ONNX Runtime fuses it into integer kernels when it loads the file.
    MLAS has fast x86 kernels for uint8 activations with int8 weights alone, Arm and TensorRT want int8;
    the same grid serves both, shifted by 128. Weights of 4 bits stay so in the file and are int8 once it is
    loaded. Where activations have 16 bits there are no integer kernels: those ops compute in float what
    the graph says.

    Args:
        model: Float ONNX, or QDQ by any tool.
        activation: Integer type of the activations.
        ports: "integer" leaves out the conversion at the inputs and outputs of a quantized model.

    Raises:
        ModelError: An input or output has a dynamic size besides the batch.
    """
    quantized = is_quantized(model)
    precision = precision_of(model.to_onnx())
    proto = _without_overhangs(model) if quantized else model.to_onnx()
    if precision == "dynamic":
        floats.multiply_dynamically(proto)
    elif quantized:
        qdq.set_activation_type(proto, "uint8" if activation == "uint8" else "int8")
        if activation != "int8-symmetric":  # TensorRT fuses the function with the op before it
            qdq.quantize_before_clipping(proto)
        qdq.widen_int4(proto)
    if quantized:
        floats.keep_weights_float(proto)
    grids = qdq.strip_boundary(proto) if quantized and ports == "integer" else {}
    version = opset.lower(proto)
    del proto.graph.value_info[:]  # the runtime infers shapes itself
    payload = proto.SerializeToString(deterministic=True)
    return Emission(
        format="onnx",
        precision=precision,
        payload=payload,
        inputs=tuple(_port(spec, grids) for spec in model.inputs),
        outputs=tuple(_port(spec, grids) for spec in model.outputs),
        op_counts=_op_counts(proto),
        needs={"onnxruntime": opset.runtime_of(proto, version)},
    )


def _without_overhangs(model: Model) -> onnx.ModelProto:
    """The model with average pools that integer kernels, too, compute as the standard says.

    Those that edgepipe quantizes are so already; models that come in quantized may hold others.
    """
    import onnx_ir as ir

    proto = model.to_onnx()
    if not overhang.may_overhang(proto.graph):
        return proto
    graph_model = edit.open_graph(model)
    return ir.to_proto(graph_model) if overhang.settle(graph_model.graph) else proto


def _port(spec: TensorSpec, grids: dict[str, qdq.PortGrid]) -> Port:
    if any(size is None for size in spec.shape[1:]):
        raise ModelError(
            "a dimension other than the batch is dynamic",
            where=spec.name,
            got=str(spec),
            remedy="export the model with fixed sizes, or name them with --input-shape",
        )
    shape = tuple(1 if size is None else size for size in spec.shape)
    permutation = tuple(range(len(shape)))
    if spec.name not in grids:
        return Port(name=spec.name, dtype=spec.dtype, shape=shape, permutation=permutation)
    grid = grids[spec.name]
    return Port(
        name=spec.name,
        dtype=grid.dtype,
        shape=shape,
        permutation=permutation,
        scale=grid.scale,
        zero_point=grid.zero_point,
    )


def _op_counts(proto: onnx.ModelProto) -> dict[str, int]:
    return dict(sorted(Counter(node.op_type for node in proto.graph.node).items()))
