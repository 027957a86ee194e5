"""Pooling over windows and over whole maps."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Grid
from edgepipe.convert.tflite.layout import channels_last
from edgepipe.convert.tflite.lower.site import Rule, Site, exact_grid, options
from edgepipe.convert.tflite.lower.window import Window, padded, spatial_input, spatial_output, window
from edgepipe.convert.tflite.program import Tensor

# Weights that an average may cost, where it is written as a convolution.
_LARGEST_KERNEL = 2**14


def lower_max_pool(site: Site) -> None:
    """MaxPool: pads that are not SAME's are filled with the least number."""
    if len(site.node.outputs) > 1 and site.node.outputs[1]:
        raise site.refuse("its indices are an output")
    frame = _frame(site)
    source = spatial_input(site)
    # Zero is as good as the least number where nothing lies below it; more delegates know PAD than PADV2.
    zero_is_least = source.grid is not None and source.grid.zero_point[0] == source.grid.first
    if zero_is_least:
        source = padded(site, source, frame)
    elif any(frame.pads[0] + frame.pads[1]):
        lowest = np.array(np.finfo(np.float32).min)
        least = lowest if source.grid is None else np.array(source.grid.first, source.grid.dtype)
        source = padded(
            site, source, frame, site.builder.constant(f"{source.name}/least", least, source.grid)
        )
    _write(site, "MAX_POOL_2D", source, frame)


def lower_average_pool(site: Site) -> None:
    """AveragePool: TFLite leaves SAME's pads out of the average and counts those of a PAD operator.

    Where ONNX counts otherwise, a MUL corrects each output for the number of taps that it shares.
    """
    frame = _frame(site)
    source = spatial_input(site)
    pads = bool(site.setting("count_include_pad", 0))
    wanted = np.outer(frame.height.taps_inside(pads=pads), frame.width.taps_inside(pads=pads))
    real = np.outer(frame.height.taps_inside(pads=False), frame.width.taps_inside(pads=False))
    if frame.padding == "SAME" and (wanted != real).any():
        frame = msgspec.structs.replace(frame, padding="VALID")
    if frame.padding == "VALID":
        real = np.full_like(wanted, frame.height.taps * frame.width.taps)
    source = padded(site, source, frame)
    if _is_convolution(site, source, frame, wanted):
        _write_as_convolution(site, source, frame)
    elif (wanted == real).all():
        _write(site, "AVERAGE_POOL_2D", source, frame)
    else:
        _write_corrected(site, source, frame, real / wanted)


def _is_convolution(site: Site, source: Tensor, frame: Window, counts: Array) -> bool:
    """Whether an average over a fixed number of taps ends on another grid than its input's.

    AVERAGE_POOL_2D would round on the grid of its input first, and a QUANTIZE again.
    """
    taps = frame.height.taps * frame.width.taps
    moves = site.integer and site.bits == 8 and site.result().grid != source.grid
    return moves and bool((counts == taps).all()) and taps * source.shape[3] <= _LARGEST_KERNEL


def _write_as_convolution(site: Site, source: Tensor, frame: Window) -> None:
    """An average as a depthwise convolution with equal weights, which rounds once."""
    taps, channels = frame.height.taps * frame.width.taps, source.shape[3]
    step = float(np.float32(1 / (127 * taps)))
    zeros = (0,) * channels
    shape = (1, frame.height.taps, frame.width.taps, channels)
    kernel = site.builder.constant(
        f"{source.name}/mean", np.full(shape, 127, np.int8), Grid((step,) * channels, zeros, 3)
    )
    bias_step = float(np.float32(site.step().scale[0] * step))
    bias = site.builder.constant(
        f"{source.name}/mean/bias", np.zeros(channels, np.int32), Grid((bias_step,) * channels, zeros, 0, 32)
    )
    fields = options(
        "DepthwiseConv2DOptions",
        padding=frame.padding,
        strideH=frame.height.stride,
        strideW=frame.width.stride,
        dilationHFactor=1,
        dilationWFactor=1,
        depthMultiplier=1,
        fusedActivationFunction=site.node.activation,
    )
    with spatial_output(site) as result:
        site.builder.operator("DEPTHWISE_CONV_2D", [source, kernel, bias], [result], fields)


def _write_corrected(site: Site, source: Tensor, frame: Window, correction: Array) -> None:
    """An average over all taps, times a constant float [height, width] for each place."""
    with spatial_output(site) as result:
        average = site.builder.like(source, f"{result.name}/average", result.shape)
        _pool(site, "AVERAGE_POOL_2D", source, average, frame, activation="NONE")
        factor = correction[None, :, :, None].astype(np.float32)
        grid = exact_grid(float(factor.max()), site.bits) if site.integer else None
        data = factor if grid is None else grid.quantized(factor)
        constant = site.builder.constant(f"{result.name}/correction", data, grid)
        table = options("MulOptions", fusedActivationFunction=site.node.activation)
        site.builder.operator("MUL", [average, constant], [result], table)


def lower_global_pool(site: Site, code: str, *, same_grid: bool) -> None:
    """GlobalAveragePool, GlobalMaxPool: a reduction over all spatial axes; a MEAN may change the grid."""
    rank = len(site.value().shape)
    layout = channels_last(rank)
    axes = site.integers("axes", range(1, rank - 1))
    source = site.read(0, layout)
    result = site.define(layout, grid=source.grid if same_grid else None)
    site.builder.operator(code, [source, axes], [result], options("ReducerOptions", keepDims=True))


def _frame(site: Site) -> Window:
    frame = window(site, tuple(int(k) for k in site.setting("kernel_shape")))
    if (frame.height.dilation, frame.width.dilation) != (1, 1):
        raise site.refuse("its window is dilated")
    return frame


def _write(site: Site, code: str, source: Tensor, frame: Window) -> None:
    with spatial_output(site, grid=source.grid) as result:
        _pool(site, code, source, result, frame, site.node.activation)


def _pool(site: Site, code: str, source: Tensor, result: Tensor, frame: Window, activation: str) -> None:
    fields = options(
        "Pool2DOptions",
        padding=frame.padding,
        strideH=frame.height.stride,
        strideW=frame.width.stride,
        filterHeight=frame.height.taps,
        filterWidth=frame.width.taps,
        fusedActivationFunction=activation,
    )
    site.builder.operator(code, [source], [result], fields)


RULES = {
    "MaxPool": Rule(lower_max_pool, int16=True),
    "AveragePool": Rule(lower_average_pool, int16=True),
    "GlobalAveragePool": Rule(partial(lower_global_pool, code="MEAN", same_grid=False), int16=True),
    "GlobalMaxPool": Rule(partial(lower_global_pool, code="REDUCE_MAX", same_grid=True), int16=True),
}
