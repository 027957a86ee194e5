"""Quantization grids, as pure functions of arrays: which real numbers the integers stand for.

``real = scale * (q - zero_point)``: Jacob et al. 2018 (arXiv 1712.05877), equation 1. Activations take
one grid a tensor over int8 or int16; weights are symmetric (zero point 0, narrow range [-127, 127] for
8 bits) with a scale for each output channel, as the TFLite 8-bit quantization specification asks.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.graph.integers import limits

SMALLEST_SCALE = 1e-18
"""Least scale of an activation: its product with another, or with a weight's, is a normal float32."""
SMALLEST_WEIGHT_SCALE = 1e-19
INT32_MAX = 2**31 - 1


class Grid(msgspec.Struct, frozen=True):
    """The reals that the integers of one activation tensor stand for.

    Attributes:
        scale: Step between neighbours; a float32 value, positive and normal.
        zero_point: The integer that stands for 0.0, within the range of the integers.
        bits: Bits of an integer: 8, or 16 with zero point 0.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the integers: int8 or int16."""
        return np.dtype(f"int{self.bits}")

    @property
    def first(self) -> int:
        """The least integer: -128 for 8 bits."""
        return limits(self.bits)[0]

    @property
    def last(self) -> int:
        """The greatest integer: 127 for 8 bits."""
        return limits(self.bits)[1]

    @property
    def low(self) -> float:
        """The least real number on the grid."""
        return self.scale * (self.first - self.zero_point)

    @property
    def high(self) -> float:
        """The greatest real number on the grid."""
        return self.scale * (self.last - self.zero_point)


PROBABILITY = Grid(1 / 256, -128)
"""Output of Softmax and Sigmoid: fixed by the TFLite 8-bit quantization specification."""
LOG_PROBABILITY = Grid(16 / 256, 127)
"""Output of LogSoftmax, likewise."""
TANGENT = Grid(1 / 128, 0)
"""Output of Tanh, likewise."""
UNIT_16 = Grid(1 / 32768, 0, 16)
"""Output of Softmax, Sigmoid and Tanh on 16 bits: what TFLite's 16-bit kernels are made for."""


def activation_grid(low: float, high: float, *, symmetric: bool = False, bits: int = 8) -> Grid:
    """The grid that spans [low, high] and holds 0.0 exactly.

    Asymmetric as in Jacob et al. 2018 (arXiv 1712.05877), section 3.1: the range is widened to hold 0,
    ``scale = (high - low) / 255`` for 8 bits, and the zero point is rounded to an integer, which moves
    both ends by less than half a step. The symmetric form, which 16 bits always take, has its zero point
    at 0 and the scale ``max(|low|, |high|) / 127``.

    Args:
        low: Least value to hold.
        high: Greatest value to hold.
        symmetric: Whether the zero point must be 0.
        bits: Bits of an integer.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    first, last = limits(bits)
    if symmetric or bits == 16:
        return Grid(_float32(max(-low, high) / last), 0, bits)
    scale = _float32((high - low) / (last - first))
    return Grid(scale, int(np.clip(round(first - low / scale), first, last)), bits)


def _float32(scale: float) -> float:
    """The scale as the float32 that files hold; 1/255 for a tensor that is always zero."""
    if scale < SMALLEST_SCALE:
        return float(np.float32(1 / 255))
    return float(np.float32(scale))


def quantize(real: NDArray[np.floating], grid: Grid) -> NDArray[np.integer]:
    """Integers of `real`, of any shape: rounded half to even and saturated, as ONNX's QuantizeLinear."""
    steps = np.rint(real / np.float32(grid.scale)) + grid.zero_point
    return np.asarray(np.clip(steps, grid.first, grid.last), grid.dtype)


def dequantize(quantized: NDArray[np.integer], grid: Grid) -> NDArray[np.float32]:
    """Reals that the integers stand for, as ONNX's DequantizeLinear."""
    return (quantized.astype(np.float32) - np.float32(grid.zero_point)) * np.float32(grid.scale)


