"""A second copy of a graph, quantized while its original stays in float."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.model import Model
from edgepipe.quantize import emit
from edgepipe.quantize.layerwise.walk import Walk

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgepipe.quantize.grid import Grid
    from edgepipe.quantize.plan import Plan

_BATCH = 8
"""Samples that run together."""
_MEMORY_BYTES = 1 << 30
"""What the live tensors of both walks may take."""
_LIVE_TENSORS = 3
"""Tensors of the largest size that are alive at once: an input and an output here, one of them there."""


class Twin(msgspec.Struct, frozen=True):
    """A network whose activations are on their grids and whose weights are still real.

    Attributes:
        proto: The network.
        results: Name of each linear op's output in it, in the order of the plan.
    """

    proto: onnx.ModelProto
    results: tuple[str, ...]


def quantize_activations(
    graph_model: ir.Model, plan: Plan, grids: Mapping[ir.Value, Grid], *, symmetric: bool
) -> Twin:
    """A copy of a model with its activations quantized as they will be.

    Args:
        graph_model: The float graph that `plan` was made for; it stays as it is.
        plan: What to quantize in it.
        grids: Grid of each tensor of the plan.
        symmetric: Whether constants, too, must have zero point 0.
    """
    import onnx_ir as ir

    copy = graph_model.clone()
    counterparts = _counterparts(graph_model.graph, copy.graph)
    fields = {name: _moved(getattr(plan, name), counterparts) for name in type(plan).__struct_fields__}
    moved = type(plan)(**fields)
    emit.write(copy.graph, moved, _moved(dict(grids), counterparts), [], symmetric=symmetric)
    return Twin(ir.to_proto(copy), tuple(str(node.outputs[0].name) for node in moved.linears))


def _counterparts(graph: ir.Graph, copy: ir.Graph) -> dict[Any, Any]:
    """The copy's node for each node of a graph, and value for each value."""
    found: dict[Any, Any] = dict(zip(graph.inputs, copy.inputs, strict=True))
    for node, other in zip(graph, copy, strict=True):
        found[node] = other
        found.update(zip(node.outputs, other.outputs, strict=True))
    return found


def _moved(part: Any, counterparts: Mapping[Any, Any]) -> Any:
    """A field of a plan with each node and value replaced by its counterpart."""
    if isinstance(part, tuple):
        return tuple(_moved(each, counterparts) for each in part)
    if isinstance(part, Mapping):
        return {_moved(key, counterparts): _moved(value, counterparts) for key, value in part.items()}
    return counterparts.get(part, part)


def walk_both(model: Model, plan: Plan, twin: Twin, samples: NDArray[Any]) -> tuple[Walk, Walk]:
    """Walks through the float network and its twin, on the same samples.

    Args:
        model: The float network, of the same graph as the plan.
        plan: Whose linear ops the walks stop at.
        twin: The network with quantized activations.
        samples: For the model's input, float32 [n, ...]; the first ones are used, as many as memory holds.
    """
    spec = model.inputs[0]
    size = spec.shape[0] or max(1, min(_BATCH, len(samples) // 4))
    most = max(size, min(len(samples), samples_held(model)))
    batches = [
        np.ascontiguousarray(samples[start : start + size], np.float32)
        for start in range(0, most - (size - 1 if spec.shape[0] else 0), size)
    ]
    results = [str(node.outputs[0].name) for node in plan.linears]
    return Walk(model.to_onnx(), results, batches), Walk(twin.proto, twin.results, batches)


def samples_held(model: Model) -> int:
    """Samples whose live tensors fit into the memory set aside, in two networks; unknown sizes count as 1."""
    graph = model.to_onnx().graph
    sizes = [
        math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.input]
    ]
    batch = model.inputs[0].shape[0] or 1
    most: int = _MEMORY_BYTES * batch // (4 * _LIVE_TENSORS * max(sizes))
    return max(1, most)
