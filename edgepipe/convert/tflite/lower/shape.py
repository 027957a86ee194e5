"""Ops that move elements and change none: they keep the grid of their input."""

from __future__ import annotations

import numpy as np

from edgepipe.convert.tflite.layout import channels_last, plain, transposition
from edgepipe.convert.tflite.lower.site import Rule, Site, options


def lower_reshape(site: Site) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: a RESHAPE at most, wherever the elements keep their order."""
    old, new = site.value().shape, site.result().shape
    layout, before = site.layout().reshaped(old, new), site.layout()
    if layout is None:
        before = site.layout().gathered(old, new)
        layout = before.reshaped(old, new) or plain(len(new))
    source = site.read(0, before)
    if layout.shape(new) == source.shape:
        site.alias(layout, source)
        return
    site.builder.reshape(source, site.define(layout, grid=source.grid))


def lower_transpose(site: Site) -> None:
    """Transpose: nothing is written, the layout changes."""
    rank = len(site.value().shape)
    layout = plain(rank) if site.layout().sizes else site.layout()
    site.alias(layout.transposed(transposition(site.node, rank)), site.read(0, layout))


def lower_concat(site: Site) -> None:
    """Concat: every input on the grid of the output."""
    rank = len(site.result().shape)
    inputs = range(len(site.node.inputs))
    layouts = [site.layout(index) for index in inputs if site.value(index).data is None]
    layout = next((found for found in layouts if found != plain(rank) and not found.sizes), plain(rank))
    grid = site.result().grid if site.integer else None
    tensors = [site.operand(index, layout, grid) for index in inputs]
    axis = layout.axis(int(site.setting("axis")))
    fields = options("ConcatenationOptions", axis=axis, fusedActivationFunction="NONE")
    site.builder.operator("CONCATENATION", list(tensors), [site.define(layout)], fields)


def lower_pad(site: Site) -> None:
    """Pad: with a constant, or mirrored."""
    rank = len(site.value().shape)
    layout = plain(rank) if site.layout().sizes else site.layout()
    amounts = np.zeros((rank, 2), np.int32)
    axes = [int(axis) for axis in site.setting("axes", range(rank))]
    amounts[axes] = np.reshape(site.setting("pads"), (2, len(axes))).T
    if (amounts < 0).any():
        raise site.refuse("it crops")
    source = site.read(0, layout)
    pads = site.integers("pads", amounts[list(layout.perm)])
    result = site.define(layout, grid=source.grid)
    mode, number = site.setting("mode", "constant"), float(np.asarray(site.setting("value", 0.0)).reshape(()))
    if mode == "reflect":
        site.builder.operator(
            "MIRROR_PAD", [source, pads], [result], options("MirrorPadOptions", mode="REFLECT")
        )
    elif mode != "constant":
        raise site.refuse(f"its mode is {mode}")
    elif number == 0.0:
        site.builder.operator("PAD", [source, pads], [result], options("PadOptions"))
    else:
        filler = site.scalar("value", number, source.grid)
        site.builder.operator("PADV2", [source, pads, filler], [result], options("PadV2Options"))


def lower_slice(site: Site) -> None:
    """Slice: a STRIDED_SLICE whose masks say where the slice runs to the end."""
    shape = site.value().shape
    layout = plain(len(shape)) if site.layout().sizes else site.layout()
    source = site.read(0, layout)
    begin, end, step = [0] * len(shape), list(source.shape), [1] * len(shape)
    masks = 0
    starts, ends = site.setting("starts"), site.setting("ends")
    axes, steps = site.setting("axes", range(len(starts))), site.setting("steps", [1] * len(starts))
    for *bounds, axis in zip(starts, ends, steps, axes, strict=True):
        place = layout.axis(int(axis))
        first, last, stride = slice(*map(int, bounds)).indices(source.shape[place])
        begin[place], end[place], step[place] = first, max(last, 0), stride
        # A reversed slice that includes index 0 ends before it, which only a mask can say.
        masks |= (last < 0) << place
    inputs = [
        source,
        *(site.integers(f"slice{index}", numbers) for index, numbers in enumerate((begin, end, step))),
    ]
    result = site.define(layout, grid=source.grid)
    site.builder.operator(
        "STRIDED_SLICE", list(inputs), [result], options("StridedSliceOptions", endMask=masks)
    )


def lower_split(site: Site) -> None:
    """Split: a SPLIT_V with the sizes of the outputs."""
    rank = len(site.value().shape)
    layout = plain(rank) if site.layout().sizes else site.layout()
    axis = int(site.setting("axis", 0))
    source = site.read(0, layout)
    sizes = site.integers(
        "sizes", [site.result(index).shape[axis] for index in range(len(site.node.outputs))]
    )
    place = site.integers("axis", layout.axis(axis))
    results = [site.define(layout, index, source.grid) for index in range(len(site.node.outputs))]
    fields = options("SplitVOptions", numSplits=len(results))
    site.builder.operator("SPLIT_V", [source, sizes, place], results, fields)


def lower_gather(site: Site) -> None:
    """Gather along one axis by constant indices."""
    if not site.has(1) or site.value(1).data is None:
        raise site.refuse("its indices are computed at run time")
    rank = len(site.value().shape)
    axis = int(site.setting("axis", 0)) % rank
    indices = site.value(1).real()
    layout = plain(rank) if site.layout().sizes or indices.ndim > 1 else site.layout()
    source = site.read(0, layout)
    place = layout.axis(axis)
    chosen = site.integers("indices", indices % site.value().shape[axis])
    after = layout.reduced((axis,)) if indices.ndim == 0 else layout
    if indices.ndim > 1:
        after = plain(len(site.result().shape))
    result = site.define(after, grid=source.grid)
    site.builder.operator("GATHER", [source, chosen], [result], options("GatherOptions", axis=place))


def lower_depth_to_space(site: Site) -> None:
    """DepthToSpace: TFLite's order of channels is DCR; for CRD a GATHER brings them into it."""
    _, channels, _, _ = site.value().shape
    block = int(site.setting("blocksize"))
    layout = channels_last(4)
    source = site.read(0, layout)
    if site.setting("mode", "DCR") == "CRD":
        order = np.arange(channels).reshape(-1, block * block).T.reshape(-1)
        arranged = site.builder.like(source, f"{site.node.outputs[0]}/arranged", source.shape)
        indices = site.integers("channels", order)
        site.builder.operator("GATHER", [source, indices], [arranged], options("GatherOptions", axis=3))
        source = arranged
    result = site.define(layout, grid=source.grid)
    fields = options("DepthToSpaceOptions", blockSize=block)
    site.builder.operator("DEPTH_TO_SPACE", [source], [result], fields)