def saturates(grid: Grid, low: float, high: float) -> bool:
    """Whether clipping to [low, high] before quantizing changes nothing.

    Quantization is monotonic, so ``q(clip(x, low, high)) == clip(q(x), q(low), q(high))``, and the
    latter clip does nothing exactly where both bounds fall on or beyond the ends of the grid.
    """
    first = np.rint(np.float64(low) / grid.scale) + grid.zero_point
    last = np.rint(np.float64(high) / grid.scale) + grid.zero_point
    return bool(first <= grid.first and last >= grid.last)


def weight_max(bits: int) -> int:
    """The greatest integer of a weight: 127 for 8 bits.

    The least integer, -128, is left out, so that the range is symmetric: TFLite 8-bit quantization
    specification.
    """
    return limits(bits)[1]


def weight_scales(magnitudes: NDArray[np.floating], bits: int = 8) -> NDArray[np.float32]:
    """Scales that bring the greatest magnitude of each channel to the greatest integer.

    A channel of zeros, which has no scale of its own, takes the median of the others', so that its
    bias is rounded as finely as theirs.

    Args:
        magnitudes: Greatest absolute value of each channel, [channels].
        bits: Bits of an integer.

    Returns:
        float32 [channels], all positive and normal.
    """
    scales = np.asarray(magnitudes, np.float64) / weight_max(bits)
    alive = scales > SMALLEST_WEIGHT_SCALE
    substitute = np.median(scales[alive]) if alive.any() else 1 / weight_max(bits)
    return np.where(alive, scales, substitute).astype(np.float32)


def quantize_weight(
    weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int, bits: int = 8
) -> NDArray[np.int8]:
    """Integers of a weight, rounded to nearest: in [-127, 127] for 8 bits.

    Args:
        weight: float32, of any shape.
        scales: float32 [channels], or [1] for one scale in all.
        axis: Axis of the channels.
        bits: Bits of an integer.
    """
    steps = np.rint(weight / along(scales, axis, weight.ndim))
    return np.asarray(np.clip(steps, -weight_max(bits), weight_max(bits)), np.int8)


def along(vector: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    """`vector` [channels] shaped so that it broadcasts along `axis` of an array of this rank."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def safe_weight_scales(
    scales: NDArray[np.float32],
    bias: NDArray[np.float32],
    input_scale: float,
    accumulation: int,
    *,
    activation_bits: int = 8,
) -> NDArray[np.float32]:
    """Scales raised where the int32 bias, or bias plus accumulator, would overflow.

    The bias has scale ``input_scale * scales`` (Jacob et al. 2018, equation 11). An accumulator of
    `accumulation` products of a weight in [-127, 127] with an activation at most 255 steps from its
    zero point is at most ``accumulation * 127 * 255``; what int32 has beyond that is the bias's. Kernels
    for 16-bit activations accumulate in int64 (TFLite) or in float (ONNX Runtime), so that int32 has to
    hold the bias alone.

    Args:
        scales: float32 [channels] or [1], of the weight.
        bias: float32 [channels].
        input_scale: Scale of the activation that the weight is multiplied with.
        accumulation: Number of products that are summed.
        activation_bits: Bits of the activation's integers.

    Returns:
        float32, shaped as `scales`; equal to `scales` where nothing overflows.
    """
    accumulated = accumulation * weight_max(8) * 255 if activation_bits == 8 else 0
    room = max(INT32_MAX - accumulated, 2**24)
    least = np.abs(bias.astype(np.float64)) / (float(input_scale) * room)
    if scales.size == 1:
        least = least.max(initial=0.0, keepdims=True)
    raised = np.where(least > scales, least * (1 + 1e-6), scales)
    return raised.astype(np.float32)


def quantize_bias(bias: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """Integers of a bias: float32 [channels] over float32 scales [channels] or [1]."""
    steps = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(steps, -INT32_MAX, INT32_MAX).astype(np.int32)
