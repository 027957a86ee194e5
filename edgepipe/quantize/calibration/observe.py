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
from edgepipe.quantize.calibration.extremes import Reach
from edgepipe.quantize.calibration.histogram import Histogram
from edgepipe.quantize.calibration.probes import COUNTED, Instrumented, Part, instrument

if TYPE_CHECKING:
    import onnxruntime

_CACHE_BYTES = 64 << 20
"""What the observed tensors of one batch may take: more falls out of the cache before it is read again, and
with less the runtime has too few samples at a time to keep all cores busy."""
_LAYER_BYTES = 1 << 19
"""What the largest tensor of one batch may take where that leaves samples enough: a layer's output is reduced
while it is in the cache that is nearest."""
_FEWEST_SAMPLES, _MOST_SAMPLES = 4, 64
"""Samples of a batch that the two limits leave, the first of them at least."""
_TOGETHER = 32
"""Samples that are reduced and counted at once: many small arrays cost more than a large one."""
_LARGE = 1 << 14
"""Elements of a sample from which on a tensor is reduced as it comes."""


class Observation(msgspec.Struct, frozen=True):
    """What calibration saw of one tensor.

    Attributes:
        low: Least value; 0.0 for what an activation function keeps from being negative.
        high: Greatest value.
        histogram: Counts of values; None where the algorithm needs none.
        mean: Mean of each channel, float64 [channels]; None where it was not asked for.
        typical: Mean over the samples of the least and of the greatest value of a sample; None where
            unknown.
        reaches: How far the samples reach, of each tensor that shares the range; empty where values beyond
            are not to be expected, or unknown.
    """

    low: float
    high: float
    histogram: Histogram | None = None
    mean: NDArray[np.float64] | None = None
    typical: tuple[float, float] | None = None
    reaches: tuple[Reach, ...] = ()


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


class _Observer:
    """Accumulates what one tensor shows that comes out of the session whole."""

    def __init__(self, *, channel_axis: int | None) -> None:
        self.low, self.high = np.inf, -np.inf
        self.channel_axis = channel_axis
        self.channel_total: Any = 0.0
        self.low_total = self.high_total = 0.0
        self.rows = self.row_elements = 0

    def add(self, values: NDArray[np.float32], samples: int) -> None:
        rows = _rows(values, samples)
        lows, highs = rows.min(1), rows.max(1)
        self.low, self.high = np.minimum(self.low, lows.min()), np.maximum(self.high, highs.max())
        self.low_total += lows.sum(dtype=np.float64)
        self.high_total += highs.sum(dtype=np.float64)
        self.rows += len(rows)
        self.row_elements = rows.shape[1]
        if self.channel_axis is not None:
            means = _channel_means(values, self.channel_axis)
            self.channel_total = self.channel_total + means.sum(0, dtype=np.float64) * len(rows) / len(means)

    def result(self, histogram: Histogram | None) -> Observation:
        ends = float(self.low), float(self.high)
        typical = float(self.low_total) / self.rows, float(self.high_total) / self.rows
        mean = None if self.channel_axis is None else self.channel_total / self.rows
        reach = _reach(ends, typical, self.rows, self.row_elements)
        return Observation(*ends, histogram, mean, typical, (reach,))


class _Pooled:
    """Accumulates one figure of the tensors that the session reduces, all of them in a few arrays."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.greatest = {part.output: np.full(len(part.tensors), -np.inf) for part in parts}
        self.totals = {part.output: np.zeros(len(part.tensors)) for part in parts}

    def add(self, arrays: Mapping[str, NDArray[np.float32]], samples: int) -> None:
        for part in self.parts:
            channels = arrays[part.output].reshape(samples, -1)
            highs = np.maximum.reduceat(channels, part.starts, axis=1)
            np.maximum(self.greatest[part.output], highs.max(0), out=self.greatest[part.output])
            self.totals[part.output] += highs.sum(0, dtype=np.float64)

    def extremes(self) -> dict[str, float]:
        """Greatest value of each tensor so far."""
        return _by_tensor(self.parts, self.greatest)

    def sums(self) -> dict[str, float]:
        """Sum over the samples of each one's greatest value."""
        return _by_tensor(self.parts, self.totals)


