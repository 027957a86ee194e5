"""Calibration: what values each activation takes, watched while samples run through the float model.

One pass over the data, in constant memory, feeds every way of choosing a range: extremes of all values
and of each sample, a growing histogram and channel means are all that is kept of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.data import Dataset
from edgepipe.errors import DataEmpty, DataNotFinite, ModelError
from edgepipe.events import Emit, stage
from edgepipe.model import Model
from edgepipe.quantize.histogram import Histogram
from edgepipe.quantize.probes import COUNTED, Probe, instrument

if TYPE_CHECKING:
    import onnxruntime

_CACHE_BYTES = 16 << 20
"""What the observed tensors of one batch may take: they are read again while the cache still holds them."""
_MOST_SAMPLES = 64
"""Samples of a batch at most."""


class Observation(msgspec.Struct, frozen=True):
    """What calibration saw of one tensor.

    Attributes:
        low: Least value; 0.0 for what an activation function keeps from being negative.
        high: Greatest value.
        histogram: Counts of values; None where the algorithm needs none.
        mean: Mean of each channel, float64 [channels]; None where it was not asked for.
        typical: Mean over the samples of the least and of the greatest value of a sample; None where
            unknown.
    """

    low: float
    high: float
    histogram: Histogram | None = None
    mean: NDArray[np.float64] | None = None
    typical: tuple[float, float] | None = None


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at.

    Attributes:
        tensors: Names of the activations.
        histograms: Whether to count values.
        channel_axes: Axis of the channels, by tensor, of those whose channel means are wanted.
    """

    tensors: tuple[str, ...]
    histograms: bool
    channel_axes: Mapping[str, int]


class _Statistics(msgspec.Struct, frozen=True):
    """Of one tensor and batch: float32 [samples], [samples], and [samples, channels] where wanted."""

    lows: NDArray[np.float32]
    highs: NDArray[np.float32]
    means: NDArray[np.float32] | None


class _Observer:
    """Accumulates what one tensor shows."""

    def __init__(self, *, counts: bool, channel_axis: int | None) -> None:
        self.low, self.high = np.inf, -np.inf
        self.histogram = Histogram() if counts else None
        self.channel_axis = channel_axis
        self.total: NDArray[np.float64] | None = None
        self.rows = 0
        self.low_total = self.high_total = 0.0

    def add(self, batch: _Statistics, values: NDArray[np.float32] | None) -> None:
        low, high = batch.lows.min(), batch.highs.max()
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)  # these keep NaN
        self.low_total += float(batch.lows.sum(dtype=np.float64))
        self.high_total += float(batch.highs.sum(dtype=np.float64))
        self.rows += len(batch.lows)
        if batch.means is not None:
            total = batch.means.sum(0, dtype=np.float64)
            self.total = total if self.total is None else self.total + total
        if self.histogram is not None and values is not None and np.isfinite([low, high]).all():
            self.histogram.add(values, (float(low), float(high)))

    def result(self) -> Observation:
        sound = np.isfinite([self.low, self.high]).all() and (
            self.total is None or np.isfinite(self.total).all()
        )
        return Observation(
            low=float(self.low) if sound else np.nan,
            high=float(self.high),
            histogram=self.histogram,
            mean=None if self.total is None or self.channel_axis is None else self.total / self.rows,
            typical=(self.low_total / self.rows, self.high_total / self.rows),
        )


