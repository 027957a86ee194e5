"""What it costs at the outputs to round one layer's weight, foretold from gradients.

To second order, an error e of a layer's constants changes the loss by ``eᵀ H e / 2``, which is what
Hessian-weighted sensitivities rest on (Dong et al. 2020, HAWQ-V2, arXiv 1911.03852, section 3.1, take the
trace of H; Habi et al. 2020, HMQ, arXiv 2007.09952, and Sony's Model Compression Toolkit weight tensors by
gradients). At a trained network H is the Gauss-Newton matrix ``E[Jᵀ M J]`` (Martens 2020, arXiv 1412.1193,
section 9), with J the Jacobian of the outputs and M the metric of the loss at them. With probes v of
covariance M, ``eᵀ H e`` is the mean square of ``(vᵀ J) e``: one backward pass a probe and sample gives the
exact quadratic form of every candidate of every layer, correlations between weights included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepipe.events import Emit, stage
from edgepipe.graph.autograd import TorchGraph, to_torch
from edgepipe.model import Model
from edgepipe.quantize.mixed.sensitivity import (
    Trial,
    constant_names,
    ends_in_softmax,
    is_classifier,
    with_constants,
)

if TYPE_CHECKING:
    import torch

    Metric = Callable[[list[torch.Tensor], torch.Generator], torch.Tensor]

PROBES = 4
"""Backward passes a sample."""


def gradient_costs(
    model: Model, x: NDArray[Any], trials: Sequence[Trial], seed: int, emit: Emit
) -> dict[str, tuple[float, ...]]:
    """The cost of each option of each layer, to second order.

    For a classifier it is the expected divergence KL of its probabilities, in nats, whose metric is
    Fisher's, ``diag(p) - p pᵀ`` at the logits; for any other model the squared error of the outputs over
    their mean square.

    Args:
        model: The float model, with one input.
        x: Samples for it.
        trials: The layers, with what to try in each.
        seed: Seed of the probes.
        emit: Where progress goes.

    Returns:
        Costs by layer, one for each of its options.

    Raises:
        MissingExtra: PyTorch is not installed.
        UnsupportedOp: An op of the model has no counterpart in PyTorch here.
    """
    import torch

    graph = to_torch(with_constants(model, trials, [trial.exact for trial in trials]))
    names = [name for trial in trials for name in constant_names(trial)]
    parameters = [graph.constants[name].requires_grad_() for name in names]
    totals = [np.zeros(len(trial.options)) for trial in trials]
    generator = torch.Generator().manual_seed(seed)
    size = model.inputs[0].shape[0] or 1
    starts = range(0, len(x) // size * size, size)
    with stage(emit, "sensitivity", total=len(starts)) as running, _one_thread():
        batches = [
            {model.inputs[0].name: torch.from_numpy(np.ascontiguousarray(x[start : start + size]))}
            for start in starts
        ]
        metric = _metric(model, graph, batches)
        for done, batch in enumerate(batches, start=1):
            outputs = graph(batch).values()
            for probe in range(PROBES):
                seen = metric(list(outputs), generator)
                found = iter(torch.autograd.grad(seen, parameters, retain_graph=probe < PROBES - 1))
                for number, trial in enumerate(trials):
                    gradients = [next(found).numpy() for _ in constant_names(trial)]
                    totals[number] += _squared_responses(trial, gradients)
            running.advance(done)
        running.detail = f"{len(starts) * size} samples, {PROBES} probes each"
    count = len(starts) * size * PROBES
    return {trial.layer: tuple((total / count).tolist()) for trial, total in zip(trials, totals, strict=True)}


def _squared_responses(trial: Trial, gradients: list[NDArray[np.float32]]) -> list[float]:
    """``((vᵀ J) e)²`` of each option, e being what it changes of the layer's weight and bias."""
    exact = trial.exact.arrays
    return [
        float(
            sum(
                np.vdot(gradient, changed - own)
                for gradient, changed, own in zip(gradients, option.arrays, exact, strict=True)
            )
            ** 2
        )
        for option in trial.options
    ]


def _metric(model: Model, graph: TorchGraph, batches: list[Any]) -> Metric:
    """What makes of outputs and a generator ``vᵀ y``, with a fresh probe v of the metric's covariance."""
    import torch

    proto = model.to_onnx()
    if is_classifier(proto):
        probe = _of_probabilities if ends_in_softmax(proto) else _of_logits
        return lambda outputs, generator: probe(outputs[0], generator)
    with torch.no_grad():
        norms = [[float(y.square().sum()) / len(y) for y in graph(batch).values()] for batch in batches]
    weights = [1 / max(len(norms[0]) * norm, 1e-30) ** 0.5 for norm in np.mean(norms, axis=0)]

    def of_outputs(outputs: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        parts = [
            weight * (y * torch.randn(y.shape, generator=generator)).sum()
            for y, weight in zip(outputs, weights, strict=True)
        ]
        return torch.stack(parts).sum()

    return of_outputs


def _of_logits(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``vᵀ y`` with v of covariance ``(diag(p) - p pᵀ) / 2``, the second-order form of KL at logits y."""
    import torch

    noise = torch.randn(logits.shape, generator=generator)
    p = torch.softmax(logits.detach(), 1)
    probe = p.sqrt() * noise - p * (p.sqrt() * noise).sum(1, keepdim=True)
    return (probe * logits).sum() / 2**0.5


def _of_probabilities(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``vᵀ p`` with v of covariance ``diag(1 / p) / 2``, the second-order form of KL at probabilities p."""
    import torch

    noise = torch.randn(p.shape, generator=generator)
    return (noise * p.detach().clamp_min(1e-12).rsqrt() * p).sum() / 2**0.5


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in the same order on every machine, for the sake of equal bytes from equal seeds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
