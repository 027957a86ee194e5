"""What each layer's quantization costs at the model's outputs, measured one layer at a time.

A layer's cost is the error of the outputs where it alone is quantized and all others are float. Errors
of different layers are nearly independent, so the costs add up to about the error of the whole, and
the share of each is a figure to rank by. What another form would gain is measured the other way
round: all layers are quantized but this one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepipe.events import Emit, silent, stage
from edgepipe.model import Model
from edgepipe.quantize.explain.diagnose import batches_of, layers_of, open_spliced
from edgepipe.quantize.explain.diagnosis import Diagnosis
from edgepipe.quantize.explain.explanation import Gain, LayerExplanation
from edgepipe.quantize.explain.pairing import Junction, Pairing, pair
from edgepipe.quantize.explain.splice import Form, Span, splice

if TYPE_CHECKING:
    import onnxruntime

_DIGITS = 2


class Bench:
    """Two models joined, the samples that they run on, and the float outputs that all is held against."""

    def __init__(self, reference: Model, quantized: Model, x: NDArray[Any], diagnosis: Diagnosis) -> None:
        self.pairing: Pairing = pair(reference, quantized)
        self._input = reference.inputs[0].name
        self._batches = batches_of(reference, x)
        self._spans = {
            layer.tensor: Span(layer.activation.low, layer.activation.high)
            for layer in diagnosis.layers
            if layer.activation
        }
        self._expected = self._outputs({})
        self.noise = self.noise_of(self.forms("rounded"))

    def forms(self, form: Form, but: Collection[str] = (), *, instead: Form = "float") -> dict[str, Form]:
        """The form of every junction: one for all but some."""
        return {each.name: instead if each.name in but else form for each in self.pairing.junctions}

    def noise_of(self, forms: Mapping[str, Form]) -> float:
        """Error power over signal power, mean over the outputs; infinite where it is not finite."""
        return self._noise(self._outputs(forms))

    def _noise(self, outputs: Sequence[NDArray[np.float32]]) -> float:
        ratios = []
        for expected, given in zip(self._expected, outputs, strict=True):
            signal = float(np.sum(np.square(expected, dtype=np.float64)))
            error = float(np.sum(np.square(given.astype(np.float64) - expected)))
            ratios.append(error / signal if signal else 0.0)
        mean = sum(ratios) / len(ratios)
        return mean if math.isfinite(mean) else math.inf

    def gain_db(self, forms: Mapping[str, Form]) -> float:
        """What the SQNR of the quantized model gains in these forms; infinite gains are cut at 100 dB."""
        return self._gain_db(self.noise_of(forms))

    def _gain_db(self, noise: float) -> float:
        if not self.noise:
            return 0.0
        return round(min(100.0, 10 * math.log10(self.noise / noise)) if noise else 100.0, _DIGITS)

    def gain_of_model_db(self, model: Model) -> float:
        """What the SQNR of another quantized model gains over this one's."""
        session = open_spliced(model.payload, threads=os.cpu_count() or 1)
        return self._gain_db(self._noise(self._run(session)))

    def _outputs(self, forms: Mapping[str, Form]) -> list[NDArray[np.float32]]:
        payload = splice(self.pairing, forms, spans=self._spans)
        return self._run(open_spliced(payload, threads=os.cpu_count() or 1))

    def _run(self, session: onnxruntime.InferenceSession) -> list[NDArray[np.float32]]:
        runs = [session.run(None, {self._input: batch}) for batch in self._batches]
        return [np.concatenate(column) for column in zip(*runs, strict=True)]


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
    noises: dict[str, float] = {}
    with stage(emit, "measure what each layer costs", total=len(shown) + closely) as running:
        for done, junction in enumerate(shown, start=1):
            noises[junction.name] = bench.noise_of({junction.name: "rounded"})
            running.advance(done)
        total = sum(noise for noise in noises.values() if math.isfinite(noise)) or 1.0
        ranked = sorted(shown, key=lambda junction: -noises[junction.name])
        gains = {}
        for done, junction in enumerate(ranked[:closely], start=len(shown) + 1):
            gains[junction.name] = _gain(bench, junction)
            running.advance(done)
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


def _gain(bench: Bench, junction: Junction) -> Gain:
    name, weighted = junction.name, junction.weight is not None
    on_grid = junction.grid is not None
    return Gain(
        weight_sqnr_db=sqnr_db(bench.noise_of({name: "weight"})) if weighted else None,
        grid_sqnr_db=sqnr_db(bench.noise_of({name: "grid"})) if on_grid else None,
        float_db=bench.gain_db(bench.forms("rounded", {name})),
        wide_db=bench.gain_db(bench.forms("rounded", {name}, instead="wide")) if on_grid else None,
    )


def sqnr_db(noise: float) -> float | None:
    """A ratio of noise to signal as SQNR; None for none at all, or without bounds."""
    return round(-10 * math.log10(noise), _DIGITS) if 0 < noise < math.inf else None


def costliest(layers: Sequence[LayerExplanation], share: float) -> list[LayerExplanation]:
    """The fewest layers that together make this share of the error."""
    found: list[LayerExplanation] = []
    while len(found) < len(layers) and sum(each.share for each in found) < share:
        found.append(layers[len(found)])
    return found
