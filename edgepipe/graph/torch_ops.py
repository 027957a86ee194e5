"""What each ONNX op computes, in PyTorch: differentiable in its float inputs.

One function an op, from the node (for its attributes) and the tensors at its inputs, None for those
left out, to the tensor or tensors it puts out; the ONNX operator set 13 and later is what they follow.
This module imports torch: only `autograd` may import it, and from within a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from edgepipe.graph import edit
from edgepipe.graph.torch_windows import WINDOWED, Uncovered

if TYPE_CHECKING:
    import onnx_ir as ir

    Op = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

Tensor = torch.Tensor


def _plain(function: Callable[..., Tensor]) -> Op:
    """The form of `OPS` for what asks for no attribute."""
    return lambda _node, *inputs: function(*inputs)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An op of any number of inputs, taken two by two."""

    def apply(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return apply


def _first(x: Tensor, *_others: Tensor) -> Tensor:
    return x


def _divide(first: Tensor, second: Tensor) -> Tensor:
    if first.is_floating_point():
        return first / second
    return torch.div(first, second, rounding_mode="trunc")


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def _hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
    return torch.clamp(edit.real(node, "alpha", 0.2) * x + edit.real(node, "beta", 0.5), 0, 1)


def _gelu(node: ir.Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=edit.text(node, "approximate", "none"))


def _gemm(node: ir.Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if edit.integer(node, "transA", 0) else a
    b = b.T if edit.integer(node, "transB", 0) else b
    product = edit.real(node, "alpha", 1.0) * (a @ b)
    return product if c is None else product + edit.real(node, "beta", 1.0) * c


def _batch_norm(
    node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if edit.integer(node, "training_mode", 0):
        raise Uncovered("training_mode = 1")
    epsilon = edit.real(node, "epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def _layer_norm(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = edit.integer(node, "axis", -1) % x.ndim
    axes = tuple(range(axis, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    normal = (x - mean) * torch.rsqrt(variance + edit.real(node, "epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


def _softmax(node: ir.Node, x: Tensor) -> Tensor:
    return torch.softmax(x, edit.integer(node, "axis", -1))


def _log_softmax(node: ir.Node, x: Tensor) -> Tensor:
    return torch.log_softmax(x, edit.integer(node, "axis", -1))


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Op:
    """A reduction; its axes are an attribute, or an input from opset 18 (ReduceSum: 13) on."""

    def apply(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        named = edit.ints(node, "axes") if axes is None else axes.tolist()
        if not named and edit.integer(node, "noop_with_empty_axes", 0):
            return x
        chosen = tuple(axis % x.ndim for axis in named) or tuple(range(x.ndim))
        return function(x, chosen, bool(edit.integer(node, "keepdims", 1)))

    return apply


def _reshape(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not edit.integer(node, "allowzero", 0):
        sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: ir.Node, x: Tensor) -> Tensor:
    axis = edit.integer(node, "axis", 1)
    axis = axis if axis >= 0 else axis + x.ndim
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axis % x.ndim for axis in axes.tolist()))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: ir.Node, x: Tensor) -> Tensor:
    return x.permute(edit.ints(node, "perm", tuple(reversed(range(x.ndim)))))


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x * torch.ones(shape.tolist(), dtype=x.dtype)


def _concat(node: ir.Node, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, edit.integer(node, "axis", 0))


def _split(node: ir.Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = edit.integer(node, "axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    parts = edit.integer(node, "num_outputs", len(node.outputs))
    return torch.split(x, -(-x.shape[axis] // parts), axis)


def _slice(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    along = range(starts.numel()) if axes is None else axes.tolist()
    strides = [1] * starts.numel() if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), strides, strict=True):
        places = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _gather(node: ir.Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = edit.integer(node, "axis", 0) % x.ndim
    flat = (indices.reshape(-1).long() % x.shape[axis]) if indices.numel() else indices.reshape(-1).long()
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, flat).reshape(shape)


def _pad(
    node: ir.Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(
        edit.text(node, "mode", "constant")
    )
    if mode is None:
        raise Uncovered(f"mode {edit.text(node, 'mode', '')}")
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    amounts = [0] * (2 * x.ndim)
    sizes = pads.tolist()
    for place, axis in enumerate(along):  # torch lists the last axis first
        amounts[2 * (x.ndim - 1 - axis)] = sizes[place]
        amounts[2 * (x.ndim - 1 - axis) + 1] = sizes[place + len(along)]
    if mode == "constant":
        return functional.pad(x, amounts, value=0.0 if value is None else float(value))
    while len(amounts) > 2 and not any(amounts[-2:]):  # those modes take no pads of outer axes
        amounts = amounts[:-2]
    return functional.pad(x, amounts, mode=mode)


def _depth_to_space(node: ir.Node, x: Tensor) -> Tensor:
    block = edit.integer(node, "blocksize", 1)
    count, channels, height, width = x.shape
    inner = channels // (block * block)
    if edit.text(node, "mode", "DCR") == "CRD":
        parts = x.reshape(count, inner, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(count, block, block, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(count, inner, height * block, width * block)


def _space_to_depth(node: ir.Node, x: Tensor) -> Tensor:
    block = edit.integer(node, "blocksize", 1)
    count, channels, height, width = x.shape
    parts = x.reshape(count, channels, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(count, -1, height // block, width // block)


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


def _cast(node: ir.Node, x: Tensor) -> Tensor:
    import onnx_ir as ir

    kind = ir.DataType(edit.integer(node, "to", 1)).numpy().name
    return x.to(getattr(torch, kind))


def _shape(node: ir.Node, x: Tensor) -> Tensor:
    end = edit.integer(node, "end", x.ndim)
    return torch.tensor(list(x.shape)[edit.integer(node, "start", 0) : end])


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Clip": _clip,
    "Div": _divide,
    "Dropout": _first,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": _expand,
    "HardSwish": functional.hardswish,
    "Identity": _first,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "PRelu": _prelu,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softplus": functional.softplus,
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Sum": _fold(torch.add),
    "Tanh": torch.tanh,
    "Tile": _tile,
    "Unsqueeze": _unsqueeze,
}

OPS: dict[str, Op] = {
    **WINDOWED,
    **{op_type: _plain(function) for op_type, function in _PLAIN.items()},
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Elu": lambda node, x: functional.elu(x, edit.real(node, "alpha", 1.0)),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, edit.real(node, "alpha", 0.01)),
    "LogSoftmax": _log_softmax,
    "Pad": _pad,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Softmax": _softmax,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Transpose": _transpose,
}
"""What computes each op of the standard domain, by its type."""
