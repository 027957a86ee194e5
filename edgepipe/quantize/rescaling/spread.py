"""How the values of each channel of an activation are spread on samples."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.data import Dataset
from edgepipe.events import Emit, stage
from edgepipe.graph import edit
from edgepipe.model import Model

_BATCH = 2


class Spread(msgspec.Struct, frozen=True):
    """What one activation shows by channel: float64 [channels] each.

    Attributes:
        low: Least value.
        high: Greatest value.
        mean: Mean.
        square: Mean of the squares.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]


def measure_spread(
    model: Model, axes: Mapping[str, int], data: Dataset, samples: int, emit: Emit
) -> dict[str, Spread]:
    """Runs samples through the float model and watches activations.

    Args:
        model: Float ONNX model with one input.
        axes: Axis of the channels, by name of the activation.
        data: Samples for it.
        samples: How many of them to take at most, evenly spaced.
        emit: Where progress goes.
    """
    import onnxruntime

    proto, spec = model.to_onnx(), model.inputs[0]
    names = [name for name in axes if name != spec.name]
    edit.return_also(proto.graph, names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    size = spec.shape[0] or _BATCH
    x = data.x[:: max(1, len(data) // samples)][:samples]
    sums: dict[str, list[NDArray[np.float64]]] = {}
    count = 0
    with stage(emit, "measure channels", total=len(x)) as running:
        for start in range(0, len(x), size):
            batch = np.ascontiguousarray(x[start : start + size], dtype=spec.dtype)
            if len(batch) < size and spec.shape[0] is not None:
                break  # a fixed batch that the last samples do not fill
            arrays = dict(zip(names, session.run(names, {spec.name: batch}), strict=True))
            if spec.name in axes:
                arrays[spec.name] = batch
            for name, values in arrays.items():
                _accumulate(sums, name, values, axes[name])
            count += len(batch)
            running.advance(min(start + size, len(x)))
    return {
        name: Spread(low, high, total / count, square / count)
        for name, (low, high, total, square) in sums.items()
    }


def _accumulate(
    sums: dict[str, list[NDArray[np.float64]]], name: str, values: NDArray[np.float32], axis: int
) -> None:
    others = tuple(each for each in range(values.ndim) if each != axis % values.ndim)
    per_sample = values.size // values.shape[axis] // len(values)
    low, high = (reduce(values, others).astype(np.float64) for reduce in (np.min, np.max))
    total = values.sum(others, dtype=np.float64) / per_sample
    square = np.square(values).sum(others, dtype=np.float64) / per_sample
    if name not in sums:
        sums[name] = [low, high, total, square]
        return
    kept = sums[name]
    sums[name] = [np.minimum(kept[0], low), np.maximum(kept[1], high), kept[2] + total, kept[3] + square]
