"""Reductions over axes."""

from __future__ import annotations

from functools import partial
from math import prod

import msgspec
import numpy as np

from edgepipe.convert.tflite.layout import plain
from edgepipe.convert.tflite.lower.site import Rule, Site, options
from edgepipe.convert.tflite.program import Options, Tensor


def lower_reduce(site: Site, code: str, *, same_grid: bool) -> None:
    """ReduceMean and its kind over the settings' axes, all of them by default."""
    rank = len(site.value().shape)
    layout = plain(rank) if site.layout().sizes else site.layout()
    axes = site.setting("axes")
    if axes is None or len(axes) == 0:
        if site.setting("noop_with_empty_axes", 0):
            site.alias(layout, site.read(0, layout))
            return
        axes = range(rank)
    reduced = tuple(int(axis) % rank for axis in axes)
    keep = bool(site.setting("keepdims", 1))
    source = site.read(0, layout)
    places = site.integers("axes", sorted(layout.axis(axis) for axis in reduced))
    result = site.define(layout if keep else layout.reduced(reduced), grid=source.grid if same_grid else None)
    table = options("ReducerOptions", keepDims=keep)
    if code == "SUM" and result.grid is not None:
        count = prod(site.value().shape[axis] for axis in reduced)
        _sum_on_integers(site, [source, places], result, table, count)
    else:
        site.builder.operator(code, [source, places], [result], table)


def _sum_on_integers(site: Site, inputs: list[Tensor], result: Tensor, table: Options, count: int) -> None:
    """A sum as a mean on a grid finer by the count, times the count: the same integers, twice.

    The reference kernel of SUM does not convert between int8 grids (LiteRT 2.3), that of MEAN does.
    """
    grid = site.result().grid
    if grid is None:
        raise TypeError(f"{site.node.name} writes a float")
    fine = msgspec.structs.replace(grid, scale=(float(np.float32(grid.scale[0] / count)),))
    mean = site.scratch("mean", result.shape, fine)
    site.builder.operator("MEAN", inputs, [mean], table)
    fields = options("MulOptions", fusedActivationFunction="NONE")
    site.builder.operator("MUL", [mean, site.scalar("count", count)], [result], fields)


RULES = {
    "ReduceMean": Rule(partial(lower_reduce, code="MEAN", same_grid=False), int16=True),
    "ReduceSum": Rule(partial(lower_reduce, code="SUM", same_grid=False)),
    "ReduceMax": Rule(partial(lower_reduce, code="REDUCE_MAX", same_grid=True), int16=True),
    "ReduceMin": Rule(partial(lower_reduce, code="REDUCE_MIN", same_grid=True), int16=True),
}
