"""The batch of a graph: as free as its ports claim, and not fixed at more than one sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.errors import ModelError
from edgepipe.events import Emit, Warned
from edgepipe.graph.edit import is_quantized
from edgepipe.model import Model, onnx_model
from edgepipe.runtime import Session, open_session
from edgepipe.sources.fidelity import make_inputs, run_onnx

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


def settle_batch(model: Model, session: Session, emit: Emit) -> tuple[Model, Session]:
    """The model itself, or one with the batch fixed at 1 where it claims any batch but cannot run two.

    Converters carry a free batch into the ports while a Reshape inside may still fix it; found here,
    it costs a warning, found later it would cost a calibration.

    Args:
        model: The model.
        session: One of it.
        emit: Where the warning goes.

    Returns:
        The model, and a session of that.
    """
    fixed = all(spec.shape[0] is not None for spec in model.inputs if spec.shape)
    if fixed or _runs_two(model, session):
        return model, session
    proto = model.to_onnx()
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = 1
    proto.graph.ClearField("value_info")
    emit(Warned("the model runs one sample at a time only: something inside fixes the batch size"))
    single = onnx_model(proto, model.name)
    return single, open_session(single.payload, "onnx", threads=0)


def free_batch(model: Model, where: str) -> Model:
    """The model itself, or, where its batch is fixed at several samples, one that takes any number.

    Everything after this feeds single samples: golden samples, evaluation, the device. Reshapes that
    spell the batch out let go of it; whether the freed graph computes the same is tried.

    Raises:
        ModelError: samples mix, or something else inside holds on to the batch.
    """
    batches = {spec.shape[0] for spec in model.inputs if spec.shape}
    if len(model.inputs) != 1 or not batches or (batch := batches.pop()) is None or batch == 1:
        return model
    proto = model.to_onnx()
    _free_reshapes(proto.graph, batch)
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].dim_value == batch:
            sizes[0].dim_param = "batch"
    proto.graph.ClearField("value_info")
    freed = onnx_model(proto, model.name)
    if not _computes_the_same(freed, model, batch):
        raise ModelError(
            f"the model's batch is fixed at {batch} samples, and something inside holds on to it",
            where=where,
            got=", ".join(map(str, model.inputs)),
            remedy="export the model with a batch of one, or a dynamic one",
        )
    return freed


def _free_reshapes(graph: onnx.GraphProto, batch: int) -> None:
    """Lets every Reshape to [batch, ...] keep the size that comes in, in place."""
    from onnx import numpy_helper

    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        if tensor.name not in targets:
            continue
        shape = numpy_helper.to_array(tensor).copy()
        if shape.size and shape[0] == batch:
            shape[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def _computes_the_same(freed: Model, fixed: Model, batch: int) -> bool:
    """Whether the freed model gives for each sample alone what the fixed one gives for all at once."""
    rng = np.random.default_rng(0)
    samples = [make_inputs(freed.inputs, rng) for _ in range(batch)]
    together = [np.concatenate(parts) for parts in zip(*samples, strict=True)]
    try:
        *alone, got = run_onnx(freed.payload, [*samples, together])
        (want,) = run_onnx(fixed.payload, [together])
    except ModelError:
        return False
    bound = _bound(fixed)
    return all(
        _joins(list(parts), one, bound) and _joins([one], other, bound)
        for parts, one, other in zip(zip(*alone, strict=True), want, got, strict=True)
    )


def _bound(model: Model) -> float:
    """One step of a grid, from sums in another order, is no sign of samples that got mixed."""
    return 0.1 if is_quantized(model) else 1e-3


def _runs_two(model: Model, session: Session) -> bool:
    """Whether a batch of two gives what two batches of one give."""
    rng = np.random.default_rng(0)
    first, second = make_inputs(model.inputs, rng), make_inputs(model.inputs, rng)
    pair = [np.concatenate(parts) for parts in zip(first, second, strict=True)]
    try:
        one, two, both = run_onnx(session, [first, second, pair])
    except ModelError:
        return False
    return all(_joins([a, b], got, _bound(model)) for a, b, got in zip(one, two, both, strict=True))


def _joins(parts: list[NDArray[np.generic]], got: NDArray[np.generic], relative: float) -> bool:
    """Whether `got` is the parts, one after the other."""
    if any(part.ndim == 0 for part in parts):
        return False
    want = np.concatenate(parts).astype(np.float64)
    # Only finite values say how large the outputs are; an infinite bound would let everything pass.
    peak = float(np.max(np.abs(want[np.isfinite(want)]), initial=0))
    return want.shape == got.shape and np.allclose(
        want, got.astype(np.float64), rtol=0, atol=relative * peak + 1e-6, equal_nan=True
    )
