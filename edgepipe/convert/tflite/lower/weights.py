"""Weights and biases of convolutions and dense layers, as TFLite's integer kernels want them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Grid, Node, Value
from edgepipe.convert.tflite.lower.site import Site

_INT32_MAX = 2**31 - 1
# The 16-bit kernels scale their accumulators as integers of 48 bits; products take the rest of them.
_INT40_MAX = 2**39 - 1
# Ops whose 8-bit kernels take int4 weights.
INT4_OPS = frozenset({"Conv", "Gemm", "MatMul"})
# The least float32 that is not subnormal: kernels flush smaller scales to zero.
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


class IntegerWeights(msgspec.Struct, frozen=True, eq=False):
    """Weights and bias with the grids on which TFLite's kernels multiply and add.

    Attributes:
        weight: int8, in the shape that it was given.
        bias: int32 [channels], scale ``s_input * s_weight``; int64 where activations have 16 bits.
        weight_grid: One symmetric step for each output channel.
        bias_grid: One step for each output channel; None for a bias in float32.
    """

    weight: Array
    bias: Array
    weight_grid: Grid
    bias_grid: Grid | None


def integer_weights(site: Site, weight: Value, axis: int, bias: Value | None) -> IntegerWeights:
    """Brings weights and bias of a node onto the grids of TFLite's int8 specification.

    Per-tensor scales are spread over the channels. A channel whose weights are all zero gets a usable
    scale, whatever it had; one whose bias would overflow int32 gets a coarser one.

    Args:
        site: The node, whose first input is quantized.
        weight: Its weights, on a symmetric grid: int8, also where the grid has 4 bits.
        axis: The axis of output channels.
        bias: Its bias, int32 or float [channels]; None where it has none.

    Raises:
        UnsupportedOp: The weights are asymmetric, or quantized along another axis.
    """
    scale, flat = _symmetric_scales(site, weight, axis)
    data, channels = np.asarray(weight.data), len(flat)
    real_bias: Array = np.zeros(channels)
    if bias is not None:
        real_bias = np.asarray(bias.real(), np.float64).reshape(channels)
    step_in, bits = site.step().scale[0], 32 if site.bits == 8 else 64
    most = _INT32_MAX if bits == 32 else _INT40_MAX
    own = _usable(scale, flat, step_in)
    scale = _with_room_for_bias(own, np.abs(real_bias) / (most * step_in))
    data = _rescaled(data, axis, own, scale)
    bias_scale = _float32(scale * step_in)
    integers = np.clip(np.rint(real_bias / bias_scale), -most, most).astype(f"int{bits}")
    if bias is not None and bias.grid is not None and bias.data is not None:
        same = np.isclose(np.resize(np.array(bias.grid.scale), channels), bias_scale, rtol=1e-6, atol=0)
        integers = np.where(same, bias.data.reshape(channels), integers).astype(f"int{bits}")
    zeros = (0,) * channels
    return IntegerWeights(
        data,
        integers,
        Grid(tuple(map(float, scale)), zeros, axis, _stored_bits(site, weight)),
        Grid(tuple(map(float, bias_scale)), zeros, 0, bits),
    )


def hybrid_weights(site: Site, weight: Value, axis: int, bias: Value | None) -> IntegerWeights:
    """Weights of a node that takes floats and quantizes them itself: int8, with the bias in float32.

    Args:
        site: The node.
        weight: Its weights, on a symmetric grid: int8.
        axis: The axis of output channels.
        bias: Its bias [channels]; None where it has none.

    Raises:
        UnsupportedOp: The weights are asymmetric, or quantized along another axis.
    """
    scale, flat = _symmetric_scales(site, weight, axis)
    scale = _usable(scale, flat, 1.0)
    real = np.zeros(len(flat)) if bias is None else bias.real()
    zeros = (0,) * len(flat)
    return IntegerWeights(
        np.asarray(weight.data),
        np.asarray(real.reshape(len(flat)), np.float32),
        Grid(tuple(map(float, scale)), zeros, axis),
        None,
    )


def output_axis(node: Node, weight: Value) -> int:
    """The axis of output channels in the weight of a linear node."""
    match node.op:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if node.settings.get("transB", 0) else 1
        case _:
            return len(weight.shape) - 1


def steps_of_accumulators(node: Node, values: Mapping[str, Value]) -> float:
    """How many steps of the output one step of a linear node's accumulator is, in its coarsest channel.

    Jacob et al. 2018 (arXiv 1712.05877), equation 5, call it the multiplier. XNNPACK takes none from 256
    on: where products cancel so well that their sum is finer than any of them, LiteRT would refuse the
    whole file. Infinite where no normal float32 is as small as the accumulator's step.
    """
    source, weight, made = values[node.inputs[0]], values[node.inputs[1]], values[node.outputs[0]]
    if weight.data is None or weight.grid is None or source.grid is None or made.grid is None:
        return 0.0
    channels = weight.shape[output_axis(node, weight)]
    flat = np.moveaxis(weight.data, output_axis(node, weight), 0).reshape(channels, -1)
    step_in = source.grid.scale[0]
    scale = np.resize(np.array(weight.grid.scale), channels)
    if (scale[flat.any(axis=1)] * step_in < _LEAST_SCALE).any():
        return np.inf
    scale = _usable(scale, flat, step_in)
    bias = values[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    if bias is not None and bias.data is not None:
        scale = np.maximum(scale, np.abs(bias.real()).max(initial=0.0) / (_INT32_MAX * step_in))
    return float(scale.max(initial=0.0) * step_in / made.grid.scale[0])


def _symmetric_scales(site: Site, weight: Value, axis: int) -> tuple[Array, Array]:
    """Scale of each channel, float64 [channels], and the integers as rows [channels, ...]."""
    grid, data = weight.grid, weight.data
    if grid is None or data is None:
        raise TypeError(f"{weight.name} is not quantized")
    if any(grid.zero_point):
        raise site.refuse("its weights have a zero point", "quantize weights symmetrically (zero point 0)")
    if grid.axis not in {None, axis}:
        raise site.refuse("its weights are quantized along another axis than that of output channels")
    channels = weight.shape[axis]
    flat = np.moveaxis(data, axis, 0).reshape(channels, -1)
    return np.resize(np.array(grid.scale), channels), flat


def _stored_bits(site: Site, weight: Value) -> int:
    """Bits that weights take in the file: int4 where a kernel unpacks it at no great cost, int8 otherwise.

    Depthwise kernels have int4 too, but took four times as long as on int8 and longer than in float
    (LiteRT 2.3 on x86), for weights that are few.
    """
    unpacks = site.node.op in INT4_OPS and int(site.setting("group", 1)) == 1
    narrow = weight.grid is not None and weight.grid.bits == 4
    return 4 if narrow and site.bits == 8 and unpacks else 8


def _with_room_for_bias(scale: Array, least: Array) -> Array:
    """Scales of at least `least`, float64 [channels]."""
    return np.asarray(np.where(scale >= least, scale, _float32(least * (1 + 1e-6))))


def _rescaled(data: Array, axis: int, scale: Array, wider: Array) -> Array:
    """Weights rounded again where their scales grew."""
    if (wider == scale).all():
        return data
    shape = [-1 if index == axis else 1 for index in range(data.ndim)]
    return np.asarray(np.rint(data * (scale / wider).reshape(shape)).astype(np.int8))


def _usable(scale: Array, flat: Array, step_in: float) -> Array:
    """The scales with those of dead channels, which may be zero or NaN, replaced by a usual one."""
    dead = ~flat.any(axis=1)
    good = np.isfinite(scale) & (scale >= _LEAST_SCALE) & (scale * step_in >= _LEAST_SCALE)
    alive = scale[good & ~dead]
    usual = float(np.float32(np.median(alive))) if alive.size else 1 / 128
    return np.where(good & ~dead, scale, usual)


def _float32(numbers: Array) -> Array:
    """Rounded to what a file can hold, kept as float64."""
    return numbers.astype(np.float32).astype(np.float64)
