"""Activations quantized by channel, brought onto one grid by moving their scales into the weights around.

Some tools give each channel of what a depthwise convolution reads a scale of its own. No integer kernel holds
such a tensor, but none has to: a depthwise convolution multiplies each channel by weights of its own, and so
did the op that made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir

Scales = NDArray[np.float64]


class _Site(msgspec.Struct, frozen=True):
    """A tensor quantized by channel between ops that can take its scales in.

    Attributes:
        quantizer: Its Q, with a scale for each channel and one zero point.
        dequantizers: All that read it.
        activation: The Relu or Clip before it; None where there is none.
        maker: The convolution that makes it.
        readers: The depthwise convolutions that read it.
    """

    quantizer: ir.Node
    dequantizers: tuple[ir.Node, ...]
    activation: ir.Node | None
    maker: ir.Node
    readers: tuple[ir.Node, ...]


def unify(graph: ir.Graph) -> None:
    """Gives such tensors one scale, in place; the integers of tensors and weights stay what they were.

    With ``x = scale[c] * (q - zero_point)``, the maker's weights and bias are multiplied by
    ``one / scale[c]`` for each output channel c, and the readers' weights by ``scale[c] / one``: Nagel et
    al. 2019 (arXiv 1906.04721), section 4.1, backwards. Tensors that other ops touch are left as they are.
    """
    for node in edit.nodes(graph, "QuantizeLinear"):
        site = _site(node)
        if site is None:
            continue
        own = edit.array_at(node, 1).astype(np.float64).reshape(-1)
        one = float(np.float32(own.max()))
        _scale_weight(graph, site.maker, one / own)
        _scale_bias(graph, site.maker, one / own)
        for reader in site.readers:
            _scale_weight(graph, reader, own / one)
        if site.activation is not None and site.activation.op_type == "Clip":
            edit.replace_value(graph, site.activation.outputs[0], site.maker.outputs[0])
            graph.remove(site.activation, safe=True)
        _set_grid(graph, site, one)


def _site(quantizer: ir.Node) -> _Site | None:
    source = quantizer.inputs[0]
    if source is None or not _is_by_channel(quantizer) or not _is_private(source):
        return None
    activation, maker = None, source.producer()
    if maker is not None and maker.op_type in ("Relu", "Clip"):
        activation, between = maker, maker.inputs[0]
        maker = between.producer() if between is not None and _is_private(between) else None
    if maker is None or maker.op_type != "Conv" or not _is_scalable(maker):
        return None
    if activation is not None and activation.op_type == "Clip" and not _saturates(activation, quantizer):
        return None
    dequantizers = tuple(node for node, _ in quantizer.outputs[0].uses())
    readers = tuple(node for each in dequantizers for node, _ in each.outputs[0].uses())
    known = all(each.op_type == "DequantizeLinear" for each in dequantizers) and all(
        map(_is_depthwise, readers)
    )
    if not known or not readers or quantizer.outputs[0].is_graph_output():
        return None
    return _Site(quantizer, dequantizers, activation, maker, readers)


def _is_by_channel(quantizer: ir.Node) -> bool:
    """Whether there is a scale for each channel, and one zero point for all."""
    scale, zero_point = edit.constant_input(quantizer, 1), edit.constant_input(quantizer, 2)
    if scale is None or scale.size < 2 or zero_point is None or np.ptp(zero_point):
        return False
    return edit.integer(quantizer, "axis", 1) == 1 and bool((scale > 0).all())


def _is_private(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _saturates(clip: ir.Node, quantizer: ir.Node) -> bool:
    """Whether the ends of the grid of every channel clip what the Clip would."""
    scale, zero_point = edit.array_at(quantizer, 1), edit.array_at(quantizer, 2)
    limits = np.iinfo(zero_point.dtype)
    low, high = edit.constant_input(clip, 1), edit.constant_input(clip, 2)
    first = -np.inf if low is None else np.rint(low / scale).min() + zero_point.flat[0]
    last = np.inf if high is None else np.rint(high / scale).min() + zero_point.flat[0]
    return bool(np.max(first) <= limits.min and last >= limits.max)


def _is_scalable(node: ir.Node) -> bool:
    """Whether the weight is an integer constant by output channel or by tensor, the bias constant or none."""
    weight = node.inputs[1]
    dequantizer = weight.producer() if weight is not None else None
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
        return False
    integers, scale = edit.constant_input(dequantizer, 0), edit.constant_input(dequantizer, 1)
    if integers is None or scale is None or len(dequantizer.outputs[0].uses()) != 1:
        return False
    if scale.size > 1 and edit.integer(dequantizer, "axis", 1) % int(integers.ndim) != 0:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or edit.constant(bias) is not None:
        return True
    behind = bias.producer()
    return behind is not None and behind.op_type == "DequantizeLinear" and len(bias.uses()) == 1


def _is_depthwise(node: ir.Node) -> bool:
    if node.op_type != "Conv" or not _is_scalable(node):
        return False
    dequantizer = node.inputs[1].producer()  # type: ignore[union-attr]
    integers = edit.array_at(dequantizer, 0)  # type: ignore[arg-type]
    return edit.integer(node, "group", 1) == integers.shape[0] and bool(integers.shape[1] == 1)


def _scale_weight(graph: ir.Graph, node: ir.Node, factors: Scales) -> None:
    """Multiplies the scales of a weight: float64 [out channels]."""
    _scale(graph, node.inputs[1].producer(), factors)  # type: ignore[union-attr, arg-type]


def _scale_bias(graph: ir.Graph, node: ir.Node, factors: Scales) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return
    real = edit.constant(bias)
    if real is None:
        _scale(graph, bias.producer(), factors)  # type: ignore[arg-type]
        return
    scaled = edit.add_constant(graph, f"{bias.name}/scaled", (real * factors).astype(np.float32))
    node.replace_input_with(2, scaled)


def _scale(graph: ir.Graph, dequantizer: ir.Node, factors: Scales) -> None:
    import onnx_ir as ir

    scale, zero_point = edit.array_at(dequantizer, 1), edit.constant_input(dequantizer, 2)
    integers = edit.array_at(dequantizer, 0)
    name = str(dequantizer.outputs[0].name)
    scaled = (np.broadcast_to(scale.reshape(-1), factors.shape) * factors).astype(np.float32)
    dequantizer.replace_input_with(1, edit.add_constant(graph, f"{name}/scale", scaled))
    if zero_point is not None and zero_point.size == 1:
        spread = np.full(factors.shape, zero_point.reshape(()), integers.dtype)
        dequantizer.replace_input_with(2, edit.add_constant(graph, f"{name}/zero_point", spread))
    dequantizer.attributes["axis"] = ir.AttrInt64("axis", 0)


def _set_grid(graph: ir.Graph, site: _Site, scale: float) -> None:
    name = str(site.quantizer.outputs[0].name)
    zero_point = edit.array_at(site.quantizer, 2).reshape(-1)[0]
    taken = (
        edit.add_constant(graph, f"{name}/scale", np.array(scale, np.float32)),
        edit.add_constant(graph, f"{name}/zero_point", np.array(zero_point)),
    )
    for node in (site.quantizer, *site.dequantizers):
        for index, value in enumerate(taken, start=1):
            node.replace_input_with(index, value)
