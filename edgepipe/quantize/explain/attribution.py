"""What each layer's quantization costs at the model's outputs, measured one layer at a time.

A layer's cost is the error of the outputs where it alone is quantized and all others are float. Errors
of different layers are nearly independent, so the costs add up to about the error of the whole, and
the share of each is a figure to rank by. What another form would gain is measured the other way
round: all layers are quantized but this one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepipe.events import Emit, Stage, silent, stage
from edgepipe.model import Model
from edgepipe.quantize.explain.diagnose import batches_of, layers_of, open_spliced
from edgepipe.quantize.explain.diagnosis import Diagnosis
from edgepipe.quantize.explain.explanation import Gain, LayerExplanation
from edgepipe.quantize.explain.onward import Course, Variant
from edgepipe.quantize.explain.pairing import Junction, Pairing, pair
from edgepipe.quantize.explain.splice import Form, Parts, Span, Spliced
from edgepipe.quantize.layerwise.twin import samples_held
from edgepipe.runtime import usable_cores

if TYPE_CHECKING:
    import onnxruntime

Outputs = Sequence[Sequence[NDArray[Any]]]
"""The model's outputs, for each batch."""
_DIGITS = 2


class Bench:
    """Two models joined, the samples that they run on, and the float outputs that all is held against."""

    def __init__(self, reference: Model, quantized: Model, x: NDArray[Any], diagnosis: Diagnosis) -> None:
        self.pairing: Pairing = pair(reference, quantized)
        self._parts = Parts(self.pairing)
        self._batches = [{reference.inputs[0].name: batch} for batch in batches_of(reference, x)]
        size = len(next(iter(self._batches[0].values())))
        self._held = max(1, samples_held(reference) // size)
        self._spans = {
            layer.tensor: Span(layer.activation.low, layer.activation.high)
            for layer in diagnosis.layers
            if layer.activation
        }
        self._expected = self._outputs({})
        self._signal = _powers(self._expected)
        self.noise = self.noise_of(self.forms("rounded"))

    @property
    def weights(self) -> int:
        """How many weights the quantized model has, of all layers."""
        return sum(int(each.weight.integers.size) for each in self.pairing.junctions if each.weight)

    def forms(self, form: Form, but: Collection[str] = (), *, instead: Form = "float") -> dict[str, Form]:
        """The form of every junction: one for all but some."""
        return {each.name: instead if each.name in but else form for each in self.pairing.junctions}

    def noise_of(self, forms: Mapping[str, Form]) -> float:
        """Error power over signal power, mean over the outputs; infinite where it is not finite."""
        return self._ratio(_powers(_errors(self._expected, self._outputs(forms))))

    def noises_of(
        self, base: Mapping[str, Form], variants: Sequence[Variant], running: Stage, done: int
    ) -> list[float]:
        """Likewise of networks that each differ from a base in one junction.

        Args:
            base: The form of every junction.
            variants: What is different.
            running: Told of every one that is done.
            done: What was done before.
        """
        course = Course(self._parts, base, self._spans, _open)
        totals = {variant: np.zeros(len(self._signal)) for variant in variants}
        starts = range(0, len(self._batches), self._held)
        for portion, start in enumerate(starts):
            some = slice(start, start + self._held)
            results = course.outputs(variants, self._batches[some])
            for count, (variant, found) in enumerate(results, start=1):
                totals[variant] += _powers(_errors(self._expected[some], found))
                running.advance(done + (portion * len(variants) + count) // len(starts))
        return [self._ratio(totals[variant]) for variant in variants]

    def _ratio(self, errors: NDArray[np.float64]) -> float:
        ratios = np.divide(errors, self._signal, out=np.zeros(len(errors)), where=self._signal > 0)
        mean = float(ratios.mean())
        return mean if math.isfinite(mean) else math.inf

    def gain_db(self, forms: Mapping[str, Form]) -> float:
        """What the SQNR of the quantized model gains in these forms; infinite gains are cut at 100 dB."""
        return self.gain_db_of(self.noise_of(forms))

    def gain_db_of(self, noise: float) -> float:
        """Likewise, for that noise at the outputs."""
        if not self.noise:
            return 0.0
        return round(min(100.0, 10 * math.log10(self.noise / noise)) if noise else 100.0, _DIGITS)

    def gain_of_model_db(self, model: Model) -> float:
        """What the SQNR of another quantized model gains over this one's."""
        found = self._run(_open(model.payload))
        return self.gain_db_of(self._ratio(_powers(_errors(self._expected, found))))

    def _outputs(self, forms: Mapping[str, Form]) -> Outputs:
        return self._run(_open(Spliced(self._parts, forms, self._spans).network()))

    def _run(self, session: onnxruntime.InferenceSession) -> Outputs:
        return [session.run(None, batch) for batch in self._batches]


def _open(payload: bytes) -> onnxruntime.InferenceSession:
    return open_spliced(payload, threads=usable_cores())


def _errors(expected: Outputs, found: Outputs) -> Outputs:
    return [
        [given.astype(np.float64) - exact for exact, given in zip(*batch, strict=True)]
        for batch in zip(expected, found, strict=True)
    ]


def _powers(outputs: Outputs) -> NDArray[np.float64]:
    """Sum of squares of each output over all batches, float64 [outputs]."""
    powers = [[np.square(each, dtype=np.float64).sum() for each in batch] for batch in outputs]
    return np.asarray(np.sum(powers, axis=0), np.float64)


def attribute(
    bench: Bench, diagnosis: Diagnosis, *, closely: int, emit: Emit = silent
) -> tuple[LayerExplanation, ...]:
    """What every layer costs, the costliest first.

    Args:
        bench: Both models and the samples.
        diagnosis: Of the same models and samples.
        closely: How many of the costliest layers to try in other forms.
        emit: Where progress goes.
    """
    shown = layers_of(bench.pairing)
    closely = min(closely, len(shown))
    with stage(emit, "measure what each layer costs", total=len(shown) + 4 * closely) as running:
        alone = [Variant(junction.name, "rounded") for junction in shown]
        costs = bench.noises_of({}, alone, running, 0)
        noises = {junction.name: cost for junction, cost in zip(shown, costs, strict=True)}
        total = sum(noise for noise in costs if math.isfinite(noise)) or 1.0
        ranked = sorted(shown, key=lambda junction: -noises[junction.name])
        gains = _gains(bench, ranked[:closely], running, len(shown))
        running.detail = f"{len(shown)} layers"
    layers = {layer.tensor: layer for layer in diagnosis.layers}
    return tuple(
        LayerExplanation(
            layer=layers[junction.name],
            alone_sqnr_db=sqnr_db(noises[junction.name]),
            share=min(1.0, noises[junction.name] / total),
            gain=gains.get(junction.name),
        )
        for junction in ranked
    )


def _gains(bench: Bench, junctions: Sequence[Junction], running: Stage, done: int) -> dict[str, Gain]:
    """What would become of layers in other forms."""
    parts = [Variant(each.name, "weight") for each in junctions if each.weight is not None]
    parts += [Variant(each.name, "grid") for each in junctions if each.grid is not None]
    wholes = [Variant(each.name, "float") for each in junctions]
    wholes += [Variant(each.name, "wide") for each in junctions if each.grid is not None]
    alone = dict(zip(parts, bench.noises_of({}, parts, running, done), strict=True))
    done += len(parts)
    without = dict(zip(wholes, bench.noises_of(bench.forms("rounded"), wholes, running, done), strict=True))
    gains = {variant: bench.gain_db_of(noise) for variant, noise in without.items()}
    found = {}
    for each in junctions:
        weight, grid = alone.get(Variant(each.name, "weight")), alone.get(Variant(each.name, "grid"))
        found[each.name] = Gain(
            weight_sqnr_db=None if weight is None else sqnr_db(weight),
            grid_sqnr_db=None if grid is None else sqnr_db(grid),
            float_db=gains[Variant(each.name, "float")],
            wide_db=gains.get(Variant(each.name, "wide")),
        )
    return found


def sqnr_db(noise: float) -> float | None:
    """A ratio of noise to signal as SQNR; None for none at all, or without bounds."""
    return round(-10 * math.log10(noise), _DIGITS) if 0 < noise < math.inf else None


def costliest(layers: Sequence[LayerExplanation], share: float) -> list[LayerExplanation]:
    """The fewest layers that together make this share of the error."""
    found: list[LayerExplanation] = []
    while len(found) < len(layers) and sum(each.share for each in found) < share:
        found.append(layers[len(found)])
    return found
