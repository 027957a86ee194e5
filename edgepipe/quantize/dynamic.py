"""Dynamic range quantization: int8 weights, activations quantized as they come. It needs no samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgepipe.errors import ModelError
from edgepipe.events import stage
from edgepipe.graph import edit
from edgepipe.graph.opset import require_scales_by_channel
from edgepipe.model import Model
from edgepipe.passes import Context, Pass
from edgepipe.quantize.emit import write_constant
from edgepipe.quantize.grid import quantize_weight, weight_scales
from edgepipe.quantize.plan import is_quantizable
from edgepipe.quantize.weights import Granularity, channel_axis

if TYPE_CHECKING:
    import onnx_ir as ir

LEAST_WEIGHTS = 1024
"""Fewer weights save hardly more bytes than their scales take: the bound of TensorFlow's converter."""


class QuantizeDynamic(Pass, frozen=True, kw_only=True):
    """Stores weights as INT8 and leaves it to the runtime to quantize activations, sample by sample.

    The scheme is TensorFlow Lite's dynamic range quantization (its guide "Post-training dynamic range
    quantization"): symmetric int8 weights, float activations, 8-bit products where the runtime has a
    kernel for them. Nothing is calibrated, and the file is about a quarter of the size. Depthwise
    convolutions and weights of few elements stay as they are. A model that is quantized already passes
    through untouched.

    Attributes:
        granularity: A scale for each output channel of a weight, or one for all.
    """

    needs_calibration: ClassVar[bool] = False

    granularity: Granularity = "per-channel"

    def apply(self, model: Model, context: Context) -> Model:
        """The model with integer weights, and DynamicQuantizeLinear before every op that takes one.

        Raises:
            ModelError: The model has no weight that is worth it, or an opset without per-channel scales.
        """
        if edit.is_quantized(model):
            return model
        graph_model = edit.open_graph(model)
        graph = graph_model.graph
        nodes = [node for node in edit.nodes(graph, "Conv", "Gemm", "MatMul") if _is_worth_it(node)]
        require_scales_by_channel(graph.opset_imports.get("", 0), model.name)
        if not nodes:
            raise ModelError(
                "the model has no weight to store as int8",
                where=model.name,
                got=f"none of {LEAST_WEIGHTS} elements or more in a dense layer or an ungrouped convolution",
                remedy="take the recipe float32 or int8",
            )
        with stage(context.emit, "round weights") as rounding:
            pairs: dict[ir.Value, ir.Value] = {}
            names = edit.Names(graph)
            for node in nodes:
                _quantize_weight(graph, node, self.granularity, names)
                _quantize_input(graph, node, pairs)
            rounding.detail = f"{len(nodes)} weights"
        return edit.freeze_tidied(graph_model, model.name)


def _is_worth_it(node: ir.Node) -> bool:
    """Whether a weight is large, and its op one that runtimes have a fast kernel for.

    Depthwise convolutions are none: few weights, and kernels that took three times as long as on floats.
    """
    weight = edit.constant_input(node, 1)
    if weight is None or weight.size < LEAST_WEIGHTS or not is_quantizable(node):
        return False
    return edit.integer(node, "group", 1) == 1 if node.op_type == "Conv" else weight.ndim == 2


def _quantize_weight(graph: ir.Graph, node: ir.Node, granularity: Granularity, names: edit.Names) -> None:
    weight = np.asarray(edit.array_at(node, 1), np.float32)
    axis = channel_axis(node) if granularity == "per-channel" else None
    others = None if axis is None else tuple(each for each in range(weight.ndim) if each != axis)
    magnitudes = np.abs(weight).max(axis=others, initial=0.0).reshape(-1)
    scales = weight_scales(magnitudes)
    integers = quantize_weight(weight, scales, axis or 0)
    write_constant(graph, (node, 1), str(node.inputs[1].name), integers, scales, axis or 0, names)  # type: ignore[union-attr]


def _quantize_input(graph: ir.Graph, node: ir.Node, pairs: dict[ir.Value, ir.Value]) -> None:
    """Lets the node read its input through DynamicQuantizeLinear, once for all readers."""
    import onnx_ir as ir

    source = node.inputs[0]
    if source is None:
        return
    if source not in pairs:
        name = edit.unused_name(graph, f"{source.name}.dynamic")
        quantizer = ir.node("DynamicQuantizeLinear", [source], num_outputs=3, name=name)
        for output, part in zip(quantizer.outputs, ("uint8", "scale", "zero_point"), strict=True):
            output.name = f"{name}.{part}"
        real = ir.Value(name=f"{name}.dequantized", type=source.type, shape=source.shape)
        dequantizer = ir.node("DequantizeLinear", list(quantizer.outputs), outputs=[real], name=real.name)
        producer = source.producer()
        if producer is None:
            graph.insert_before(graph[0], [quantizer, dequantizer])
        else:
            graph.insert_after(producer, [quantizer, dequantizer])
        pairs[source] = real
    node.replace_input_with(0, pairs[source])
