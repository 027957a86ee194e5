"""Cross-layer equalization: weights of neighbouring layers on ranges that one scale can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.errors import CalibrationDataMissing
from edgepipe.events import stage
from edgepipe.graph import edit
from edgepipe.model import Model
from edgepipe.passes import Context, Pass
from edgepipe.quantize.channels import Channels, find_channels, is_linear
from edgepipe.quantize.emit import clip_bounds
from edgepipe.quantize.rescale import magnitudes, rescale
from edgepipe.quantize.tails import Freedom, Tolerance, measure_freedom

if TYPE_CHECKING:
    import onnx_ir as ir

    Factors = NDArray[np.float64]

_CONVERGED = 1.001
"""Factors that change less than this are as they should be."""
_DEAD = 1e-6
"""A channel with weights this much smaller than the greatest of its tensor has no range to equalize."""


class Equalize(Pass, frozen=True, kw_only=True):
    """Evens out the weight ranges of channels across neighbouring layers, before they are rounded.

    Cross-layer equalization of Nagel et al. 2019 (arXiv 1906.04721), section 4.1, equation 11: the
    factor ``s = sqrt(r1 / r2)`` brings the range of an output channel and that of the input channels
    that read it to their geometric mean. What is computed stays the same to float32 rounding. Sets of
    activations that residual additions tie together take their factors together.

    A bounded activation such as ReLU6 lets a factor through only as far as its bound stays out of the
    way: on calibration samples it is measured, channel by channel, how far the bound could move.

    Attributes:
        clips: What happens at bounded activations: "keep" moves a bound only as far as `clip_error`
            allows; "relu" takes upper bounds away, which changes what the network computes.
        clip_error: Change that moving a bound may make on calibration samples, in units of the error
            of rounding the activation to 8 bits; 0 keeps what is computed exactly.
        rounds: How often all layers are gone through.
        limit: Greatest factor of a channel, and the inverse of the least.
    """

    needs_calibration: ClassVar[bool] = True

    clips: Literal["keep", "relu", "free"] = "keep"
    clip_error: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] = 1.0
    margin: Annotated[float, msgspec.Meta(ge=1.0, le=16.0)] = 1.0
    rounds: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 40
    limit: Annotated[float, msgspec.Meta(ge=1.0, le=65536.0)] = 1024.0

    def apply(self, model: Model, context: Context) -> Model:
        """The equalized float model.

        Raises:
            CalibrationDataMissing: There are clips to measure, and the context has no samples.
        """
        if edit.is_quantized(model):
            return model
        graph_model = edit.open_graph(model)
        sets = _equalizable(graph_model.graph)
        with stage(context.emit, "equalize") as running:
            if self.clips == "relu":
                for channels in sets:
                    _open_clips(graph_model.graph, channels)
                sets = _equalizable(graph_model.graph)
            limits = (np.float64(1 / self.limit), np.float64(self.limit))
            bounds = self._bounds(model, sets, context) if self.clips == "keep" else [limits] * len(sets)
            ranges = _Ranges(sets)
            factors = [np.ones(channels.size) for channels in sets]
            for _ in range(self.rounds):
                if ranges.step(factors, bounds) < _CONVERGED:
                    break
            for channels, each in zip(sets, factors, strict=True):
                if (each != 1.0).any():
                    for clip in channels.clips if self.clips == "free" else ():
                        _free_clip(graph_model.graph, clip, each, channels.axes[clip.inputs[0]])
                    rescale(graph_model.graph, channels, each)
            running.detail = f"{len(sets)} sets of channels"
        return _frozen(graph_model, model.name)

    def _bounds(
        self, model: Model, sets: tuple[Channels, ...], context: Context
    ) -> list[tuple[Factors, Factors]]:
        """Least and greatest factor of each channel of each set."""
        places = {
            str(clip.inputs[0].name): (clip_bounds(clip)[1], channels.axes[clip.inputs[0]])
            for channels in sets
            for clip in channels.clips
            if np.isfinite(clip_bounds(clip)[1])
        }
        if places and context.calibration is None:
            raise CalibrationDataMissing(
                "equalization measures bounded activations on samples, and there are none", where=model.name
            )
        freedoms: Mapping[str, Freedom] = {}
        if places and context.calibration is not None:
            freedoms = measure_freedom(
                model, places, context.calibration, Tolerance(self.clip_error, self.margin), context.emit
            )
        bounds = []
        for channels in sets:
            low, high = np.full(channels.size, 1 / self.limit), np.full(channels.size, self.limit)
            for clip in channels.clips:
                freedom = freedoms.get(str(clip.inputs[0].name))
                if freedom is not None:
                    low, high = np.maximum(low, freedom.least), np.minimum(high, freedom.most)
            bounds.append((low, high))
        return bounds


def _frozen(graph_model: ir.Model, name: str) -> Model:
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(graph_model)
    common.NameFixPass()(graph_model)
    return edit.freeze(graph_model, name)


def _equalizable(graph: ir.Graph) -> tuple[Channels, ...]:
    """Sets of channels between linear ops, whose clips have the lower bound 0 or none."""
    return tuple(
        channels
        for channels in find_channels(graph)
        if all(map(is_linear, channels.writers))
        and all(clip_bounds(clip)[0] in (0.0, -np.inf) for clip in channels.clips)
    )


def _open_clips(graph: ir.Graph, channels: Channels) -> None:
    """Makes a Relu of each clip at 0 and above."""
    import onnx_ir as ir

    for clip in channels.clips:
        if clip_bounds(clip)[0] != 0.0:
            continue
        result = clip.outputs[0]
        relu = ir.node("Relu", [clip.inputs[0]], name=clip.name)
        relu.outputs[0].type, relu.outputs[0].shape = result.type, result.shape
        relu.outputs[0].name = edit.unused_name(graph, f"{result.name}.relu")
        graph.insert_before(clip, relu)
        edit.replace_value(graph, result, relu.outputs[0])
        graph.remove(clip, safe=True)


def _free_clip(graph: ir.Graph, clip: ir.Node, factors: Factors, axis: int) -> None:
    """Gives a clip a bound of its own for each channel."""
    import onnx_ir as ir

    _, high = clip_bounds(clip)
    if not np.isfinite(high):
        return
    result = clip.outputs[0]
    rank = len(edit.sizes(result))
    relu = ir.node("Relu", [clip.inputs[0]], name=clip.name)
    bound = edit.add_constant(
        graph,
        f"{result.name}.bound",
        (high / factors).astype(np.float32).reshape((-1,) + (1,) * (rank - axis - 1)),
    )
    mini = ir.node("Min", [relu.outputs[0], bound])
    for value, suffix in ((relu.outputs[0], "relu"), (mini.outputs[0], "bounded")):
        value.type, value.shape = result.type, result.shape
        value.name = edit.unused_name(graph, f"{result.name}.{suffix}")
    graph.insert_before(clip, [relu, mini])
    edit.replace_value(graph, result, mini.outputs[0])
    graph.remove(clip, safe=True)


class _Ranges:
    """Weight ranges by channel while factors change, without touching a weight."""

    def __init__(self, sets: tuple[Channels, ...]) -> None:
        self.sets = sets
        self.writer_of = {node: index for index, each in enumerate(sets) for node in each.writers}
        self.reader_of = {node: index for index, each in enumerate(sets) for node in each.readers}
        self.magnitudes: dict[ir.Node, Factors] = {}
        for node in {**self.writer_of, **self.reader_of}:
            size = sets[self.reader_of[node]].size if node in self.reader_of else None
            self.magnitudes[node] = magnitudes(node, size)

    def step(self, factors: list[Factors], bounds: list[tuple[Factors, Factors]]) -> float:
        """Moves every factor to where the ranges before and after it meet; returns the greatest ratio."""
        greatest = 1.0
        for index, channels in enumerate(self.sets):
            written = np.max([self._range(node, factors, 2) for node in channels.writers], axis=0)
            read = np.max([self._range(node, factors, 1) for node in channels.readers], axis=0)
            alive = (written > _DEAD) & (read > _DEAD)
            step = np.sqrt(np.divide(written, read, out=np.ones(channels.size), where=alive))
            moved = np.clip(factors[index] * step, *bounds[index])
            change = moved / factors[index]
            greatest = max(greatest, float(change.max()), float(1 / change.min()))
            factors[index] = moved
        return greatest

    def _range(self, node: ir.Node, factors: list[Factors], other: int) -> Factors:
        """Range of each channel where that of the tensor is 1, the greatest along axis `other`."""
        scaled = self.magnitudes[node]
        groups, outputs, inputs = scaled.shape
        if node in self.writer_of:
            scaled = scaled / factors[self.writer_of[node]].reshape(groups, outputs, 1)
        if node in self.reader_of:
            scaled = scaled * factors[self.reader_of[node]].reshape(groups, 1, inputs)
        return np.asarray(scaled.max(other).reshape(-1) / max(scaled.max(), 1e-30))
