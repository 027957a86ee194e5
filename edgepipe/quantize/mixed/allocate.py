"""Mixed precision: each layer gets the bits that it needs, within a budget for all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.data import Dataset
from edgepipe.errors import CalibrationDataMissing, RecipeError
from edgepipe.events import Warned, stage
from edgepipe.graph import edit
from edgepipe.model import Model
from edgepipe.passes import Context
from edgepipe.quantize.calibration.observe import Watch, observe
from edgepipe.quantize.layerwise.unfold import is_unfolded
from edgepipe.quantize.mixed import resources
from edgepipe.quantize.mixed.budget import Budget, allocate
from edgepipe.quantize.mixed.candidates import (
    float_constants,
    input_moments,
    optimized_constants,
    rounded_constants,
)
from edgepipe.quantize.mixed.resources import Layer
from edgepipe.quantize.mixed.sensitivity import (
    Measure,
    Trial,
    assignment_costs,
    is_classifier,
    measured_costs,
)
from edgepipe.quantize.plan import LINEAR, is_quantizable
from edgepipe.quantize.scheme import FLOAT_BITS, ActivationBits, Override, Scheme, assign, exact_patterns
from edgepipe.quantize.static import QuantizeStatic

if TYPE_CHECKING:
    import onnx_ir as ir

Width = Literal[2, 3, 4, 5, 6, 7, 8, 32]
Sensitivity = Literal["sqnr", "kl", "gradient"]
_NEGLIGIBLE = 1e-5
"""A cost that nobody would notice: 50 dB, or as many nats."""
_LINEAR_BITS = 4
"""Above this width errors are so small that the outputs' follow them in proportion."""


class Sensitivities(msgspec.Struct, frozen=True):
    """What layers cost.

    Attributes:
        layers: The linear ops, in order of computation.
        costs: The cost of each layer at each of its widths, in error at the outputs.
    """

    layers: tuple[Layer, ...]
    costs: tuple[tuple[float, ...], ...]


