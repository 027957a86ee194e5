"""A model of the noise that rounding adds to a network, as a function of factors for each channel.

Rounding to steps of ``d`` adds noise of power ``d**2 / 12``. In what a linear op puts out,

    weights:      ``d_w**2 / 12 * K * sum_i E[x_i**2]``      for each output channel,
    activations:  ``d_x**2 / 12 * sum_i |w_oi|**2``          likewise,

over the input channels i and the K taps of the kernel. Divided by the variance of the output, the sum
over all linear ops is what equalization makes least. The greatest magnitude, which sets a step, stands
here as the norm of order 16, which is within a few per cent of it and has a gradient everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.quantize.rescaling.channels import Channels
from edgepipe.quantize.rescaling.factors import magnitudes, powers

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepipe.quantize.rescaling.spread import Spread

Vector = NDArray[np.float64]
Granularity = Literal["per-channel", "per-tensor"]
_LEAST_VARIANCE = 0.1
"""A channel that varies less than this part of the middle one counts as if it varied as much."""
_SQUARINGS = 4
"""The order of the norm is 2 to this power."""
_WEIGHT_STEPS, _ACTIVATION_STEPS = 127, 255


class Layer(msgspec.Struct, frozen=True):
    """What the noise of one linear op depends on; channels of its input are i, those of its output o.

    Attributes:
        node: The op.
        reads: Which of the sets of channels it reads; None where its input is in none.
        writes: Which of them it writes, likewise.
        weight: Magnitudes of its weights, float32 [groups, o, i].
        taps: Weights between an output and an input channel, K.
        power: Sum of squared weights of each input channel, each times `heed`, float64 [i].
        input: Mean square of each input channel, float64 [i].
        high: Greatest value of each input channel, at least 0, float64 [i].
        low: Least value, negated, likewise.
        heed: What noise in each output channel counts for, float64 [o].
    """

    node: Any
    reads: int | None
    writes: int | None
    weight: NDArray[np.float32]
    taps: int
    power: Vector
    input: Vector
    high: Vector
    low: Vector
    heed: Vector


def make_layers(
    nodes: Sequence[ir.Node], sets: Sequence[Channels], seen: dict[str, Spread]
) -> tuple[Layer, ...]:
    """The layers of a network.

    Args:
        nodes: Its linear ops.
        sets: Sets of channels that can take factors.
        seen: What inputs and outputs of the ops show on samples, by name.
    """
    writes = {node: index for index, each in enumerate(sets) for node in each.writers}
    reads = {node: index for index, each in enumerate(sets) for node in each.readers}
    layers = []
    for node in nodes:
        source, result = seen[str(node.inputs[0].name)], seen[str(node.outputs[0].name)]  # type: ignore[union-attr]
        size = len(source.mean)
        heed = _heed(result)
        if not heed.any():
            continue
        power, taps = powers(node, size, heed)
        layers.append(
            Layer(
                node=node,
                reads=reads.get(node),
                writes=writes.get(node),
                weight=magnitudes(node, size).astype(np.float32),
                taps=taps,
                power=power,
                input=source.square,
                high=np.maximum(source.high, 0.0),
                low=np.maximum(-source.low, 0.0),
                heed=heed,
            )
        )
    return tuple(layers)


def _heed(result: Spread) -> Vector:
    """The inverse of the variance of each channel, over their number; channels that hardly vary apart."""
    variance = np.maximum(result.square - result.mean**2, 0.0)
    floor = _LEAST_VARIANCE * float(np.median(variance))
    if floor == 0.0:
        floor = _LEAST_VARIANCE * float(variance.mean())
    if floor == 0.0:
        return np.zeros_like(variance)
    return 1 / np.maximum(variance, floor) / len(variance)


def noise(
    layers: Sequence[Layer], logs: Sequence[Vector], granularity: Granularity
) -> tuple[float, list[Vector], list[float]]:
    """Noise over signal, summed over all layers.

    Args:
        layers: The network.
        logs: Logarithms of the factors of each set of channels.
        granularity: Whether a weight has a step for each output channel or one in all.

    Returns:
        The sum; its gradient by each of `logs`; the share of each layer.
    """
    gradients = [np.zeros_like(each) for each in logs]
    shares = []
    for layer in layers:
        factor = np.exp(logs[layer.reads]) if layer.reads is not None else np.ones(len(layer.input))
        divisor = np.exp(logs[layer.writes]) if layer.writes is not None else np.ones(1)
        parts = (
            _activation_noise(layer, factor),
            _weight_noise(layer, factor, divisor)
            if granularity == "per-tensor"
            else _channel_noise(layer, factor),
        )
        shares.append(sum(part[0] for part in parts))
        for _, by_factor, by_divisor in parts:
            if layer.reads is not None:
                gradients[layer.reads] += by_factor
            if layer.writes is not None and by_divisor is not None:
                gradients[layer.writes] += by_divisor
    return float(sum(shares)), gradients, shares


def _activation_noise(layer: Layer, factor: Vector) -> tuple[float, Vector, Vector | None]:
    """Power of what rounding the input adds, with its gradient by the logarithm of `factor`."""
    (high, by_high), (low, by_low) = _norm(layer.high / factor), _norm(layer.low / factor)
    step = (high + low) / _ACTIVATION_STEPS
    gain = layer.power * factor**2
    value = step**2 / 12 * gain.sum()
    by_step = -2 * step / 12 * gain.sum() * (high * by_high + low * by_low) / _ACTIVATION_STEPS
    return float(value), by_step + step**2 / 12 * 2 * gain, None


def _weight_noise(layer: Layer, factor: Vector, divisor: Vector) -> tuple[float, Vector, Vector]:
    """Power of what rounding the weight to one step adds, with its gradients."""
    groups, outputs, inputs = layer.weight.shape
    down = np.broadcast_to(divisor, groups * outputs).reshape(groups, outputs, 1)
    scaled = layer.weight * factor.reshape(groups, 1, inputs).astype(np.float32)
    scaled /= down.astype(np.float32)
    greatest = float(scaled.max())
    if greatest == 0.0:
        return 0.0, np.zeros(groups * inputs), np.zeros(groups * outputs)
    scaled /= greatest
    for _ in range(_SQUARINGS):
        np.square(scaled, out=scaled)
    total = float(scaled.sum(dtype=np.float64))
    square = (greatest * total**0.5**_SQUARINGS) ** 2
    by_input = scaled.sum(1, dtype=np.float64).reshape(-1) / total
    by_output = scaled.sum(2, dtype=np.float64).reshape(-1) / total
    arriving = (layer.input / factor**2).reshape(groups, inputs)
    leaving = down[:, :, 0] ** 2 * layer.heed.reshape(groups, outputs)
    through = float((arriving.sum(1) * leaving.sum(1)).sum())
    scale = layer.taps / (12 * _WEIGHT_STEPS**2) * square
    by_factor = scale * (2 * by_input * through - 2 * (arriving * leaving.sum(1, keepdims=True)).reshape(-1))
    by_divisor = scale * (
        2 * (leaving * arriving.sum(1, keepdims=True)).reshape(-1) - 2 * by_output * through
    )
    return scale * through, by_factor, by_divisor


def _channel_noise(layer: Layer, factor: Vector) -> tuple[float, Vector, None]:
    """Power of what rounding the weight to a step for each output channel adds, with its gradient."""
    groups, _, inputs = layer.weight.shape
    scaled = layer.weight * factor.reshape(groups, 1, inputs).astype(np.float32)
    greatest = np.maximum(scaled.max(2, keepdims=True), np.float32(1e-30))
    scaled /= greatest
    for _ in range(_SQUARINGS):
        np.square(scaled, out=scaled)
    total = np.maximum(scaled.sum(2, keepdims=True), np.float32(1e-30))
    square = (greatest * total ** np.float32(0.5**_SQUARINGS)).astype(np.float64) ** 2
    square *= layer.heed.reshape(groups, -1, 1)
    arriving = (layer.input / factor**2).reshape(groups, inputs)
    scale = layer.taps / (12 * _WEIGHT_STEPS**2)
    value = scale * float((square.sum((1, 2)) * arriving.sum(1)).sum())
    share = (square * (scaled / total)).sum(1)
    by_factor = 2 * scale * (share * arriving.sum(1, keepdims=True) - arriving * square.sum(1))
    return value, by_factor.reshape(-1), None


def _norm(values: Vector) -> tuple[float, Vector]:
    """Norm of order 16 of what is not negative, and its derivative by each logarithm over the norm."""
    greatest = float(values.max(initial=0.0))
    if greatest == 0.0:
        return 0.0, np.zeros_like(values)
    raised = (values / greatest) ** 2**_SQUARINGS
    total = float(raised.sum())
    return greatest * total**0.5**_SQUARINGS, raised / total


def least_noise(
    layers: Sequence[Layer], sets: Sequence[Channels], fixed: set[int], granularity: Granularity, rounds: int
) -> list[Vector]:
    """Factors that make the noise least, by gradient descent (Adam, arXiv 1412.6980, algorithm 1).

    Args:
        layers: The network.
        sets: Its sets of channels.
        fixed: Those of them, by index, whose factors stay 1.
        granularity: As for `noise`.
        rounds: Steps of the descent.

    Returns:
        Factors of each set, float64 [channels], with geometric mean 1 where they are free.
    """
    logs = [np.zeros(each.size) for each in sets]
    first, second = [np.zeros_like(each) for each in logs], [np.zeros_like(each) for each in logs]
    best, found = np.inf, [each.copy() for each in logs]
    for step in range(1, rounds + 2):
        value, gradients, _ = noise(layers, logs, granularity)
        if value < best:
            best, found = value, [each.copy() for each in logs]
        rate = _RATE * (1 - (step - 1) / (rounds + 1))
        for index, gradient in enumerate(gradients):
            if index in fixed:
                continue
            first[index] += 0.1 * (gradient - first[index])
            second[index] += 0.01 * (gradient**2 - second[index])
            mean, square = first[index] / (1 - 0.9**step), second[index] / (1 - 0.99**step)
            logs[index] = logs[index] - rate * mean / (np.sqrt(square) + 1e-12)
    return [np.exp(each) for each in found]


_RATE = 0.12
"""Greatest change of a factor's logarithm in one step."""
