"""Reductions over axes."""

from __future__ import annotations

from functools import partial

from edgepipe.convert.tflite.layout import plain
from edgepipe.convert.tflite.lower.site import Rule, Site, options


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
    site.builder.operator(code, [source, places], [result], options("ReducerOptions", keepDims=keep))


RULES = {
    "ReduceMean": Rule(partial(lower_reduce, code="MEAN", same_grid=False)),
    "ReduceSum": Rule(partial(lower_reduce, code="SUM", same_grid=False)),
    "ReduceMax": Rule(partial(lower_reduce, code="REDUCE_MAX", same_grid=True)),
    "ReduceMin": Rule(partial(lower_reduce, code="REDUCE_MIN", same_grid=True)),
}
