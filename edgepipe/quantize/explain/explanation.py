"""Which layers lose the accuracy, why, and what would help: the record that explaining gives."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgepipe.quantize.explain.diagnosis import LayerDiagnosis

SCHEMA = 1


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """What would become of a layer's error in other forms, measured at the model's outputs.

    Attributes:
        weight_sqnr_db: SQNR of the outputs where the layer's weight is rounded, and nothing else; None
            where the layer has no weight.
        grid_sqnr_db: Likewise where its output is on its grid, and nothing else.
        float_db: What the SQNR of the whole quantized model gains if the layer, weight and output, is in
            float.
        wide_db: What it gains if the layer's output has 16 bits; None where its output has no grid.
    """

    weight_sqnr_db: float | None
    grid_sqnr_db: float | None
    float_db: float
    wide_db: float | None


class LayerExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer costs.

    Attributes:
        layer: What quantization did to it.
        alone_sqnr_db: SQNR of the model's outputs where this layer is quantized and all others are float;
            None where that changes nothing.
        share: Its share of the errors that all layers make alone; they add up nearly as they are
            independent.
        gain: What other forms would gain; None for layers that were not looked at so closely.
        steps: SQNR of its output after each recovery step, in the order of the explanation's steps.
    """

    layer: LayerDiagnosis
    alone_sqnr_db: float | None
    share: float
    gain: Gain | None = None
    steps: tuple[float | None, ...] = ()


class RecoveryStep(msgspec.Struct, frozen=True, kw_only=True):
    """The model as it is after one more step of the recipe.

    Attributes:
        name: What was added: "rounding = gptq", "quantize.equalize".
        output_sqnr_db: SQNR of the model's outputs; None where they are exact.
        samples: On how many samples: more than layers are measured on, as steps differ by little.
    """

    name: str
    output_sqnr_db: float | None
    samples: int


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """Something to paste into a recipe.

    Attributes:
        kind: What it does.
        layers: The layers that it names.
        toml: The lines, below the table of the pass that quantizes.
        gain_db: What the SQNR of the outputs gains by it.
        measured: "requantized": the recipe ran with these lines; "simulated": these layers alone were
            computed in that form.
    """

    kind: Literal["float", "16 bits", "8 bits"]
    layers: tuple[str, ...]
    toml: str
    gain_db: float
    measured: Literal["requantized", "simulated"]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle explained.

    Attributes:
        schema: Version of this record's form.
        model_name: Name of the model.
        target: Name of the target.
        recipe: Name of the recipe.
        bundle_digest: sha256 of the bundle's manifest.
        data_source: Where the samples came from.
        golden: Whether they are the bundle's own golden samples, for lack of data.
        samples: How many they were.
        output_sqnr_db: SQNR of the model's outputs; None where they are exact.
        layers: The costliest first.
        steps: The recipe's steps one after the other; empty without data to repeat them on.
        remedies: What would help, the most first.
        summary: What it comes to, in sentences.
    """

    schema: int = SCHEMA
    model_name: str
    target: str
    recipe: str
    bundle_digest: str
    data_source: str
    golden: bool
    samples: int
    output_sqnr_db: float | None
    layers: tuple[LayerExplanation, ...]
    steps: tuple[RecoveryStep, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    summary: tuple[str, ...] = ()


def is_of_weight(each: LayerExplanation) -> bool:
    """Whether a layer's error is that of its weight rather than that of its output's grid."""
    if each.layer.weight is None:
        return False
    if each.gain is None or each.gain.weight_sqnr_db is None:
        return each.layer.activation is None
    return each.gain.grid_sqnr_db is None or each.gain.weight_sqnr_db < each.gain.grid_sqnr_db
