"""How far the upper bound of a clip can move before its output changes on calibration samples, by channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.data import Dataset
from edgepipe.events import Emit, stage
from edgepipe.model import Model

if TYPE_CHECKING:
    import onnxruntime

_OCTAVE = 4
"""Bounds that are tried for each factor of two."""
_OCTAVES = (7, 3)
"""Octaves below and above the clip's own bound in which other bounds are tried."""
_POSITIONS = 1 << 10
"""Positions of a feature map that are counted, evenly spaced; the greatest value counts in any case."""
_BATCH = 8


class Freedom(msgspec.Struct, frozen=True):
    """How far the bound of a clip can move: float64 [channels], factors of the bound that it has.

    Attributes:
        least: Lowest bound that changes too little to matter, at most 1.
        most: Highest such bound, at least 1; infinite where the clip never acts.
    """

    least: NDArray[np.float64]
    most: NDArray[np.float64]


class Tolerance(msgspec.Struct, frozen=True):
    """What change of an activation does not matter.

    Attributes:
        change: Mean squared change, as a multiple of the error of rounding [0, bound] to 8 bits, which
            is ``(bound / 255)**2 / 12``.
        margin: Standard deviations from the mean of a channel that its values may lie at.
    """

    change: float
    margin: float


class _Tail:
    """Counts the values of each channel in bins that double in width every few, with their moments."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        below, above = _OCTAVES
        self.edges = bound * 2.0 ** (np.arange(-below * _OCTAVE, above * _OCTAVE + 1) / _OCTAVE)
        self.moments: NDArray[np.float64] | None = None
        self.peak: NDArray[np.float64] | None = None
        self.total = np.zeros((2, 1))
        self.rows = 0

    def add(self, values: NDArray[np.float32], axis: int) -> None:
        """Counts values of any shape, with the channels on `axis`."""
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        peak = rows.max(1).astype(np.float64)
        self.peak = peak if self.peak is None else np.maximum(self.peak, peak)
        per_sample = max(1, rows.shape[1] // len(values))
        step = max(1, -(-per_sample // _POSITIONS))
        rows = rows[:, :: step if step == 1 else step | 1]
        channels, bins = len(rows), len(self.edges) + 1
        positive = np.maximum(rows, np.float32(0))
        offset = -np.log2(self.edges[0])
        with np.errstate(divide="ignore"):
            places = np.floor((np.log2(positive) + np.float32(offset)) * _OCTAVE) + 1
        places = np.clip(places, 0, bins - 1).astype(np.int64) + bins * np.arange(channels)[:, None]
        flat, weights = places.reshape(-1), positive.reshape(-1).astype(np.float64)
        added = np.stack([
            np.bincount(flat, powers, channels * bins).reshape(channels, bins)
            for powers in (None, weights, weights * weights)
        ])  # fmt: skip
        self.moments = added if self.moments is None else self.moments + added
        wide = rows.astype(np.float64)
        self.total = self.total + np.stack([wide.sum(1), (wide * wide).sum(1)])
        self.rows += rows.shape[1]

    def freedom(self, tolerated: float, margin: float) -> Freedom:
        """How far the bound can move before the mean squared change of a channel exceeds `tolerated`.

        Other samples may have greater values than those that were seen: a channel is taken to reach its
        mean and `margin` standard deviations, if that is more.
        """
        assert self.moments is not None  # noqa: S101 - nothing is asked of a tail without a sample
        assert self.peak is not None  # noqa: S101 - likewise
        mean = self.total[0] / self.rows
        deviation = np.sqrt(np.maximum(self.total[1] / self.rows - mean * mean, 0.0))
        reach = np.maximum(self.peak, mean + margin * deviation) / self.bound
        reach = np.maximum(reach, 2.0 ** -_OCTAVES[0])
        least, most = np.minimum(reach, 1.0), np.where(reach <= 1.0, np.inf, 1.0)
        if tolerated == 0.0:
            return Freedom(least, most)
        fine = np.stack([self._change(place) for place in range(len(self.edges))], 1) <= tolerated
        middle, tried = _OCTAVES[0] * _OCTAVE, self.edges / self.bound
        low, high = fine[:, : middle + 1].argmax(1), middle + np.cumprod(fine[:, middle:], 1).sum(1) - 1
        least = np.minimum(least, tried[low])
        return Freedom(least, np.where(fine[:, -1], most, np.maximum(most, tried[high])))

    def _change(self, place: int) -> NDArray[np.float64]:
        """Mean squared change of the output where the bound moves to an edge, float64 [channels]."""
        assert self.moments is not None  # noqa: S101 - see `freedom`
        count, total, square = self.moments
        middle = _OCTAVES[0] * _OCTAVE
        first, last = min(place, middle), max(place, middle)
        low, width = self.edges[first], self.edges[last] - self.edges[first]
        inside, beyond = slice(first + 1, last + 1), slice(last + 1, None)
        partial = (square - 2 * low * total + low * low * count)[:, inside].sum(1)
        whole = width * width * count[:, beyond].sum(1)
        return np.asarray(np.maximum(partial + whole, 0.0) / self.rows, np.float64)


def measure_freedom(
    model: Model, clips: Mapping[str, tuple[float, int]], data: Dataset, tolerance: Tolerance, emit: Emit
) -> dict[str, Freedom]:
    """How far the upper bounds of clips can move, on samples.

    Args:
        model: Float ONNX model with one input.
        clips: Bound and axis of the channels, by the name of the clip's input.
        data: Samples for it.
        tolerance: What change does not matter.
        emit: Where progress goes.
    """
    if not clips:
        return {}
    session = _session(model, list(clips))
    tails = {name: _Tail(bound) for name, (bound, _) in clips.items()}
    spec = model.inputs[0]
    size = spec.shape[0] or _BATCH
    with stage(emit, "measure clips", total=len(data)) as running:
        for start in range(0, len(data), size):
            batch = np.ascontiguousarray(data.x[start : start + size], dtype=spec.dtype)
            if len(batch) < size and spec.shape[0] is not None:
                break  # a fixed batch that the last samples do not fill
            for name, values in zip(clips, session.run(list(clips), {spec.name: batch}), strict=True):
                tails[name].add(values, clips[name][1])
            running.advance(min(start + size, len(data)))
    found = {}
    for name, tail in tails.items():
        noise = (tail.bound / 255) ** 2 / 12
        found[name] = tail.freedom(tolerance.change * noise, tolerance.margin)
    return found


def _session(model: Model, tensors: list[str]) -> onnxruntime.InferenceSession:
    import onnx
    import onnxruntime

    proto = model.to_onnx()
    present = {value.name for value in [*proto.graph.output, *proto.graph.input]}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in present
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
