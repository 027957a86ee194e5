"""Cross-layer equalization: ranges of channels traded between layers, so that rounding costs least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.errors import CalibrationDataMissing
from edgepipe.events import stage
from edgepipe.graph import edit
from edgepipe.model import Model
from edgepipe.passes import Context, Pass
from edgepipe.quantize.emit import clip_bounds
from edgepipe.quantize.rescaling.channels import Channels, find_channels, is_linear
from edgepipe.quantize.rescaling.factors import MOST, rescale
from edgepipe.quantize.rescaling.noise import Layer, least_noise, make_layers, noise
from edgepipe.quantize.rescaling.spread import measure_spread

if TYPE_CHECKING:
    import onnx_ir as ir


class Equalize(Pass, frozen=True, kw_only=True):
    """Trades ranges between the channels of neighbouring layers, so that rounding them costs least.

    Cross-layer equalization of Nagel et al. 2019 (arXiv 1906.04721), section 4.1, gives each channel a
    factor that one layer divides and the next multiplies by. There the factors even out the ranges of
    weights; here they make least the modelled noise of weights and activations together, by gradient
    descent. Activations that residual additions tie together take one factor. What is computed stays
    the same to float32 rounding.

    A bound above, as that of ReLU6, lets no factor through. Where it is worth most, a bounded
    activation gets a bound for each channel instead, which moves with the factor: one more op.

    Attributes:
        granularity: What `quantize.static` is to be told: with one scale in all for a weight,
            equalization matters most.
        free_clips: How many bounded activations may get a bound for each channel.
        samples: Calibration samples to measure channels on.
        rounds: Steps of the descent; 0 changes nothing.
    """

    needs_calibration: ClassVar[bool] = True

    granularity: Literal["per-channel", "per-tensor"] = "per-tensor"
    free_clips: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 6
    samples: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    rounds: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 60

    def apply(self, model: Model, context: Context) -> Model:
        """The equalized float model.

        Raises:
            CalibrationDataMissing: The context has no samples.
        """
        if edit.is_quantized(model) or not self.rounds:
            return model
        if context.calibration is None:
            raise CalibrationDataMissing(
                "equalization measures channels on samples, and there are none", where=model.name
            )
        graph_model = edit.open_graph(model)
        sets = _equalizable(graph_model.graph)
        if not sets:
            return model
        nodes = [node for node in edit.nodes(graph_model.graph) if is_linear(node)]
        axes = {str(value.name): axis for node in nodes for value, axis in _ends(node)}
        seen = measure_spread(model, axes, context.calibration, self.samples, context.emit)
        layers = make_layers(nodes, sets, seen)
        with stage(context.emit, "equalize") as running:
            factors = self._factors(layers, sets)
            for channels, each in zip(sets, factors, strict=True):
                if (each != 1.0).any():
                    for clip in channels.clips:
                        _bound_by_channel(graph_model.graph, clip, each, channels.axes[clip.inputs[0]])
                    rescale(graph_model.graph, channels, each)
            running.detail = f"{sum((each != 1.0).any() for each in factors)} of {len(sets)} sets of channels"
        return edit.freeze_tidied(graph_model, model.name)

    def _factors(self, layers: tuple[Layer, ...], sets: tuple[Channels, ...]) -> list[NDArray[np.float64]]:
        """Factors of all sets, those with bounds above among them where that is worth most."""
        bounded = {index for index, each in enumerate(sets) if any(map(_is_bounded, each.clips))}
        fixed = set(bounded)
        if self.free_clips and bounded:
            free = least_noise(layers, sets, set(), self.granularity, self.rounds // 2)
            worth = {index: _worth(layers, free, index, self.granularity) for index in bounded}
            order = sorted(bounded, key=lambda index: (-worth[index], index))
            fixed -= set(order[: self.free_clips])
        return [
            np.clip(each, 1 / MOST, MOST)
            for each in least_noise(layers, sets, fixed, self.granularity, self.rounds)
        ]


def _worth(
    layers: tuple[Layer, ...],
    factors: list[NDArray[np.float64]],
    index: int,
    granularity: Literal["per-channel", "per-tensor"],
) -> float:
    """How much more noise there is without the factors of one set."""
    logs = [np.log(each) for each in factors]
    logs[index] = np.zeros_like(logs[index])
    near = [layer for layer in layers if index in (layer.reads, layer.writes)]
    return noise(near, logs, granularity)[0] - noise(near, [np.log(each) for each in factors], granularity)[0]


def _ends(node: ir.Node) -> list[tuple[ir.Value, int]]:
    """What a linear op reads and writes, each with the axis of its channels."""
    return [
        (value, len(edit.sizes(value) or ()) - 1 if node.op_type == "MatMul" else 1)
        for value in (node.inputs[0], node.outputs[0])
        if value is not None
    ]


def _equalizable(graph: ir.Graph) -> tuple[Channels, ...]:
    """Sets of channels between linear ops, whose clips have the lower bound 0 or none."""
    return tuple(
        channels
        for channels in find_channels(graph)
        if all(map(is_linear, channels.writers))
        and all(clip_bounds(clip)[0] in (0.0, -np.inf) for clip in channels.clips)
    )


def _is_bounded(clip: ir.Node) -> bool:
    return bool(np.isfinite(clip_bounds(clip)[1]))


def _bound_by_channel(graph: ir.Graph, clip: ir.Node, factors: NDArray[np.float64], axis: int) -> None:
    """Gives a clip a bound above for each channel: Clip to the greatest of them, then Min.

    The Clip keeps what is rounded before Min from spanning more than what comes out of it.
    """
    import onnx_ir as ir

    low, high = clip_bounds(clip)
    if not np.isfinite(high):
        return
    result = clip.outputs[0]
    name, rank = str(result.name), len(edit.sizes(result) or ())
    bounds = (high / factors).astype(np.float32)
    ends = [
        edit.add_constant(graph, f"{name}.{end}", np.array(value, np.float32))
        for end, value in (("low", low), ("high", bounds.max()))
    ]
    clipped = ir.node("Clip", [clip.inputs[0], *ends], name=clip.name)
    column = edit.add_constant(graph, f"{name}.bounds", bounds.reshape((-1,) + (1,) * (rank - axis - 1)))
    bounded = ir.node("Min", [clipped.outputs[0], column])
    for value, suffix in ((clipped.outputs[0], "clipped"), (bounded.outputs[0], "bounded")):
        value.type, value.shape = result.type, result.shape
        value.name = edit.unused_name(graph, f"{name}.{suffix}")
    graph.insert_before(clip, [clipped, bounded])
    edit.replace_value(graph, result, bounded.outputs[0])
    graph.remove(clip, safe=True)
