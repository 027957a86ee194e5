"""What each linear op may become: its weight and bias at every width it could be rounded to.

Rounding is to nearest, with scales that make the weight's squared error least and the bias corrected
for the mean error: what an honest quantizer does to one layer while all others stay float. Rounding
that is optimised for the data shrinks the errors of all layers, and hardly changes which layer suffers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit
from edgepipe.quantize import grid as g
from edgepipe.quantize.scheme import FLOAT_BITS
from edgepipe.quantize.weights import Granularity, channel_axis, mean_output_error

if TYPE_CHECKING:
    import onnx_ir as ir

_CLIPPING_RATIOS = tuple(np.linspace(1.0, 0.4, 25).tolist())
"""Parts of a channel's greatest magnitude that a scale may hold."""


class Constants(msgspec.Struct, frozen=True):
    """Weight and bias of a linear op, real numbers on the grid of some width.

    Attributes:
        weight: float32, shaped as the op's own.
        bias: float32 [channels]; None for an op that takes none.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None


def float_constants(node: ir.Node) -> Constants:
    """The constants of a linear op as they are; zeros for a bias that it could have."""
    weight, bias = edit.array_at(node, 1), edit.constant_input(node, 2)
    if bias is None and node.op_type != "MatMul":
        bias = np.zeros(_outputs(node, weight), np.float32)
    return Constants(weight, bias)


def rounded_constants(
    node: ir.Node, bits: int, granularity: Granularity, input_mean: NDArray[np.float64] | None
) -> Constants:
    """The constants of a linear op with its weight rounded to `bits`.

    Args:
        node: The op.
        bits: Bits of the weight's integers; `FLOAT_BITS` leaves it as it is.
        granularity: A scale for each output channel, or one in all.
        input_mean: Mean of each input channel, float64 [channels], to correct the bias with (Nagel et
            al. 2019, arXiv 1906.04721, equation 17); None for no correction.
    """
    exact = float_constants(node)
    if bits == FLOAT_BITS:
        return exact
    axis = channel_axis(node) if granularity == "per-channel" else None
    weight = _rounded(exact.weight, axis, bits)
    if exact.bias is None or input_mean is None:
        return Constants(weight, exact.bias)
    shift = mean_output_error(node, weight - exact.weight, input_mean)
    return Constants(weight, (exact.bias - shift).astype(np.float32))


def _rounded(weight: NDArray[np.float32], axis: int | None, bits: int) -> NDArray[np.float32]:
    """The weight on the symmetric grid of least squared error, for each channel along `axis` or in all."""
    others = tuple(each for each in range(weight.ndim) if each != axis)
    greatest = np.abs(weight).max(axis=others, initial=0.0).reshape(-1)
    best = np.full(greatest.shape, np.inf)
    result = weight
    for ratio in _CLIPPING_RATIOS:
        scales = g.along(g.weight_scales(greatest * ratio, bits), axis or 0, weight.ndim)
        largest = g.weight_max(bits)
        trial = np.clip(np.rint(weight / scales), -largest, largest) * scales
        errors = np.square(trial - weight, dtype=np.float64).sum(axis=others).reshape(-1)
        better = errors < best
        best = np.where(better, errors, best)
        result = np.where(g.along(better, axis or 0, weight.ndim), trial, result)
    return np.asarray(result, np.float32)


def _outputs(node: ir.Node, weight: NDArray[np.float32]) -> int:
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * edit.integer(node, "group", 1)
    return int(weight.shape[channel_axis(node) or 0])