def lower_space_to_depth(site: Site) -> None:
    """SpaceToDepth: the same in TFLite."""
    layout = channels_last(4)
    source = site.read(0, layout)
    fields = options("SpaceToDepthOptions", blockSize=int(site.setting("blocksize")))
    site.builder.operator("SPACE_TO_DEPTH", [source], [site.define(layout, grid=source.grid)], fields)


def lower_tile(site: Site) -> None:
    """Tile, and Expand: a CONCATENATION with itself along each axis that grows."""
    old, new = site.value().shape, site.result().shape
    if len(old) != len(new):
        raise site.refuse("it adds axes", "reshape the tensor to its final rank beforehand")
    layout = plain(len(old)) if site.layout().sizes else site.layout()
    source = site.read(0, layout)
    growing = [axis for axis in range(len(old)) if new[axis] != old[axis]]
    if not growing:
        site.alias(layout, source)
        return
    sizes = list(old)
    for axis in growing:
        sizes[axis] = new[axis]
        whole = axis == growing[-1]
        shape = layout.shape(tuple(sizes))
        result = (
            site.define(layout, grid=source.grid)
            if whole
            else site.builder.like(source, f"{site.node.outputs[0]}/axis{axis}", shape)
        )
        fields = options("ConcatenationOptions", axis=layout.axis(axis), fusedActivationFunction="NONE")
        copies = [source] * (new[axis] // old[axis])
        site.builder.operator("CONCATENATION", list(copies), [result], fields)
        source = result


RULES = {
    "DepthToSpace": Rule(lower_depth_to_space),
    "SpaceToDepth": Rule(lower_space_to_depth),
    "Tile": Rule(lower_tile, int16=True),
    "Expand": Rule(lower_tile, int16=True),
    "Reshape": Rule(lower_reshape, int16=True),
    "Flatten": Rule(lower_reshape, int16=True),
    "Squeeze": Rule(lower_reshape, int16=True),
    "Unsqueeze": Rule(lower_reshape, int16=True),
    "Transpose": Rule(lower_transpose, int16=True),
    "Concat": Rule(lower_concat, int16=True),
    "Pad": Rule(lower_pad, int16=True),
    "Slice": Rule(lower_slice, int16=True),
    "Split": Rule(lower_split, int16=True),
    "Gather": Rule(lower_gather, weights=(1,), int16=True),
}
