"""Static post-training quantization to INT8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from edgepipe.data import Dataset
from edgepipe.errors import CalibrationDataMissing, ModelError
from edgepipe.events import Emit, Warned, stage
from edgepipe.graph import edit
from edgepipe.graph.opset import raise_opset, require_scales_by_channel, standard_opset
from edgepipe.model import Model
from edgepipe.passes import Context, Pass
from edgepipe.quantize import emit
from edgepipe.quantize.calibration.ranges import (
    Observation,
    RangeChoice,
    Shared,
    Watch,
    choose_grids,
    joined,
    observe,
)
from edgepipe.quantize.groups import share_grids
from edgepipe.quantize.layerwise.sequence import Task, round_layerwise
from edgepipe.quantize.layerwise.twin import quantize_activations, walk_both
from edgepipe.quantize.limits import keep_within_limits
from edgepipe.quantize.plan import Plan, make_plan
from edgepipe.quantize.scheme import ActivationBits, Override, Scheme, WeightBits, assign
from edgepipe.quantize.sums import align_sums
from edgepipe.quantize.weights import Granularity, QuantizedLinear, quantize_linear
from edgepipe.quantize.widths import least_opset, settle

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepipe.quantize.grid import Grid


Rounding = Literal["nearest", "gptq"]


class QuantizeStatic(Pass, frozen=True, kw_only=True):
    """Quantizes weights and activations to INT8, with ranges from calibration samples.

    The scheme is that of Jacob et al. 2018 (arXiv 1712.05877) as the TFLite 8-bit quantization
    specification narrows it down: symmetric int8 weights, asymmetric int8 activations, int32 biases. A
    target that asks for symmetric activations gets zero points of 0. The result is a QDQ graph, from
    which each runtime's artifact is emitted. A model that is quantized already passes through
    untouched; ops without an integer kernel stay in float, with a warning.

    Attributes:
        weight_bits: Bits of a weight's integers; those of up to 4 bits are stored as int4.
        activation_bits: Bits of an activation's integers; those of 16 bits are symmetric.
        granularity: A scale for each output channel of a weight, or one for all.
        ranges: How activation ranges are chosen: "extrapolated" holds every value seen and leaves room for
            those that the scatter of the samples' extremes lets expect, where that lessens the error;
            "minmax" holds just the values seen, "average" reaches to the mean extremes of a sample,
            "percentile" leaves out the outermost values, "entropy" loses least information, "mse" makes
            the mean squared error least; "auto" tries, for each tensor, what does least harm to the layers
            that read it.
        percentile: Share of the values to hold at either end, in per cent; for "percentile" alone.
        rounding: How weights are rounded: "nearest" each by itself, "gptq" all of an output together
            so that its error on the inputs that occur is least (Frantar et al. 2023, arXiv 2210.17323),
            layer after layer, each on what those before it leave.
        bias_correction: Whether biases make up for the mean error of rounded weights (Nagel et al.
            2019, arXiv 1906.04721, section 4.2 and appendix D): computed from the mean of the input, or,
            with "gptq", measured in the quantized network.
        overrides: What is different for some layers.
    """

    needs_calibration: ClassVar[bool] = True

    weight_bits: WeightBits = 8
    activation_bits: ActivationBits = 8
    granularity: Granularity = "per-channel"
    ranges: RangeChoice = "extrapolated"
    percentile: Annotated[float, msgspec.Meta(ge=90.0, le=100.0)] = 99.99
    rounding: Rounding = "nearest"
    bias_correction: bool = True
    overrides: tuple[Override, ...] = ()

    def apply(self, model: Model, context: Context) -> Model:
        """The model in QDQ form.

        Raises:
            CalibrationDataMissing: The context has no calibration samples.
            RecipeError: An override names no layer of the model.
            ModelError: The model has more than one input, an opset without per-channel scales, or no op
                that could be quantized.
            DataEmpty: The samples do not fill one batch of the model.
            DataNotFinite: An activation is NaN or infinite on the samples.
        """
        if edit.is_quantized(model):
            return model
        require_scales_by_channel(standard_opset(model.to_onnx()), model.name)
        if context.calibration is None:
            raise CalibrationDataMissing(
                "quantization needs calibration samples, and there are none", where=model.name
            )
        symmetric = context.target.activation == "int8-symmetric"
        default = Scheme(weight_bits=self.weight_bits, activation_bits=self.activation_bits)
        model = raise_opset(model, least_opset(default, self.overrides))
        graph_model = edit.open_graph(model)
        assigned = assign(graph_model.graph, default, self.overrides)
        schemes = settle(graph_model.graph, assigned)
        if len(schemes) > len(assigned):  # calibration has to see what crosses from one width to another
            model = edit.freeze(graph_model, model.name)
        plan = make_plan(graph_model.graph, schemes, symmetric=symmetric)
        _check_plan(plan, graph_model, model.name)
        _warn_of_float(plan, context.emit)
        seen = self._observe(model, plan, context.calibration, context.emit)
        grids = self._grids(model, plan, seen, context.calibration, context)
        ranges = {value: _span(seen[str(value.name)]) for value in plan.tensors}
        plan, grids = keep_within_limits(
            graph_model.graph, plan, grids, ranges, symmetric=symmetric, emit=context.emit
        )
        _check_plan(plan, graph_model, model.name)
        with stage(context.emit, "round weights") as rounding:
            linears = [
                self._linear(node, grids, seen, plan.schemes[node].weight_bits) for node in plan.linears
            ]
            rounding.detail = _summary(plan, linears)
        if self.rounding == "gptq":
            twin = quantize_activations(graph_model, plan, grids, symmetric=symmetric)
            walks = walk_both(model, plan, twin, context.calibration.x)
            sources = [grids[_input(node)] for node in plan.linears]
            task = Task(correct_bias=self.bias_correction, seed=context.seed)
            linears = round_layerwise(linears, sources, walks, task, context.emit)
        emit.write(graph_model.graph, plan, grids, linears, symmetric=symmetric)
        return edit.freeze_tidied(graph_model, model.name)

    def _observe(self, model: Model, plan: Plan, data: Dataset, notify: Emit) -> dict[str, Observation]:
        axes = {}
        if self.bias_correction:
            axes = {_source(node): 1 for node in plan.linears if node.op_type != "MatMul"}
        watch = Watch(
            tensors=tuple(str(value.name) for value in plan.tensors),
            histograms=self.ranges not in ("minmax", "extrapolated"),
            channel_axes=axes,
        )
        return observe(model, data, watch, notify)

    def _grids(
        self, model: Model, plan: Plan, seen: dict[str, Observation], data: Dataset, context: Context
    ) -> dict[ir.Value, Grid]:
        grids = dict(plan.fixed)
        ranges = {value: _span(seen[str(value.name)]) for value in plan.tensors}
        groups = [group for group in share_grids(plan, ranges) if group[0] not in grids]
        shared = [
            Shared(tensors=names, seen=joined([seen[name] for name in names]), bits=plan.bits[group[0]])
            for group in groups
            for names in [tuple(str(value.name) for value in group)]
        ]
        chosen = choose_grids(
            model,
            data,
            shared,
            self.ranges,
            percentile=self.percentile,
            symmetric=context.target.activation == "int8-symmetric",
            emit=context.emit,
        )
        for group, grid in zip(groups, chosen, strict=True):
            grids.update(dict.fromkeys(group, grid))
        return align_sums(plan, groups, grids)

    def _linear(
        self, node: ir.Node, grids: dict[ir.Value, Grid], seen: dict[str, Observation], bits: int
    ) -> QuantizedLinear:
        source = node.inputs[0]
        mean = seen[_source(node)].mean if self.bias_correction else None
        return quantize_linear(node, grids[source], self.granularity, mean, bits=bits)  # type: ignore[index]


def _span(seen: Observation) -> tuple[float, float]:
    return seen.low, seen.high


def _check_plan(plan: Plan, graph_model: ir.Model, where: str) -> None:
    """Refuses a model that would come out as it went in, an INT8 model in name alone."""
    if plan.tensors:
        return
    types = {value.dtype.numpy().name for value in graph_model.graph.inputs if value.dtype is not None}
    ops = ", ".join(dict.fromkeys(node.op_type for node in graph_model.graph)) or "no ops"
    raise ModelError(
        "nothing in the model can be quantized",
        where=where,
        got=f"{ops} on {' and '.join(sorted(types)) or 'no input'}",
        remedy="take the recipe float32"
        if "float32" in types
        else "export the model in float32, or take the recipe float32",
    )


def _input(node: ir.Node) -> ir.Value:
    return node.inputs[0]  # type: ignore[return-value]


def _source(node: ir.Node) -> str:
    """Name of what the weight is multiplied with."""
    return str(node.inputs[0].name)  # type: ignore[union-attr]


def _warn_of_float(plan: Plan, notify: Emit) -> None:
    if plan.left:
        named = ", ".join(f"{node.op_type} ({node.name or node.outputs[0].name})" for node in plan.left[:5])
        more = f" and {len(plan.left) - 5} more" if len(plan.left) > 5 else ""
        several = f"{len(plan.left)} ops have no integer kernel and stay in float"
        one = "1 op has no integer kernel and stays in float"
        notify(Warned(f"{one if len(plan.left) == 1 else several}: {named}{more}"))


def _summary(plan: Plan, linears: list[QuantizedLinear]) -> str:
    raised = sum(linear.raised for linear in linears)
    text = f"{len(plan.linears)} weights, {len(plan.tensors)} activations"
    return (
        f"{text}; {raised} channels rounded more coarsely so that their biases fit int32" if raised else text
    )