class QuantizeMixed(QuantizeStatic, frozen=True, kw_only=True):
    """Gives each layer's weight its own number of bits, within a budget, and quantizes accordingly.

    What each layer costs in output error at each width is measured, or foretold from gradients; the
    assignment of least total cost within the budget is found exactly, as in HAWQ-V3 (Yao et al. 2021,
    arXiv 2011.10680, equations 10-12). The layers are then quantized by `quantize.static`, whose
    settings this pass has too; layers that its overrides name keep what these say. Costs are found on
    samples that candidates were not rounded for: on those that they were, a layer with few rows of input
    seems to cost nothing. Where a single width within the same budget costs less, all layers changed at
    once, it is taken instead.

    Attributes:
        average_weight_bits: Most bits a weight, on average over all weights of all layers.
        size_bytes: Most bytes of the ONNX file. TFLite's keeps narrow weights of depthwise and transposed
            convolutions in int8, and stores more for each channel: it may be a tenth larger.
        size_share: Most bytes of the file, as a share of its size with 8-bit weights.
        bit_operations_share: Most bit operations (MACs times bits of weight and activation), as a share
            of what 8 bits throughout need.
        weight_candidates: Bits that a weight may get; 32 stands for a layer in float.
        sensitivity: How a layer's cost is found: "sqnr" measures the noise at the outputs, "kl" the
            divergence of the class probabilities, "gradient" foretells them to second order, which
            takes PyTorch.
        sensitivity_samples: Calibration samples that costs are found on, at most; and half of all, at most.
    """

    average_weight_bits: Annotated[float, msgspec.Meta(ge=1, le=32)] | None = None
    size_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    size_share: Annotated[float, msgspec.Meta(gt=0, le=4)] | None = None
    bit_operations_share: Annotated[float, msgspec.Meta(gt=0, le=16)] | None = None
    weight_candidates: tuple[Width, ...] = (2, 3, 4, 5, 6, 8)
    sensitivity: Sensitivity = "sqnr"
    sensitivity_samples: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16

    def __post_init__(self) -> None:
        limits = (self.average_weight_bits, self.size_bytes, self.size_share, self.bit_operations_share)
        if all(limit is None for limit in limits):
            raise RecipeError(
                "mixed precision needs a budget",
                where="quantize.mixed",
                remedy="set average_weight_bits, size_bytes, size_share or bit_operations_share",
            )
        if not self.weight_candidates:
            raise RecipeError("there are no bits to choose from", where="quantize.mixed, weight_candidates")
        if self.weight_bits != 8:
            raise RecipeError(
                "quantize.mixed chooses the bits of each weight itself",
                where="quantize.mixed",
                got=f"weight_bits = {self.weight_bits}",
                remedy="set weight_candidates, or override weight_bits of single layers",
            )

    def apply(self, model: Model, context: Context) -> Model:
        """The model in QDQ form.

        Raises:
            CalibrationDataMissing: The context has no calibration samples.
            RecipeError: No choice of bits keeps within the budget, or an override names no layer.
            ModelError: As of `quantize.static`; "kl" of a model that is no classifier.
            MissingExtra: Gradients need PyTorch, which is not installed.
            UnsupportedOp: Gradients of an op of the model are not known here.
            DataEmpty: The samples do not fill one batch of the model.
            DataNotFinite: An activation is NaN or infinite on the samples.
        """
        if edit.is_quantized(model):
            return model
        if context.calibration is None:
            raise CalibrationDataMissing(
                "mixed precision needs calibration samples, and there are none", where=model.name
            )
        nodes, layers = self._layers(edit.open_graph(model).graph)
        if not layers:  # no weight to choose bits for
            return self._static(self.overrides).apply(model, context)
        budgets = self._budgets(layers, model, context)
        allocate([[0.0] * len(layer.widths) for layer in layers], budgets)  # refuses before any work
        chosen = tuple(len(layer.widths) - 1 for layer in layers)
        if any(budget.spent(chosen) > budget.limit for budget in budgets):  # not all may have their widest
            chosen = self._choose(model, nodes, layers, budgets, context)
        overrides = (*self.overrides, *overrides_for(layers, chosen))
        return self._static(overrides).apply(model, context)

    def _choose(
        self,
        model: Model,
        nodes: Sequence[ir.Node],
        layers: Sequence[Layer],
        budgets: Sequence[Budget],
        context: Context,
    ) -> tuple[int, ...]:
        """The number of the width that each layer gets."""
        trials = self._trials(model, nodes, layers, context)
        costs = self._costs(model, layers, trials, context)
        with stage(context.emit, "assign bits") as assigning:
            chosen = allocate(costs, budgets)
            single = resources.widest_uniform(layers, budgets)
            if single not in (None, chosen):
                chosen = self._cheaper(chosen, single, model, trials, context)
            assigning.detail = _summary(layers, chosen)
        return chosen

    def sensitivities(self, model: Model, context: Context) -> Sensitivities:
        """What each layer of a float model costs at each width, whatever the budget.

        Args:
            model: A simplified float model.
            context: Holds calibration samples.

        Raises:
            EdgepipeError: As `apply`.
        """
        nodes, layers = self._layers(edit.open_graph(model).graph)
        trials = self._trials(model, nodes, layers, context)
        return Sensitivities(tuple(layers), tuple(self._costs(model, layers, trials, context)))

    def _layers(self, graph: ir.Graph) -> tuple[list[ir.Node], list[Layer]]:
        """Linear ops that become integer ones, with the widths that each may have."""
        narrow, wide = (
            assign(graph, Scheme(weight_bits=bits, activation_bits=self.activation_bits), self.overrides)
            for bits in (2, 8)
        )
        nodes = [
            node
            for node in edit.nodes(graph, *LINEAR)
            if not wide[node].keep_float and is_quantizable(node) and edit.constant_input(node, 1) is not None
        ]
        patterns = exact_patterns(graph)
        layers = []
        for node in nodes:
            pinned = narrow[node].weight_bits == wide[node].weight_bits
            widths = (wide[node].weight_bits,) if pinned else sorted(set(self.weight_candidates))
            layers.append(resources.make_layer(node, patterns[node], widths, wide[node].activation_bits))
        return nodes, layers

    def _budgets(self, layers: list[Layer], model: Model, context: Context) -> list[Budget]:
        budgets = []
        if self.average_weight_bits is not None:
            budgets.append(resources.average_bits(layers, self.average_weight_bits))
        if self.bit_operations_share is not None:
            budgets.append(resources.bit_operations(layers, self.bit_operations_share))
        if self.size_bytes is not None or self.size_share is not None:
            nearest = msgspec.structs.replace(self._static(self.overrides), rounding="nearest")
            plain = nearest.apply(model, context).size_bytes
            fixed = plain - sum(layer.stored_bytes(8) for layer in layers)
            limits = [self.size_bytes, None if self.size_share is None else int(self.size_share * plain)]
            budgets += [resources.size(layers, limit, fixed) for limit in limits if limit is not None]
        return budgets

    def _static(self, overrides: tuple[Override, ...]) -> QuantizeStatic:
        settings = {name: getattr(self, name) for name in QuantizeStatic.__struct_fields__}
        return QuantizeStatic(**{**settings, "overrides": overrides})

    def _costs(
        self, model: Model, layers: Sequence[Layer], trials: Sequence[Trial], context: Context
    ) -> list[tuple[float, ...]]:
        _, x = self._samples(model, context)
        if self.sensitivity == "gradient":
            from edgepipe.quantize.mixed.gradients import gradient_costs

            costs = gradient_costs(model, x, trials, context.seed, context.emit)
            return [costs[layer.result] for layer in layers]
        narrow = [
            msgspec.structs.replace(trial, options=trial.options[: _measured(layer)])
            for layer, trial in zip(layers, trials, strict=True)
        ]
        costs = measured_costs(model, x, narrow, self.sensitivity, context.emit)
        return [_foretold(costs[layer.result], layer.widths) for layer in layers]

    def _samples(self, model: Model, context: Context) -> tuple[NDArray[Any], NDArray[Any]]:
        """Samples to round candidates for, and others to find their costs on, evenly spaced.

        Too few samples for two batches of the model serve for both.
        """
        assert context.calibration is not None  # noqa: S101 - looked at by `apply`
        x, size = context.calibration.x, model.inputs[0].shape[0] or 1
        count = min(-(-self.sensitivity_samples // size), len(x) // size // 2) * size
        if count == 0:
            return x, x
        judging = np.linspace(0, len(x) - 1, count).round().astype(int)
        return np.delete(x, judging, axis=0), np.asarray(x[judging])

    def _trials(
        self, model: Model, nodes: Sequence[ir.Node], layers: Sequence[Layer], context: Context
    ) -> list[Trial]:
        """What each layer would be at each of its widths, rounded as it will be."""
        assert context.calibration is not None  # noqa: S101 - looked at by `apply`
        unfolded = [node for node in nodes if is_unfolded(node)] if self.rounding == "gptq" else []
        x, _ = self._samples(model, context)
        moments = input_moments(model, unfolded, x, context.seed, context.emit) if unfolded else {}
        others = [node for node in nodes if node not in moments]
        means = self._input_means(model, others, context.calibration, context)
        trials = []
        with stage(context.emit, "round candidates", total=len(nodes)) as rounding:
            for done, (node, layer) in enumerate(zip(nodes, layers, strict=True), start=1):
                if node in moments:
                    options = optimized_constants(node, layer.widths, self.granularity, moments.pop(node))
                else:
                    options = tuple(
                        rounded_constants(node, bits, self.granularity, means.get(node))
                        for bits in layer.widths
                    )
                trials.append(Trial(layer.result, float_constants(node), options))
                rounding.advance(done)
        return trials

    def _input_means(
        self, model: Model, nodes: Sequence[ir.Node], data: Dataset, context: Context
    ) -> dict[ir.Node, NDArray[np.float64] | None]:
        sources = {node: str(node.inputs[0].name) for node in nodes if node.op_type != "MatMul"}  # type: ignore[union-attr]
        if not self.bias_correction or not sources:
            return {}
        watch = Watch(
            tensors=tuple(dict.fromkeys(sources.values())),
            histograms=False,
            channel_axes=dict.fromkeys(sources.values(), 1),
        )
        seen = observe(model, data, watch, context.emit)
        return {node: seen[source].mean for node, source in sources.items()}

    def _cheaper(
        self,
        mixed: tuple[int, ...],
        single: tuple[int, ...],
        model: Model,
        trials: Sequence[Trial],
        context: Context,
    ) -> tuple[int, ...]:
        """The assignment that costs less with all layers changed at once, activations left in float."""
        classes = is_classifier(model.to_onnx())
        measure: Measure = "sqnr" if self.sensitivity == "sqnr" or not classes else "kl"
        _, x = self._samples(model, context)
        cost, single_cost = assignment_costs(model, x, trials, [mixed, single], measure)
        if cost <= single_cost:
            return mixed
        if cost > _NEGLIGIBLE:
            context.emit(
                Warned(
                    "mixed precision is no better here than a single width within the budget, which is taken "
                    f"instead: {_told(single_cost, measure)} against {_told(cost, measure)}",
                    remedy="give more calibration samples, or take another sensitivity",
                )
            )
        return single


def _told(cost: float, measure: Measure) -> str:
    """A cost for people: ``31.2 dB``, ``0.021 nats``."""
    if measure == "kl":
        return f"{cost:.2g} nats"
    return f"{-10 * math.log10(cost):.1f} dB" if cost > 0 else "no error"


def _measured(layer: Layer) -> int:
    """How many of a layer's widths, from the narrowest on, have their cost measured."""
    return 0 if len(layer.widths) == 1 else max(1, sum(bits <= _LINEAR_BITS for bits in layer.widths))


def _foretold(measured: Sequence[float], widths: Sequence[int]) -> tuple[float, ...]:
    """Costs at all widths from those at the narrowest: each further bit halves the error's amplitude."""
    if not measured:  # there is nothing to choose from
        return (0.0,) * len(widths)
    last = len(measured) - 1
    wider = [
        0.0 if bits == FLOAT_BITS else measured[last] * 4.0 ** (widths[last] - bits)
        for bits in widths[last + 1 :]
    ]
    return (*measured, *wider)


def overrides_for(layers: Sequence[Layer], chosen: Sequence[int]) -> tuple[Override, ...]:
    """What `quantize.static` is told, so that each layer gets its chosen option: one override a width."""
    found: dict[tuple[int, ActivationBits], list[str]] = {}
    for layer, option in zip(layers, chosen, strict=True):
        found.setdefault((layer.widths[option], layer.activation_bits), []).append(layer.pattern)
    return tuple(
        Override(layers=tuple(names), keep_float=True)
        if bits == FLOAT_BITS
        else Override(layers=tuple(names), weight_bits=bits, activation_bits=activation_bits)
        for (bits, activation_bits), names in sorted(found.items())
    )


def _summary(layers: Sequence[Layer], chosen: Sequence[int]) -> str:
    bits = [layer.widths[option] for layer, option in zip(layers, chosen, strict=True)]
    total = sum(layer.weights for layer in layers)
    average = sum(layer.weights * each for layer, each in zip(layers, bits, strict=True)) / max(total, 1)
    counted = ", ".join(f"{count} at {each}" for each, count in sorted(Counter(bits).items()))
    return f"{average:.2f} bits a weight; layers: {counted} bits"
