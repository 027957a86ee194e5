"""Diagnosing a quantized model: each layer's error, its own part of it, and what lies beyond its grid.

A few samples run through two networks: one in which every layer is quantized and reads what the
float model computes (a layer's own error), and the quantized model as it is (all error up to there).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepipe.errors import DataEmpty, ModelUnreadable
from edgepipe.events import Emit, silent, stage
from edgepipe.graph.links import Links
from edgepipe.model import Model
from edgepipe.quantize.explain.diagnosis import (
    ActivationDiagnosis,
    Diagnosis,
    LayerDiagnosis,
    WeightDiagnosis,
)
from edgepipe.quantize.explain.pairing import Constant, Junction, Pairing, pair, rounds_nothing
from edgepipe.quantize.explain.splice import Form, Parts, Spliced, rounded_name

if TYPE_CHECKING:
    import onnxruntime

Tensors = list[NDArray[np.float32]]

FEWEST, MOST = 4, 16
"""Samples that a sparing diagnosis runs."""
ENOUGH = 1 << 24
"""Values of all layers together that it looks at, unless the fewest samples have more."""
_BATCH = 2
"""Samples in a batch, where the model leaves that open: all layers' tensors are held at once."""
_DIGITS = 2
"""Digits after the point of an SQNR: what the order of summation leaves alone."""


def diagnose(
    reference: Model, quantized: Model, x: NDArray[Any], emit: Emit = silent, *, sparing: bool = False
) -> Diagnosis:
    """Sets a quantized model beside its float model, layer by layer.

    Args:
        reference: Float ONNX with one input.
        quantized: The same model in QDQ form, by any tool that keeps the names of tensors.
        x: Samples in the model's own layout and type: [n, ...].
        emit: Where progress goes.
        sparing: Whether fewer of the samples will do where each has many values: what every job can afford.

    Raises:
        ModelError: The two models share no tensor.
        ModelUnreadable: ONNX Runtime refuses one of them.
        DataEmpty: There are fewer samples than the model's batch holds.
    """
    pairing = pair(reference, quantized)
    shown = layers_of(pairing)
    batches = batches_of(reference, x)
    totals = _Totals(shown)
    with stage(emit, "diagnose layers", total=sum(map(len, batches))) as running:
        names = [junction.name for junction in shown]
        own = [rounded_name(junction) for junction in shown]
        everywhere: dict[str, Form] = {junction.name: "rounded" for junction in pairing.junctions}
        parts = Parts(pairing)
        networks = [
            Spliced(parts, {}, {}).network([*names, *own]),
            Spliced(parts, everywhere, {}).network(own),
        ]
        # Side by side with a thread each: more would make sums depend on how many cores there are.
        with ThreadPoolExecutor(len(networks)) as pool:
            sessions = list(pool.map(open_spliced, networks))
            for batch in batches:
                feed = {reference.inputs[0].name: batch}
                apart, through = pool.map(partial(_run, feed), sessions)
                totals.add(len(batch), apart, through)
                running.advance(totals.samples)
                if sparing and totals.samples >= FEWEST and totals.values >= ENOUGH:
                    break
        running.detail = f"{len(shown)} layers on {totals.samples} samples"
    return totals.result()


def _run(feed: dict[str, NDArray[Any]], session: onnxruntime.InferenceSession) -> Tensors:
    return list(session.run(None, feed))


def evenly(total: int, count: int) -> list[int]:
    """Up to `count` indices below `total`, evenly spaced."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


def layers_of(pairing: Pairing) -> list[Junction]:
    """Junctions that round something: all but those whose op moves elements of one grid."""
    links = Links(pairing.quantized.graph)
    grids = {junction.rounded: junction.grid for junction in pairing.junctions}
    shown = []
    for junction in pairing.junctions:
        node = links.producer.get(junction.source)
        inputs = [name for name in node.input if name in grids] if node is not None else []
        if not inputs or not rounds_nothing(junction, grids, inputs):
            shown.append(junction)
    return shown


def batches_of(model: Model, x: NDArray[Any]) -> list[NDArray[Any]]:
    """Samples in batches of the size that the model has, or one that is small in memory.

    Raises:
        DataEmpty: They do not fill one.
    """
    fixed = model.inputs[0].shape[0]
    size = fixed or _BATCH
    batches = [np.ascontiguousarray(x[start : start + size]) for start in range(0, len(x), size)]
    full = [batch for batch in batches if len(batch) == size or fixed is None]
    if not full:
        raise DataEmpty(
            "too few samples to compare the models on",
            where=model.name,
            got=f"{len(x)} samples, and the model's batch is {fixed or 'dynamic'}",
            remedy="give more samples",
        )
    return full


def open_spliced(payload: bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session that computes what the graph says: no integer kernels, whose saturation differs by CPU.

    Raises:
        ModelUnreadable: ONNX Runtime does not accept it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen unrelated classes
        raise ModelUnreadable(
            "ONNX Runtime does not accept the two models joined",
            got=str(error).splitlines()[0],
            remedy="check that the float model is the one that was quantized",
        ) from error


class _Noise:
    """Sums the power of a signal and of its error."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, expected: NDArray[np.float32], given: NDArray[np.float32]) -> None:
        self.signal += _power(expected)
        self.noise += _power(given - expected)

    @property
    def sqnr_db(self) -> float | None:
        return decibels(self.signal, self.noise)


