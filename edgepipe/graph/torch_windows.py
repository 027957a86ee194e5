"""Convolutions, pools and resizing of ONNX in PyTorch, with ONNX's padding: each end its own, or named.

This module imports torch: only `torch_ops` imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import torch
from torch.nn import functional

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir

Tensor = torch.Tensor


class Uncovered(Exception):
    """A form of an op that the table does not cover; says which."""


class _Window(msgspec.Struct, frozen=True):
    """Where a kernel goes over its input, along each spatial axis.

    Attributes:
        kernel: Its sizes.
        strides: Steps between its places.
        dilations: Distances of its taps.
        pads: Padding before and after, as (before, after).
        overhang: How far the last place reaches past the padding, where sizes are rounded up.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    overhang: tuple[int, ...]


def _window(node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> _Window:
    rank = len(kernel)
    strides = tuple(edit.ints(node, "strides", [1] * rank))
    dilations = tuple(edit.ints(node, "dilations", [1] * rank))
    reach = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(node, sizes, reach, strides)
    overhang = [0] * rank
    if edit.integer(node, "ceil_mode", 0):
        for axis, (size, (before, after)) in enumerate(zip(sizes, pads, strict=True)):
            room = size + before + after - reach[axis]
            places = -(-room // strides[axis]) + 1
            if (places - 1) * strides[axis] >= size + before:  # the last would start past the input
                places -= 1
            overhang[axis] = max((places - 1) * strides[axis] - room, 0)
    return _Window(kernel, strides, dilations, pads, tuple(overhang))


def _pads(
    node: ir.Node, sizes: tuple[int, ...], reach: list[int], strides: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    automatic = edit.text(node, "auto_pad", "NOTSET")
    if automatic == "NOTSET":
        given = edit.ints(node, "pads", [0] * (2 * len(reach)))
        return tuple(zip(given[: len(reach)], given[len(reach) :], strict=True))
    if automatic == "VALID":
        return ((0, 0),) * len(reach)
    pads = []
    for size, span, stride in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return tuple(pads)


def _padded(x: Tensor, pads: tuple[tuple[int, int], ...], value: float) -> Tensor:
    if not any(map(any, pads)):
        return x
    return functional.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def _conv(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = _window(node, tuple(x.shape[2:]), tuple(weight.shape[2:]))
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}.get(x.ndim - 2)
    if convolve is None:
        raise Uncovered(f"{x.ndim - 2} spatial axes")
    group = edit.integer(node, "group", 1)
    before = tuple(first for first, _ in window.pads)
    if all(first == last for first, last in window.pads):
        return convolve(x, weight, bias, window.strides, before, window.dilations, group)
    return convolve(_padded(x, window.pads, 0.0), weight, bias, window.strides, 0, window.dilations, group)


def _conv_transpose(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    convolve = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d}.get(rank)
    if (
        convolve is None
        or "output_shape" in node.attributes
        or edit.text(node, "auto_pad", "NOTSET") != "NOTSET"
    ):
        raise Uncovered("output_shape, auto_pad or three spatial axes")
    pads = edit.ints(node, "pads", [0] * (2 * rank))
    extra = edit.ints(node, "output_padding", [0] * rank)
    strides, dilations = edit.ints(node, "strides", [1] * rank), edit.ints(node, "dilations", [1] * rank)
    group = edit.integer(node, "group", 1)
    full = convolve(x, weight, bias, strides, 0, extra, group, dilations)
    for axis in range(rank):
        full = full.narrow(axis + 2, pads[axis], full.shape[axis + 2] - pads[axis] - pads[axis + rank])
    return full


def _max_pool(node: ir.Node, x: Tensor) -> Tensor:
    window = _window(node, tuple(x.shape[2:]), tuple(edit.ints(node, "kernel_shape")))
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}.get(x.ndim - 2)
    if pool is None or len(node.outputs) > 1:
        raise Uncovered("indices, or more than three spatial axes")
    full = _padded(x, _with_overhang(window), -torch.inf)
    return pool(full, window.kernel, window.strides, 0, window.dilations)


def _average_pool(node: ir.Node, x: Tensor) -> Tensor:
    window = _window(node, tuple(x.shape[2:]), tuple(edit.ints(node, "kernel_shape")))
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}.get(x.ndim - 2)
    if pool is None or any(step != 1 for step in window.dilations):
        raise Uncovered("dilations, or more than three spatial axes")
    total = pool(_padded(x, _with_overhang(window), 0.0), window.kernel, window.strides)
    counted = float(edit.integer(node, "count_include_pad", 0))
    ones = _padded(torch.ones_like(x[:1, :1]), window.pads, counted)
    ones = _padded(ones, tuple((0, extra) for extra in window.overhang), 0.0)
    return total / pool(ones, window.kernel, window.strides)


def _with_overhang(window: _Window) -> tuple[tuple[int, int], ...]:
    return tuple(
        (before, after + extra) for (before, after), extra in zip(window.pads, window.overhang, strict=True)
    )


def _global(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    return lambda _node, x: function(x, tuple(range(2, x.ndim)), True)


def _resize(
    node: ir.Node,
    x: Tensor,
    _region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    mode = edit.text(node, "mode", "nearest")
    transform = edit.text(node, "coordinate_transformation_mode", "half_pixel")
    rounding = edit.text(node, "nearest_mode", "round_prefer_floor")
    if x.ndim != 4 or "axes" in node.attributes or edit.integer(node, "antialias", 0):
        raise Uncovered("other than four axes, or antialias")
    if sizes is not None and sizes.numel():
        target = [int(size) for size in sizes.tolist()]
    elif scales is not None:
        target = [int(size * scale) for size, scale in zip(x.shape, scales.tolist(), strict=True)]
    else:
        raise Uncovered("neither scales nor sizes")
    if target[:2] != list(x.shape[:2]):
        raise Uncovered("batch or channels resized")
    match mode, transform, rounding:
        case "nearest", "asymmetric", "floor":
            return functional.interpolate(x, target[2:], mode="nearest")
        case "linear", "half_pixel" | "pytorch_half_pixel", _:
            return functional.interpolate(x, target[2:], mode="bilinear", align_corners=False)
        case "linear", "align_corners", _:
            return functional.interpolate(x, target[2:], mode="bilinear", align_corners=True)
        case "nearest", _, _ if all(new % old == 0 for new, old in zip(target[2:], x.shape[2:], strict=True)):
            return functional.interpolate(x, target[2:], mode="nearest")
    raise Uncovered(f"{mode}, {transform}, {rounding}")


WINDOWED: dict[str, Callable[..., Tensor]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "MaxPool": _max_pool,
    "Resize": _resize,
}
