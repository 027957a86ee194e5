"""Whether a converted graph's batch is as free as its ports claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.errors import ModelError
from edgepipe.events import Emit, Warned
from edgepipe.graph.edit import is_quantized
from edgepipe.model import Model, onnx_model
from edgepipe.sources.fidelity import make_inputs, run_onnx

if TYPE_CHECKING:
    from numpy.typing import NDArray


def settle_batch(model: Model, emit: Emit) -> Model:
    """The model itself, or one with the batch fixed at 1 where it claims any batch but cannot run two.

    Converters carry a free batch into the ports while a Reshape inside may still fix it; found here,
    it costs a warning, found later it would cost a calibration.
    """
    if all(spec.shape[0] is not None for spec in model.inputs if spec.shape) or _runs_two(model):
        return model
    proto = model.to_onnx()
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = 1
    proto.graph.ClearField("value_info")
    emit(Warned("the model runs one sample at a time only: something inside fixes the batch size"))
    return onnx_model(proto, model.name)


def _runs_two(model: Model) -> bool:
    """Whether a batch of two gives what two batches of one give."""
    rng = np.random.default_rng(0)
    first, second = make_inputs(model.inputs, rng), make_inputs(model.inputs, rng)
    pair = [np.concatenate(parts) for parts in zip(first, second, strict=True)]
    try:
        one, two, both = run_onnx(model.payload, [first, second, pair])
    except ModelError:
        return False
    # One step of a grid, from sums in another order, is no sign of samples that got mixed.
    bound = 0.1 if is_quantized(model) else 1e-3
    return all(_joins([a, b], got, bound) for a, b, got in zip(one, two, both, strict=True))


def _joins(parts: list[NDArray[np.generic]], got: NDArray[np.generic], relative: float) -> bool:
    """Whether `got` is the parts, one after the other."""
    if any(part.ndim == 0 for part in parts):
        return False
    want = np.concatenate(parts)
    bound = relative * float(np.max(np.abs(want.astype(np.float64)), initial=0)) + 1e-6
    return want.shape == got.shape and np.allclose(
        want.astype(np.float64), got.astype(np.float64), rtol=0, atol=bound, equal_nan=True
    )
