"""Checks that a float ONNX graph computes what its source computes, on sample input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgepipe.data.conform import conform_samples
from edgepipe.errors import DataShapeMismatch, FidelityError, ModelError
from edgepipe.model import TensorSpec
from edgepipe.runtime import Session, open_session
from edgepipe.sources.source import Fidelity, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = list[NDArray[np.generic]]

SAMPLES = 8
"""How many samples are compared: outputs differ everywhere or, in a bad conversion, on the first."""

RELATIVE_BOUND = 1e-3
"""Largest error allowed, relative to the largest output.

Two runtimes sum in different orders, which costs up to about 1e-5 of the largest output in deep
float32 networks; INT8 quantization costs about 1e-2. A conversion within 1e-3 adds nothing that one
could see after quantization, and one beyond it computes something else.
"""

ABSOLUTE_BOUND = 1e-6
"""Error allowed where all outputs of the source are next to zero."""


class Trial:
    """The inputs that both sides are run on, made once from the samples given or from the seed.

    Attributes:
        feeds: The input arrays of each run, in the model's order and batch size.
        samples: Number of samples in all.
        origin: "given" or "random".
    """

    def __init__(self, inputs: Sequence[TensorSpec], request: Request) -> None:
        self.feeds: list[Tensors] = []
        self.origin: Literal["given", "random"] = "random" if request.sample is None else "given"
        if request.sample is None:
            rng = np.random.default_rng(request.seed)
            batch = _batch(inputs[0])
            self.feeds = [[_random(spec, rng) for spec in inputs] for _ in range(max(1, SAMPLES // batch))]
        else:
            self.feeds = _given(inputs, request.sample)
        self.samples = sum(len(feed[0]) for feed in self.feeds)

    def judge(
        self,
        reference: Sequence[Tensors],
        model: bytes | Session,
        *,
        by: str,
        note: str = "",
        bound: float = RELATIVE_BOUND,
    ) -> Fidelity:
        """Runs the ONNX model on the same feeds and compares.

        Args:
            reference: What the source gave for each feed: one array an output.
            model: The serialized float ONNX model, or a session of it.
            by: The runtime that gave the reference, with its version.
            note: What else must be known to read the result.
            bound: Largest error allowed, relative to the largest output.

        Raises:
            FidelityError: an output has another shape, is not finite, or is off by more than
                `bound` of the largest output.
        """
        results = run_onnx(model, self.feeds)
        error_energy = signal_energy = max_abs_error = peak = 0.0
        for want, got in _pairs(reference, results):
            error, signal = _difference(want, got, by)
            error_energy += float(np.sum(error**2))
            signal_energy += float(np.sum(signal**2))
            max_abs_error = max(max_abs_error, float(np.max(np.abs(error), initial=0)))
            peak = max(peak, float(np.max(np.abs(signal), initial=0)))
        if max_abs_error > bound * peak + ABSOLUTE_BOUND:
            raise FidelityError(
                f"the converted model does not compute what {by} computes for the source",
                got=f"a difference of {max_abs_error:.3g} where the largest output is {peak:.3g}"
                f" ({self.samples} {self.origin} samples)",
                remedy=f"at most {bound:g} of the largest output is float noise; "
                "export the model to ONNX with its own framework and give that file",
            )
        return Fidelity(
            samples=self.samples,
            sample_source=self.origin,
            max_abs_error=max_abs_error,
            peak=peak,
            sqnr_db=None if error_energy == 0 else float(10 * np.log10(signal_energy / error_energy)),
            reference=by,
            note=note,
        )


def make_inputs(inputs: Sequence[TensorSpec], rng: np.random.Generator) -> Tensors:
    """One random array for each input, batch 1 where it is free: standard normal, or 0 and 1."""
    return [_random(spec, rng) for spec in inputs]


def run_onnx(model: bytes | Session, feeds: Sequence[Tensors]) -> list[Tensors]:
    """Runs an ONNX model, serialized or loaded already, with ONNX Runtime on the CPU."""
    session = open_session(model, "onnx", threads=0) if isinstance(model, bytes) else model
    return [session.run(feed) for feed in feeds]


def _pairs(
    reference: Sequence[Tensors], results: Sequence[Tensors]
) -> Iterator[tuple[NDArray[np.generic], NDArray[np.generic]]]:
    """Every output of every run, of the source and of the ONNX graph."""
    for want, got in zip(reference, results, strict=True):
        if len(want) != len(got):
            raise FidelityError(
                "the conversion changed the number of outputs",
                got=f"{len(got)} outputs, {len(want)} in the source",
            )
        yield from zip(want, got, strict=True)


def _difference(
    want: NDArray[np.generic], got: NDArray[np.generic], by: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if want.size != got.size or [n for n in want.shape if n != 1] != [n for n in got.shape if n != 1]:
        raise FidelityError(
            "the conversion changed the shape of an output",
            got=f"{list(got.shape)}, where {by} gives {list(want.shape)}",
        )
    signal, result = want.astype(np.float64), got.astype(np.float64).reshape(want.shape)
    finite = bool(np.isfinite(signal).all()), bool(np.isfinite(result).all())
    if not all(finite):
        raise FidelityError(
            "the model's outputs hold NaN or infinity on the sample input",
            got=f"in the source: {not finite[0]}; in the ONNX graph: {not finite[1]}",
            remedy="give real samples with --data; if they give it too, the model itself is broken",
        )
    return result - signal, signal


def _batch(spec: TensorSpec) -> int:
    return (spec.shape[0] or 1) if spec.shape else 1


def _random(spec: TensorSpec, rng: np.random.Generator) -> NDArray[np.generic]:
    shape = [1 if size is None else size for size in spec.shape]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    raise ModelError(
        "an input has a type that edgepipe cannot make samples of",
        where=str(spec),
        remedy="edgepipe handles models with number inputs",
    )


def _given(inputs: Sequence[TensorSpec], sample: NDArray[np.generic]) -> list[Tensors]:
    if len(inputs) != 1:
        raise ModelError(
            "samples feed one input, but the model has several",
            got=", ".join(str(spec) for spec in inputs),
            remedy="export the model with the others as constants",
        )
    spec, batch = inputs[0], _batch(inputs[0])
    sample = conform_samples(sample[: max(batch, SAMPLES)], spec, "the samples given")
    if len(sample) < batch:
        raise DataShapeMismatch(
            "there are fewer samples than the model's batch takes",
            where=str(spec),
            got=f"{len(sample)} samples",
            remedy=f"give at least {batch}, or export the model with a batch of one",
        )
    count = max(batch, min(len(sample), SAMPLES) // batch * batch)
    return [[np.ascontiguousarray(sample[i : i + batch])] for i in range(0, count, batch)]
