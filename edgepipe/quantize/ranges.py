"""Calibration: what values each activation takes, watched while samples run through the float model.

One pass over the data, in constant memory: extremes, a growing histogram and channel means are all
that is kept of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.data import Dataset
from edgepipe.errors import DataEmpty, DataNotFinite, ModelError
from edgepipe.events import Emit, stage
from edgepipe.model import Model
from edgepipe.quantize.grid import Grid, activation_grid
from edgepipe.quantize.histogram import Histogram

if TYPE_CHECKING:
    import onnxruntime

Algorithm = Literal["minmax", "percentile", "mse"]
_MEMORY_BYTES = 128 << 20
"""What the observed tensors of one batch may take."""
_COUNTED = 1 << 14
"""Values of a tensor and sample that the histogram counts, evenly spaced over the tensor."""
_CANDIDATES = 48
"""Clipping ratios that the search for the least error tries for an end of the range."""


class Observation(msgspec.Struct, frozen=True):
    """What calibration saw of one tensor.

    Attributes:
        low: Least value.
        high: Greatest value.
        histogram: Counts of values; None where the algorithm needs none.
        mean: Mean of each channel, float64 [channels]; None where it was not asked for.
    """

    low: float
    high: float
    histogram: Histogram | None = None
    mean: NDArray[np.float64] | None = None


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
    """Accumulates what one tensor shows."""

    def __init__(self, *, counts: bool, channel_axis: int | None) -> None:
        self.low = self.high = 0.0
        self.histogram = Histogram() if counts else None
        self.channel_axis = channel_axis
        self.total: NDArray[np.float64] | None = None
        self.rows = 0
        self._seen = False

    def add(self, values: NDArray[np.float32]) -> None:
        low, high = float(values.min()), float(values.max())
        self.low = min(self.low, low) if self._seen else low
        self.high = max(self.high, high) if self._seen else high
        self._seen = True
        if self.histogram is not None and np.isfinite([low, high]).all():
            flat = values.reshape(len(values), -1)
            step = max(1, -(-flat.shape[1] // _COUNTED))
            # an odd step meets every column of a feature map of even width
            self.histogram.add(flat[:, :: step | 1], (low, high))
        if self.channel_axis is not None:
            axes = tuple(axis for axis in range(values.ndim) if axis != self.channel_axis)
            total = values.sum(axes, dtype=np.float64)
            self.total = total if self.total is None else self.total + total
            self.rows += values.size // values.shape[self.channel_axis]

    def result(self) -> Observation:
        mean = None if self.total is None else self.total / self.rows
        return Observation(self.low, self.high, self.histogram, mean)


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
    if len(model.inputs) != 1:
        raise ModelError(
            "calibration feeds one input, and the model has several",
            where=model.name,
            got=", ".join(map(str, model.inputs)),
            remedy="make the other inputs constants of the model",
        )
    spec = model.inputs[0]
    if len(data) < (spec.shape[0] or 1):
        raise DataEmpty(
            "too few samples to calibrate on",
            where=data.source,
            got=f"{len(data)} samples, and the model's batch is {spec.shape[0] or 'dynamic'}",
            remedy="give more samples, or a model with a dynamic batch",
        )
    session = _session(model, watch.tensors)
    names = list(watch.tensors)
    observers = {
        name: _Observer(counts=watch.histograms, channel_axis=watch.channel_axes.get(name)) for name in names
    }
    size = _batch_size(model, names)
    with stage(emit, "calibrate", total=len(data)) as running:
        for start in range(0, len(data), size):
            batch = np.ascontiguousarray(data.x[start : start + size], dtype=spec.dtype)
            if len(batch) < size and spec.shape[0] is not None:
                break  # a fixed batch that the last samples do not fill
            computed = [name for name in names if name != spec.name]
            results: list[Any] = session.run(computed, {spec.name: batch}) if computed else []
            for name, values in zip(computed, results, strict=True):
                observers[name].add(values)
            if spec.name in observers:
                observers[spec.name].add(batch)
            running.advance(min(start + size, len(data)))
        running.detail = f"{len(names)} tensors"
    observations = {name: observer.result() for name, observer in observers.items()}
    _require_finite(observations, data)
    return observations


def _session(model: Model, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session that returns every tensor watched."""
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