def _reach(ends: tuple[float, float], typical: tuple[float, float], samples: int, elements: int) -> Reach:
    return Reach(
        low=ends[0],
        high=ends[1],
        typical_low=typical[0],
        typical_high=typical[1],
        samples=samples,
        elements=elements,
    )


def _by_tensor(parts: tuple[Part, ...], arrays: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    return {
        name: value
        for part in parts
        for name, value in zip(part.tensors, arrays[part.output].tolist(), strict=True)
    }


class _Counts:
    """Histograms of all tensors, filled with the values of several batches at once."""

    def __init__(self, tensors: Sequence[str]) -> None:
        self.histograms = {name: Histogram() for name in tensors}
        self._waiting: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tensors}
        self._samples = 0
        self.not_numbers: set[str] = set()

    def add(self, values: Mapping[str, NDArray[np.float32]], samples: int) -> bool:
        """Keeps values; True when there are enough to `flush`."""
        for name, each in values.items():
            self._waiting[name].append(each.ravel())
        self._samples += samples
        return self._samples >= _TOGETHER

    def flush(self, extremes: Mapping[str, tuple[float, float]]) -> None:
        """Counts the values kept; `extremes` are those of everything seen so far, by tensor."""
        self._samples = 0
        for name, waiting in self._waiting.items():
            if waiting and np.isfinite(extremes[name]).all():
                values = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
                if np.isnan(values.min()):
                    self.not_numbers.add(name)
                else:
                    self.histograms[name].add(values, extremes[name])
            waiting.clear()


class _Observers:
    """Accumulates what all tensors show, in a memory that does not grow with the samples."""

    def __init__(self, graph: Instrumented, watch: Watch) -> None:
        self.graph, self.watch = graph, watch
        self.whole = {name: _Observer(channel_axis=watch.channel_axes.get(name)) for name in graph.whole}
        self.high, self.negated_low = _Pooled(graph.high), _Pooled(graph.negated_low)
        self.channel_totals: dict[str, Any] = {part.output: 0.0 for part in graph.mean}
        self.counts = _Counts(watch.tensors if watch.histograms else ())
        self.samples = 0
        self._waiting: list[dict[str, NDArray[np.float32]]] = []
        self._samples_waiting = 0

    def add(self, arrays: Mapping[str, NDArray[np.float32]], samples: int) -> None:
        self.samples += samples
        large = {name for name in self.whole if _is_large(arrays[name], samples)}
        for name in large:
            self.whole[name].add(arrays[name], samples)
        small = {name: each for name, each in arrays.items() if name not in large}
        if self._waiting and any(
            each.shape[1:] != self._waiting[0][name].shape[1:] for name, each in small.items()
        ):
            self._reduce()  # the batch is not their first axis, and the last batch is a smaller one
        self._waiting.append(small)
        self._samples_waiting += samples
        if self._samples_waiting >= _TOGETHER:
            self._reduce()
        if self.watch.histograms:
            values = {name: _thinned(arrays[name], samples) for name in self.whole}
            values |= {name: arrays[output] for name, output in self.graph.sampled.items()}
            if self.counts.add(values, samples):
                self.counts.flush(self._extremes())

    def _reduce(self) -> None:
        """Takes in what waits."""
        waiting, samples = self._waiting, self._samples_waiting
        self._waiting, self._samples_waiting = [], 0
        if not waiting:
            return
        reduced = [name for name in waiting[0] if name in self.whole]
        reduced += [part.output for part in (*self.graph.high, *self.graph.negated_low, *self.graph.mean)]
        arrays = waiting[0]
        if len(waiting) > 1:
            arrays = {name: np.concatenate([each[name] for each in waiting]) for name in reduced}
        for name in reduced:
            if name in self.whole:
                self.whole[name].add(arrays[name], samples)
        self.high.add(arrays, samples)
        self.negated_low.add(arrays, samples)
        for part in self.graph.mean:
            means = arrays[part.output].reshape(samples, -1)
            self.channel_totals[part.output] = self.channel_totals[part.output] + means.sum(0, np.float64)

    def _extremes(self) -> dict[str, tuple[float, float]]:
        """Least and greatest value of each tensor so far."""
        self._reduce()
        lows = self.negated_low.extremes()
        extremes = {name: (0.0 - lows.get(name, 0.0), high) for name, high in self.high.extremes().items()}
        return extremes | {name: (float(each.low), float(each.high)) for name, each in self.whole.items()}

    def result(self) -> dict[str, Observation]:
        self.counts.flush(self._extremes())
        histograms = self.counts.histograms
        low_sums, high_sums, means = self.negated_low.sums(), self.high.sums(), self._means()
        found = {name: each.result(histograms.get(name)) for name, each in self.whole.items()}
        for name, (low, high) in self._extremes().items():
            if name not in found:
                typical = 0.0 - low_sums.get(name, 0.0) / self.samples, high_sums[name] / self.samples
                mean = means.get(name)
                # maxima may drop NaN, which means keep
                sound = mean is None or bool(np.isfinite(mean).all())
                sound = sound and name not in self.counts.not_numbers
                reach = _reach((low, high), typical, self.samples, self.graph.elements[name])
                ends = (low if sound else np.nan), high
                found[name] = Observation(*ends, histograms.get(name), mean, typical, (reach,))
        return {name: found[name] for name in self.watch.tensors}

    def _means(self) -> dict[str, NDArray[np.float64]]:
        return {
            name: mean
            for part in self.graph.mean
            for name, mean in zip(
                part.tensors,
                np.split(self.channel_totals[part.output] / self.samples, part.starts[1:]),
                strict=True,
            )
        }


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
    means = {name for name, axis in watch.channel_axes.items() if axis == 1}
    graph = instrument(model, watch.tensors, histograms=watch.histograms, means=means)
    session = _session(graph.payload)
    size = spec.shape[0] or _batch(graph)
    computed = [name for name in graph.outputs if name != spec.name]
    observers = _Observers(graph, watch)
    with stage(emit, "calibrate", total=len(data)) as running:
        for start in range(0, len(data), size):
            batch = np.ascontiguousarray(data.x[start : start + size], dtype=spec.dtype)
            if len(batch) < size and spec.shape[0] is not None:
                break  # a fixed batch that the last samples do not fill
            results: list[Any] = session.run(computed, {spec.name: batch}) if computed else []
            observers.add(dict(zip(computed, results, strict=True)) | {spec.name: batch}, len(batch))
            running.advance(min(start + size, len(data)))
        running.detail = f"{len(watch.tensors)} tensors"
    observations = observers.result()
    if spec.name in observations:
        # an input's values end where its format does, and a grid for other ends would miss its steps
        observations[spec.name] = msgspec.structs.replace(observations[spec.name], reaches=())
    _require_finite(observations, data)
    return observations


