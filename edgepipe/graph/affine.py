"""Affine maps that a convolution or matrix product can take over: batch normalization, scale and shift.

Channels are axis 1 of the outputs; ``weight`` has its output channels on axis 0 for Conv, on axis 1
for ConvTranspose with one group, and as `transB` says for Gemm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.graph import dense, edit

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


def normalize(graph: ir.Graph, *, fold_normalization: bool = True) -> None:
    """Folds affine maps into the linear op before them, and writes those that remain as Mul and Add.

    Args:
        graph: The graph; it is edited.
        fold_normalization: Whether batch normalizations fold into ops, or are written out alone.
    """
    _plain_gemms(graph)
    dense.products_to_gemms(graph)
    for node in edit.nodes(graph, "Neg", "Pow"):
        _multiply(graph, node)
    normalizations = ["BatchNormalization"] if fold_normalization else []
    for node in edit.nodes(graph, *normalizations, "Mul", "Add", "Sub", "Div"):
        _fold_into_producer(graph, node)
    for node in edit.nodes(graph, "BatchNormalization"):
        _split_normalization(graph, node)
    for node in edit.nodes(graph, "Div"):
        _multiply_by_reciprocal(graph, node)


def normalization(node: ir.Node) -> Affine | None:
    """Scale and shift, float64 [channels], of a BatchNormalization with constant statistics.

    ``y = gamma (x - mean) / sqrt(variance + epsilon) + beta``: Ioffe and Szegedy 2015
    (arXiv 1502.03167), algorithm 2.
    """
    arrays = [edit.constant_input(node, index) for index in range(1, 5)]
    if any(array is None for array in arrays) or edit.integer(node, "training_mode", 0):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    scale = gamma / np.sqrt(variance + edit.real(node, "epsilon", 1e-5))
    return scale, beta - mean * scale


def _fold_into_producer(graph: ir.Graph, node: ir.Node) -> None:
    position = next(
        (
            index
            for index, value in enumerate(node.inputs)
            if value is not None and edit.constant(value) is None
        ),
        None,
    )
    if position is None:
        return
    source = node.inputs[position]
    producer = source.producer() if source is not None else None
    if source is None or producer is None or len(source.uses()) != 1 or source.is_graph_output():
        return
    channels = _output_channels(producer)
    if channels is None:
        return
    affine = (
        normalization(node)
        if node.op_type == "BatchNormalization"
        else _elementwise(node, position, channels)
    )
    if affine is None:
        return
    _rescale(graph, producer, affine)
    edit.replace_value(graph, node.outputs[0], source)
    graph.remove(node, safe=True)


def _elementwise(node: ir.Node, position: int, channels: int) -> Affine | None:
    """The affine map of an Add, Sub, Mul or Div with one constant per channel, or with one for all."""
    operand = edit.constant_input(node, 1 - position)
    rank = edit.sizes(node.inputs[position])
    if operand is None or rank is None or operand.ndim > len(rank) or operand.dtype != np.float32:
        return None
    shape = (1,) * (len(rank) - operand.ndim) + operand.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    vector = np.broadcast_to(operand.reshape(-1).astype(np.float64), (channels,))
    zeros, ones = np.zeros(channels), np.ones(channels)
    if node.op_type == "Div":
        return (1 / vector, zeros) if position == 0 and vector.all() else None
    sign = -1.0 if node.op_type == "Sub" else 1.0
    if node.op_type == "Mul":
        return vector, zeros
    return (ones, sign * vector) if position == 0 else (sign * ones, vector)


def _output_channels(node: ir.Node) -> int | None:
    """Output channels of a linear op whose weight and bias are constants of its own; else None."""
    weight = edit.constant_input(node, 1)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or weight is None:
        return None
    if node.op_type == "ConvTranspose" and edit.integer(node, "group", 1) != 1:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and edit.constant(node.inputs[2]) is None:
        return None
    return int(weight.shape[_channel_axis(node)])


def _channel_axis(node: ir.Node) -> int:
    if node.op_type == "Gemm":
        return 0 if edit.integer(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _rescale(graph: ir.Graph, node: ir.Node, affine: Affine) -> None:
    """Lets `node` compute ``scale * y + shift`` in place of ``y``: Jacob et al. 2018, equation 14."""
    scale, shift = affine
    weight = edit.array_at(node, 1)
    bias = edit.constant_input(node, 2)
    column = [1] * weight.ndim
    column[_channel_axis(node)] = -1
    scaled = (weight.astype(np.float64) * scale.reshape(column)).astype(np.float32)
    shifted = shift if bias is None else bias.astype(np.float64).reshape(-1) * scale + shift
    _set_linear(graph, node, scaled, shifted.astype(np.float32))


def _set_linear(
    graph: ir.Graph, node: ir.Node, weight: NDArray[np.float32], bias: NDArray[np.float32] | None
) -> None:
    """Gives the linear op new constants; the old ones may have other users, so they stay."""
    node.replace_input_with(1, edit.add_constant(graph, str(node.inputs[1].name), weight))  # type: ignore[union-attr]
    if bias is None:
        return
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    name = str(node.inputs[2].name) if node.inputs[2] is not None else f"{node.outputs[0].name}.bias"
    node.replace_input_with(2, edit.add_constant(graph, name, bias))


def _plain_gemms(graph: ir.Graph) -> None:
    """Folds alpha and beta of every constant Gemm into its weight and bias, and makes its bias a vector."""
    for node in edit.nodes(graph, "Gemm"):
        channels = _output_channels(node)
        if channels is None:
            continue
        weight, bias = edit.array_at(node, 1), edit.constant_input(node, 2)
        alpha, beta = edit.real(node, "alpha", 1.0), edit.real(node, "beta", 1.0)
        if bias is not None and bias.size not in (1, channels):
            continue
        plain = (
            None if bias is None else np.broadcast_to(bias.reshape(-1) * np.float32(beta), (channels,)).copy()
        )
        if alpha == 1.0 and (bias is None or (beta == 1.0 and bias.shape == (channels,))):
            continue
        _set_linear(graph, node, (weight * np.float32(alpha)).astype(np.float32), plain)
        node.attributes.pop("alpha", None)
        node.attributes.pop("beta", None)


def _split_normalization(graph: ir.Graph, node: ir.Node) -> None:
    """Writes a BatchNormalization that folds into nothing as Mul and Add with constants."""
    import onnx_ir as ir

    affine, shape = normalization(node), edit.sizes(node.inputs[0])
    if affine is None or shape is None:
        return
    column = (-1,) + (1,) * (len(shape) - 2)
    name = str(node.outputs[0].name)
    scale, shift = (array.astype(np.float32).reshape(column) for array in affine)
    product = ir.node("Mul", [node.inputs[0], edit.add_constant(graph, f"{name}.scale", scale)])
    total = ir.node("Add", [product.outputs[0], edit.add_constant(graph, f"{name}.shift", shift)])
    for value, suffix in ((product.outputs[0], "scaled"), (total.outputs[0], "shifted")):
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
        value.name = edit.unused_name(graph, f"{name}.{suffix}")
    graph.insert_before(node, [product, total])
    edit.replace_value(graph, node.outputs[0], total.outputs[0])
    graph.remove(node, safe=True)


def _multiply_by_reciprocal(graph: ir.Graph, node: ir.Node) -> None:
    """Writes division by a float constant as a product: integer kernels multiply, few divide."""
    divisor = edit.constant_input(node, 1)
    if divisor is None or divisor.dtype != np.float32 or not divisor.all():
        return
    inverse = edit.add_constant(graph, f"{node.outputs[0].name}.reciprocal", (1 / divisor).astype(np.float32))
    _replace_by_product(graph, node, inverse)


def _multiply(graph: ir.Graph, node: ir.Node) -> None:
    """Writes a float negation or square as a product, for the same reason."""
    source = node.inputs[0]
    if source is None or source.dtype is None or source.dtype.name != "FLOAT":
        return
    if node.op_type == "Neg":
        factor = edit.add_constant(graph, f"{node.outputs[0].name}.minus_one", np.array(-1, np.float32))
        _replace_by_product(graph, node, factor)
        return
    exponent = edit.constant_input(node, 1)
    if exponent is not None and exponent.ndim == 0 and float(exponent) == 2.0:
        _replace_by_product(graph, node, source)


def _replace_by_product(graph: ir.Graph, node: ir.Node, factor: ir.Value) -> None:
    import onnx_ir as ir

    product = ir.node("Mul", [node.inputs[0], factor])
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    product.outputs[0].name = edit.unused_name(graph, f"{node.outputs[0].name}.product")
    graph.insert_before(node, product)
    edit.replace_value(graph, node.outputs[0], product.outputs[0])
    graph.remove(node, safe=True)