def observe(model: Model, data: Dataset, watch: Watch, emit: Emit) -> dict[str, Observation]:
    """Runs `data` through the float model and watches its activations.

    Args:
        model: Float ONNX model with one input.
        data: Samples for it.
        watch: What to look at.
        emit: Where progress goes.

    Returns:
        An observation for each tensor watched.

    Raises:
        ModelError: The model has more than one input.
        DataEmpty: The samples do not fill one batch.
        DataNotFinite: An activation is NaN or infinite.
    """
    _check(model, data)
    spec = model.inputs[0]
    observers = {
        name: _Observer(counts=watch.histograms, channel_axis=watch.channel_axes.get(name))
        for name in watch.tensors
    }
    graph = instrument(model, watch.tensors, histograms=watch.histograms)
    session = _session(graph.payload)
    size = spec.shape[0] or int(np.clip(_CACHE_BYTES // max(4 * graph.elements, 1), 1, _MOST_SAMPLES))
    computed = list(
        dict.fromkeys(name for probe in graph.probes for name in probe.outputs if name != spec.name)
    )
    with stage(emit, "calibrate", total=len(data)) as running:
        for start in range(0, len(data), size):
            batch = np.ascontiguousarray(data.x[start : start + size], dtype=spec.dtype)
            if len(batch) < size and spec.shape[0] is not None:
                break  # a fixed batch that the last samples do not fill
            results: list[Any] = session.run(computed, {spec.name: batch}) if computed else []
            arrays = dict(zip(computed, results, strict=True)) | {spec.name: batch}
            for probe in graph.probes:
                observer = observers[probe.tensor]
                observer.add(*_read(probe, arrays, len(batch), observer.channel_axis))
            running.advance(min(start + size, len(data)))
        running.detail = f"{len(watch.tensors)} tensors"
    observations = {name: observer.result() for name, observer in observers.items()}
    _require_finite(observations, data)
    return observations


def _check(model: Model, data: Dataset) -> None:
    if len(model.inputs) != 1:
        raise ModelError(
            "calibration feeds one input, and the model has several",
            where=model.name,
            got=", ".join(map(str, model.inputs)),
            remedy="make the other inputs constants of the model",
        )
    batch = model.inputs[0].shape[0]
    if len(data) < (batch or 1):
        raise DataEmpty(
            "too few samples to calibrate on",
            where=data.source,
            got=f"{len(data)} samples, and the model's batch is {batch or 'dynamic'}",
            remedy="give more samples, or a model with a dynamic batch",
        )


def _session(payload: bytes) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])


def _read(
    probe: Probe, arrays: Mapping[str, NDArray[np.float32]], samples: int, channel_axis: int | None
) -> tuple[_Statistics, NDArray[np.float32] | None]:
    """What one batch shows of a tensor, and the values to count."""
    values = None if probe.values is None else arrays[probe.values]
    if probe.high is None or probe.mean is None:
        assert values is not None  # noqa: S101 - a tensor that is not pooled comes whole
        rows = _rows(values, samples)
        statistics = _Statistics(rows.min(1), rows.max(1), _channel_means(values, channel_axis))
        # an odd step meets every column of a feature map of even width
        return statistics, rows[:, :: -(-rows.shape[1] // COUNTED) | 1]
    highs = _rows(arrays[probe.high], samples).max(1)
    lows = np.zeros_like(highs)
    if probe.negated_low is not None:
        lows = -_rows(arrays[probe.negated_low], samples).max(1)
    means = arrays[probe.mean]
    # maxima drop NaN, which means keep
    return _Statistics(lows, highs, means.reshape(means.shape[:2])), values


def _rows(values: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """`values` as [samples, values of a sample]; one row where the first axis is no batch."""
    whole = values.ndim > 0 and len(values) % samples == 0
    return values.reshape(samples if whole else 1, -1)


def _channel_means(values: NDArray[np.float32], axis: int | None) -> NDArray[np.float32] | None:
    if axis is None:
        return None
    rows = np.moveaxis(values, axis, 1)
    flat = np.ascontiguousarray(rows).reshape(*rows.shape[:2], -1)
    # a product with ones is the fastest sum there is
    return np.asarray(flat @ np.full(flat.shape[2], 1 / flat.shape[2], np.float32), np.float32)


def _require_finite(observations: Mapping[str, Observation], data: Dataset) -> None:
    for name, seen in observations.items():
        if not np.isfinite([seen.low, seen.high]).all():
            raise DataNotFinite(
                "the float model gives NaN or infinity on the calibration samples",
                where=f"activation {name}",
                got=f"values from {seen.low} to {seen.high}",
                remedy=f"check the preprocessing of {data.source}, and that the float model is sound",
            )


def joined(observations: Sequence[Observation]) -> Observation:
    """What several tensors show together that must share one grid."""
    if len(observations) == 1:
        first = observations[0]
        return Observation(first.low, first.high, first.histogram, typical=first.typical)
    low = min(seen.low for seen in observations)
    high = max(seen.high for seen in observations)
    ends = [seen.typical for seen in observations if seen.typical is not None]
    typical = None
    if len(ends) == len(observations):
        typical = min(end[0] for end in ends), max(end[1] for end in ends)
    histograms = [seen.histogram for seen in observations if seen.histogram is not None]
    if len(histograms) < len(observations):
        return Observation(low, high, typical=typical)
    histogram = Histogram()
    for each in histograms:
        histogram.merge(each)
    return Observation(low, high, histogram, typical=typical)