def _batch(graph: Instrumented) -> int:
    """Samples that run together."""
    together, largest = sum(graph.elements.values()), max(graph.elements.values(), default=0)
    near = max(_LAYER_BYTES // max(4 * largest, 1), _FEWEST_SAMPLES)
    return int(np.clip(_CACHE_BYTES // max(4 * together, 1), 1, min(near, _MOST_SAMPLES)))


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


def _is_large(values: NDArray[np.float32], samples: int) -> bool:
    """Whether the tensor of one run is reduced by itself: those without a batch cannot be put together."""
    return values.ndim == 0 or len(values) % samples != 0 or values.size >= _LARGE * samples


def _thinned(values: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """About `COUNTED` values of each sample; an odd step meets every column of an even width."""
    rows = _rows(values, samples)
    return rows[:, :: -(-rows.shape[1] // COUNTED) | 1]


def _rows(values: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """`values` as [samples, values of a sample]; one row where the first axis is no batch."""
    whole = values.ndim > 0 and len(values) % samples == 0
    return values.reshape(samples if whole else 1, -1)


def _channel_means(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Means along every axis but the first and `axis`: float32 [rows, channels]."""
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
        return msgspec.structs.replace(observations[0], mean=None)
    low = min(seen.low for seen in observations)
    high = max(seen.high for seen in observations)
    ends = [seen.typical for seen in observations if seen.typical is not None]
    typical = None
    if len(ends) == len(observations):
        typical = min(end[0] for end in ends), max(end[1] for end in ends)
    reaches: tuple[Reach, ...] = ()
    if all(seen.reaches for seen in observations):
        reaches = tuple(reach for seen in observations for reach in seen.reaches)
    histograms = [seen.histogram for seen in observations if seen.histogram is not None]
    histogram = None
    if len(histograms) == len(observations):
        histogram = Histogram()
        for each in histograms:
            histogram.merge(each)
    return Observation(low, high, histogram, typical=typical, reaches=reaches)