def _batch_size(model: Model, names: Sequence[str]) -> int:
    """Samples in a batch: the model's own number, or as many as the memory set aside holds."""
    fixed = model.inputs[0].shape[0]
    if fixed is not None:
        return fixed
    wanted = set(names)
    elements = 0
    graph = model.to_onnx().graph
    for value in [*graph.value_info, *graph.input, *graph.output]:
        if value.name in wanted:
            elements += int(np.prod([dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]))
    return int(np.clip(_MEMORY_BYTES // max(4 * elements, 1), 1, 64))


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
    low = min(seen.low for seen in observations)
    high = max(seen.high for seen in observations)
    if len(observations) == 1 or any(seen.histogram is None for seen in observations):
        return Observation(low, high, observations[0].histogram if len(observations) == 1 else None)
    histogram = Histogram()
    for seen in observations:
        assert seen.histogram is not None  # noqa: S101 - looked at above
        histogram.merge(seen.histogram)
    return Observation(low, high, histogram)


def choose_grid(
    seen: Observation, algorithm: Algorithm, *, percentile: float, symmetric: bool, bits: int = 8
) -> Grid:
    """The grid of a tensor that was observed.

    Args:
        seen: What calibration saw.
        algorithm: "minmax" holds every value seen; "percentile" all but the outermost share of them;
            "mse" clips where that makes the mean squared error least.
        percentile: Share of values to hold at each end, in per cent.
        symmetric: Whether the zero point must be 0.
        bits: Bits of an integer; 16 leave so little rounding error that nothing is clipped for it.
    """
    low, high = seen.low, seen.high
    if bits == 16:
        return activation_grid(low, high, bits=bits)
    if seen.histogram is not None and algorithm == "percentile":
        low, high = percentile_range(seen.histogram, percentile)
    elif seen.histogram is not None and algorithm == "mse":
        low, high = least_error_range(seen.histogram, symmetric=symmetric)
    return activation_grid(low, high, symmetric=symmetric)


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """Ends that leave out ``100 - percentile`` per cent of the values on either side, at most."""
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    outside = 1 - percentile / 100
    first = int(np.searchsorted(shares, outside, side="right"))
    last = int(np.searchsorted(shares, 1 - outside, side="left"))
    low = (histogram.first + first) * histogram.width
    high = (histogram.first + last + 1) * histogram.width
    return max(low, histogram.low), min(high, histogram.high)


def least_error_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """Ends of the range that make the mean squared quantization error of the counts least.

    The error is measured, rounding and clipping together, for a series of clipping ratios at one end,
    then at the other (Nagel et al. 2021, arXiv 2106.08295, section 2.3.1 and equation 13).
    """
    ends = [min(histogram.low, 0.0), max(histogram.high, 0.0)]
    for end in (1, 0, 1, 0):
        if ends[end] == 0.0:
            continue
        full = histogram.high if end else histogram.low
        candidates = [full * ratio for ratio in np.linspace(1.0, 0.25, _CANDIDATES)]
        trials = [(ends[0], high) if end else (high, ends[1]) for high in candidates]
        if symmetric:
            trials = [(-max(abs(low), abs(high)), max(abs(low), abs(high))) for low, high in trials]
        errors = [
            _squared_error(histogram, activation_grid(low, high, symmetric=symmetric)) for low, high in trials
        ]
        ends[end] = candidates[int(np.argmin(errors))]
    return ends[0], ends[1]


def _squared_error(histogram: Histogram, grid: Grid) -> float:
    """Sum of squared differences between the counted values and their grid points."""
    centers = histogram.centers
    steps = np.clip(np.rint(centers / grid.scale) + grid.zero_point, grid.first, grid.last)
    errors = (steps - grid.zero_point) * grid.scale - centers
    return float(np.dot(histogram.counts, errors * errors))
