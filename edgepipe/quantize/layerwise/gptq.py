"""Rounding of weights by the error of what they compute, as pure functions of arrays.

A linear op computes ``y = W x``. Rounding each weight to its nearest grid point makes the error of the
weights least; what counts is the error of `y` on the inputs that occur, which the second moments of the
inputs say: ``E |(T - Q) x|^2 = tr((T - Q) H (T - Q)')`` with ``H = E[x x']``. All functions minimise that
form. Its rows are independent, so they are rounded together, as columns of arrays.

Shapes: `groups` (of a grouped convolution; 1 as a rule), `inputs` that an output sums over, and `outputs`
of a group. Weights stand as ``[groups, inputs, outputs]``, so that one input of all outputs is contiguous.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BLOCK = 64
"""Inputs that are rounded before the error is passed on to all that follow."""
_CANDIDATES = 6
"""Scales that are tried for a weight of few bits."""
_FINE_CANDIDATES = 3
"""Scales that are tried for a weight of 8 bits, whose rounding depends little on them."""
_FINE = 127
"""The greatest integer of 8 bits."""
_NARROWEST = {127: 0.95, 63: 0.9, 31: 0.8, 15: 0.7, 7: 0.5, 3: 0.4, 1: 0.3}
"""The least part of the greatest magnitude that a scale is tried for, by the greatest integer."""
_ROUNDS = 2
"""Times that the integers descend and the scales are fitted."""
_SWEEPS = 4
"""Times that a descent goes through all inputs, at most."""


class Moments(msgspec.Struct, frozen=True):
    """What the inputs of a linear op look like, in the float network and in the quantized one.

    Attributes:
        gram: ``E[x^ x^']`` of the quantized network's inputs, float64 [groups, inputs, inputs].
        cross: ``E[x^ x']`` with the float network's inputs `x`, of the same shape.
    """

    gram: Array
    cross: Array

    def damped(self, damping: float) -> Moments:
        """Both with a share of the mean diagonal of `gram` added to their diagonals.

        That bounds the condition number, and draws what the samples leave open to the float weight.
        """
        size = self.gram.shape[-1]
        level = damping * np.trace(self.gram, axis1=1, axis2=2) / size
        ridge = np.maximum(level, np.finfo(np.float64).tiny ** 0.5)[:, None, None] * np.eye(size)
        return Moments(self.gram + ridge, self.cross + ridge)


def least_squares_weight(weight: Array, moments: Moments) -> Array:
    """The real weight that computes on the quantized network's inputs what `weight` does on the float ones.

    ``argmin_T E |W x - T x^|^2``, which for damped moments is a ridge regression towards `weight`.

    Args:
        weight: float64 [groups, inputs, outputs].
        moments: Of its inputs, damped.
    """
    return _solve(moments.gram, moments.cross @ weight)


def _solve(gram: Array, right: Array) -> Array:
    """``gram^-1 right`` for each group; a large matrix by its Cholesky factor, at half the cost."""
    from scipy import linalg

    if len(gram) > 1:
        return np.asarray(np.linalg.solve(gram, right), np.float64)
    factor = linalg.cho_factor(gram[0], lower=True, check_finite=False)
    return np.asarray(linalg.cho_solve(factor, right[0], check_finite=False), np.float64)[None]


def _inverse_factor(gram: Array) -> Array:
    """The upper U with ``gram^-1 = U' U``, for each group.

    With J the reversal of order and ``J gram J = L L'``, it is ``J L^-1 J``: no inverse of `gram` is needed.
    """
    from scipy import linalg

    lower = np.linalg.cholesky(gram[:, ::-1, ::-1])
    inverse = np.linalg.inv(lower) if len(gram) > 1 else linalg.lapack.dtrtri(lower[0], lower=1)[0][None]
    return np.ascontiguousarray(np.triu(inverse[:, ::-1, ::-1]))


def fitting_loss(weight: Array, trial: Array, moments: Moments) -> float:
    """``E |W x - T x^|^2`` up to the part that does not depend on the trial T.

    Args:
        weight: The float weight W, float64 [groups, inputs, outputs].
        trial: What takes its place on the quantized network's inputs, likewise.
        moments: Of inputs that `trial` was not fitted to.
    """
    return float(np.sum(trial * (moments.gram @ trial - 2 * moments.cross @ weight)))


def output_error(target: Array, rounded: Array, gram: Array) -> Array:
    """``E |(T - Q) x|^2`` of each output, float64 [groups, outputs].

    Args:
        target: The real weight, float64 [groups, inputs, outputs].
        rounded: What stands for it, likewise.
        gram: Second moments of the inputs, float64 [groups, inputs, inputs].
    """
    error = target - rounded
    return np.asarray(np.sum(error * (gram @ error), axis=1), np.float64)


def round_in_order(target: Array, gram: Array, scales: Array, largest: int | Array) -> Array:
    """Rounds input after input, each error made up for by the inputs that are still real.

    GPTQ: Frantar et al. 2023 (arXiv 2210.17323), algorithm 1, whose update is equation 2, with the inputs in
    order of descending diagonal: those that weigh most are rounded while most others can make up for them.

    Args:
        target: The real weight, float64 [groups, inputs, outputs].
        gram: Positive definite, float64 [groups, inputs, inputs].
        scales: Step of each output, float64 [groups, outputs].
        largest: The greatest magnitude of an integer, or float64 [groups, outputs] of them.

    Returns:
        Integers as float64, shaped as `target`.
    """
    order = np.argsort(-np.diagonal(gram, axis1=1, axis2=2), axis=1, kind="stable")
    rest = np.take_along_axis(target, order[:, :, None], 1) / scales[:, None, :]
    sorted_gram = np.take_along_axis(np.take_along_axis(gram, order[:, :, None], 1), order[:, None, :], 2)
    factor = _inverse_factor(sorted_gram)
    factor = factor / np.diagonal(factor, axis1=1, axis2=2)[:, :, None]
    inputs = target.shape[1]
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty((len(target), stop - start, target.shape[2]))
        for index in range(start, stop):
            rounded = np.clip(np.rint(rest[:, index]), -largest, largest)
            error = rest[:, index] - rounded
            rest[:, index + 1 : stop] -= factor[:, index, index + 1 : stop, None] * error[:, None]
            rest[:, index], errors[:, index - start] = rounded, error
        rest[:, stop:] -= np.swapaxes(factor[:, start:stop, stop:], 1, 2) @ errors
    integers = np.empty_like(rest)
    np.put_along_axis(integers, order[:, :, None], rest, 1)
    return integers


def descend(integers: Array, target: Array, gram: Array, scales: Array, largest: int, sweeps: int) -> Array:
    """Moves each integer to its best value given all others, input after input; the error never grows.

    Coordinate descent on the quadratic form: with the gradient ``g = H (t - s q)`` of an output, the best
    integer for input `i` is ``q_i + g_i / (s H_ii)`` rounded to the nearest.

    Args:
        integers: Where to start, float64 [groups, inputs, outputs].
        target: The real weight, likewise.
        gram: Positive definite, float64 [groups, inputs, inputs].
        scales: Step of each output, float64 [groups, outputs].
        largest: The greatest magnitude of an integer.
        sweeps: Times that all inputs are gone through, at most.
    """
    integers = integers.copy()
    # outputs first: a step of one of them touches adjacent numbers
    gradient = np.swapaxes(target / scales[:, None] - integers, 1, 2) @ gram
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    for _ in range(sweeps):
        moved = False
        for index in range(integers.shape[1]):
            old = integers[:, index]
            wish = old + gradient[:, :, index] / diagonal[:, index, None]
            # half a step and a little more: a tie is left as it is, which ends the descent
            better = np.where(np.abs(wish - old) > 0.5 + 1e-9, np.rint(wish), old)
            move = np.clip(better, -largest, largest) - old
            touched = np.flatnonzero(move.any(axis=0))
            if len(touched) == 0:
                continue
            moved = True
            gradient[:, touched] -= move[:, touched, None] * gram[:, index, None, :]
            integers[:, index] = old + move
        if not moved:
            break
    return integers


def fitted_scales(
    integers: Array, target: Array, gram: Array, scales: Array, *, shared: bool = False
) -> Array:
    """The scales that make the error least for integers that stay as they are, float64 [groups, outputs].

    ``s = (q' H t) / (q' H q)`` for each output, or summed over all of them where they share one. An output
    of zeros keeps its scale, as does one whose best would be less than half or more than twice as large.
    """
    weighted = gram @ integers
    power, overlap = np.sum(integers * weighted, axis=1), np.sum(weighted * target, axis=1)
    if shared:
        power, overlap = np.full_like(power, power.sum()), np.full_like(overlap, overlap.sum())
    best = overlap / np.where(power > 0, power, 1.0)
    sound = (power > 0) & (best > 0.5 * scales) & (best < 2 * scales)
    return np.where(sound, best, scales)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The grid that a weight is to be rounded to.

    Attributes:
        scales: Scale of each output for its greatest magnitude, float64 [groups, outputs].
        least: Scales that none may fall below, likewise.
        largest: The greatest magnitude of an integer.
        shared: Whether all outputs have one scale.
    """

    scales: Array
    least: Array
    largest: int
    shared: bool


def round_weight(target: Array, gram: Array, step: Step) -> tuple[Array, Array]:
    """Integers and scales of a weight with the least error that was found.

    Scales for several parts of the greatest magnitude are tried, `round_in_order` with each; each output
    (or all of them, for a shared scale) takes its best. Descent on the integers and fitting of the scales
    then alternate. The error is at no point greater than that of rounding to the nearest.

    Args:
        target: The real weight, float64 [groups, inputs, outputs].
        gram: Positive definite second moments of its inputs, float64 [groups, inputs, inputs].
        step: The grid.

    Returns:
        Integers as float64, shaped as `target`, and float64 scales [groups, outputs], all of them float32
        values.
    """
    integers, scales = _first_rounding(target, gram, step)
    for _ in range(_ROUNDS):
        integers = descend(integers, target, gram, scales, step.largest, _SWEEPS)
        fitted = fitted_scales(integers, target, gram, scales, shared=step.shared)
        scales = np.maximum(fitted, step.least).astype(np.float32).astype(np.float64)
    return descend(integers, target, gram, scales, step.largest, _SWEEPS), scales


def _first_rounding(target: Array, gram: Array, step: Step) -> tuple[Array, Array]:
    """The best of `round_in_order` and of rounding to nearest, over the candidates for the scales."""
    candidates = _FINE_CANDIDATES if step.largest >= _FINE else _CANDIDATES
    ratios = np.linspace(1.0, _NARROWEST[step.largest], candidates)
    scales = np.maximum(step.scales[:, :, None] * ratios, step.least[:, :, None])
    groups, inputs, outputs = target.shape
    repeated = np.repeat(target, candidates, axis=2)
    ordered = round_in_order(repeated, gram, scales.reshape(groups, -1), step.largest)
    nearest = np.clip(np.rint(target / step.scales[:, None]), -step.largest, step.largest)
    integers = np.append(ordered.reshape(groups, inputs, outputs, -1), nearest[..., None], axis=3)
    scales = np.append(scales, scales[..., :1], axis=2)
    rounded = (integers * scales[:, None]).reshape(groups, inputs, -1)
    every = np.repeat(target, candidates + 1, axis=2)
    errors = output_error(every, rounded, gram).reshape(scales.shape)
    if step.shared:
        errors = np.broadcast_to(errors.sum((0, 1)), errors.shape)
    best = errors.argmin(axis=2)
    chosen = np.take_along_axis(integers, best[:, None, :, None], 3)[..., 0]
    return chosen, np.take_along_axis(scales, best[..., None], 2)[..., 0]