class _Totals:
    """What all layers and the outputs show, summed over the samples."""

    def __init__(self, shown: Sequence[Junction]) -> None:
        self.layers = [_LayerTotals(junction) for junction in shown]
        self.outputs = _Noise()
        self.samples = self.values = 0

    def add(self, samples: int, apart: Tensors, through: Tensors) -> None:
        """Adds a batch: every layer in float, then rounded alone, and the outputs; every layer as it is."""
        count = len(self.layers)
        for index, layer in enumerate(self.layers):
            layer.add(apart[index], apart[count + index], through[index])
        for expected, given in zip(apart[2 * count :], through[count:], strict=True):
            self.outputs.add(expected, given)
        self.samples += samples
        self.values += sum(each.size for each in apart[:count])

    def result(self) -> Diagnosis:
        return Diagnosis(
            samples=self.samples,
            output_sqnr_db=self.outputs.sqnr_db,
            layers=tuple(layer.result(position) for position, layer in enumerate(self.layers)),
        )


class _LayerTotals:
    """What one layer shows, summed over the samples."""

    def __init__(self, junction: Junction) -> None:
        self.junction = junction
        self.signal: NDArray[np.float64] | float = 0.0
        self.own: NDArray[np.float64] | float = 0.0
        self.noise = 0.0
        self.low, self.high = math.inf, -math.inf
        self.values = self.clipped = 0

    def add(
        self, expected: NDArray[np.float32], own: NDArray[np.float32], reached: NDArray[np.float32]
    ) -> None:
        self.signal = self.signal + _channel_power(expected)
        self.own = self.own + _channel_power(own - expected)
        self.noise += _power(reached - expected)
        low, high = float(expected.min(initial=math.inf)), float(expected.max(initial=-math.inf))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.values += expected.size
        grid = self.junction.grid
        if grid is not None:
            first, last = grid.low - grid.scale / 2, grid.high + grid.scale / 2
            if low < first or high > last:
                self.clipped += int(np.count_nonzero((expected < first) | (expected > last)))

    def result(self, position: int) -> LayerDiagnosis:
        junction = self.junction
        signal, own = np.atleast_1d(self.signal), np.atleast_1d(self.own)
        return LayerDiagnosis(
            name=junction.layer,
            op=junction.op,
            tensor=junction.name,
            readers=junction.readers,
            position=position,
            weight=None if junction.weight is None else weight_diagnosis(junction.weight),
            activation=self._activation(),
            sqnr_db=decibels(float(signal.sum()), self.noise),
            local_sqnr_db=decibels(float(signal.sum()), float(own.sum())),
            channel_sqnr_db=_median_channel(signal, own),
        )

    def _activation(self) -> ActivationDiagnosis | None:
        grid = self.junction.grid
        if grid is None:
            return None
        return ActivationDiagnosis(
            bits=grid.bits,
            low=self.low,
            high=self.high,
            grid_low=grid.low,
            grid_high=grid.high,
            clipped=self.clipped / max(1, self.values),
        )


def weight_diagnosis(weight: Constant) -> WeightDiagnosis:
    """What became of a weight."""
    rounded = weight.dequantized()
    steps = weight.integers.astype(np.int64) - weight.zero_points.max(initial=0)
    reach = max(int(steps.max(initial=0)), -int(steps.min(initial=0)))
    others = tuple(axis for axis in range(rounded.ndim) if axis != weight.axis % rounded.ndim)
    magnitudes = np.abs(rounded).max(axis=others, initial=0.0)
    alive = magnitudes[magnitudes > 0]
    sqnr = None
    if weight.real is not None:
        sqnr = decibels(_power(weight.real), _power(rounded - weight.real))
    return WeightDiagnosis(
        bits=max(2, math.ceil(math.log2(reach + 1)) + 1),
        scales=int(weight.scales.size),
        low=float(rounded.min(initial=0.0)),
        high=float(rounded.max(initial=0.0)),
        channel_spread=float(alive.max() / np.median(alive)) if alive.size else 1.0,
        sqnr_db=sqnr,
    )


def decibels(signal: float, noise: float) -> float | None:
    """``10 log10(signal / noise)``; None where either is zero or not finite."""
    if not (0 < signal < math.inf and 0 < noise < math.inf):
        return None
    return round(10 * math.log10(signal / noise), _DIGITS)


def _power(values: NDArray[np.float32]) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _channel_power(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum of squares of each channel: axis 1 of a feature map, the last axis of anything else."""
    if values.ndim > 3:
        flat = values.reshape(values.shape[0], values.shape[1], -1)
        return np.asarray(np.einsum("nci,nci->c", flat, flat), np.float64)
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    return np.asarray(np.einsum("ni,ni->i", rows, rows), np.float64)


def _median_channel(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float | None:
    """SQNR of the median channel, of those that are not always zero."""
    alive = signal > 0
    if not alive.any():
        return None
    ratios: Sequence[float] = (noise[alive] / signal[alive]).tolist()
    return decibels(1.0, float(np.median(ratios)))
