"""Convolutions: CONV_2D and DEPTHWISE_CONV_2D."""

from __future__ import annotations

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array
from edgepipe.convert.tflite.lower.site import Rule, Site, options
from edgepipe.convert.tflite.lower.weights import hybrid_weights, integer_weights, steps_of_accumulators
from edgepipe.convert.tflite.lower.window import Window, padded, spatial_input, spatial_output, window
from edgepipe.convert.tflite.program import Options, Tensor

# TFLite's orders of ONNX's kernel axes [out, in / group, kh, kw].
_FULL = (0, 2, 3, 1)
_DEPTHWISE = (1, 2, 3, 0)


def lower_conv(site: Site) -> None:
    """Conv: ``weight: float32 or int8 [out, in / group, kh, kw]``, or one spatial axis less."""
    weight = site.value(1)
    rank = len(weight.shape)
    if weight.data is None:
        raise site.refuse("its weights are computed at run time")
    if rank not in {3, 4}:
        raise site.refuse(f"it convolves over {rank - 2} axes, and 1 or 2 are written")
    group = int(site.setting("group", 1))
    frame = window(site, weight.shape[2:])
    source = padded(site, spatial_input(site), frame)
    depthwise = group > 1 and weight.shape[1] == 1
    kernel, bias = _weights(site, _DEPTHWISE if depthwise else _FULL, pointwise=frame.is_pointwise)
    if len(kernel.shape) == 2:
        _write_dense(site, [source, kernel, bias])
        return
    code = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    fields = _options(site, frame, weight.shape[0] // group if depthwise else None)
    with spatial_output(site) as result:
        site.builder.operator(code, [source, kernel, bias], [result], fields)


def _write_dense(site: Site, inputs: list[Tensor]) -> None:
    """A pointwise convolution as a FULLY_CONNECTED over the last axis: XNNPACK has int4 for that op alone.

    On x86 it is as fast as int8 so, where CONV_2D takes twice the time (LiteRT 2.3).
    """
    fields = options("FullyConnectedOptions", fusedActivationFunction=site.node.activation, keepNumDims=True)
    with spatial_output(site) as result:
        site.builder.operator("FULLY_CONNECTED", inputs, [result], fields)


def _options(site: Site, frame: Window, multiplier: int | None) -> Options:
    common = options(
        "Conv2DOptions",
        padding=frame.padding,
        strideH=frame.height.stride,
        strideW=frame.width.stride,
        dilationHFactor=frame.height.dilation,
        dilationWFactor=frame.width.dilation,
        fusedActivationFunction=site.node.activation,
    )
    if multiplier is None:
        return common
    return options("DepthwiseConv2DOptions", depthMultiplier=multiplier, **common.fields)


def _weights(site: Site, order: tuple[int, ...], *, pointwise: bool) -> tuple[Tensor, Tensor]:
    """Kernel in the given order of [out, in, kh, kw], and the bias: integers or float32 [out].

    The kernel of a pointwise convolution on int4 is a matrix: [out, in].

    A bias is always written, zeros where there is none: every version of the kernels takes that.
    """
    weight = site.value(1)
    bias = site.value(2) if site.has(2) else None
    if site.integer:
        ready = integer_weights(site, weight, 0, bias)
        grid = msgspec.structs.replace(ready.weight_grid, axis=order.index(0))
        data = _over_two_axes(ready.weight).transpose(order)
        if grid.bits == 4 and pointwise:
            data = data[:, 0, 0, :]
        kernel = site.builder.constant(weight.name, data, grid)
        name = bias.name if bias else f"{weight.name}/bias"
        return kernel, site.builder.constant(name, ready.bias, ready.bias_grid)
    if site.dynamic:
        ready = hybrid_weights(site, weight, 0, bias)
        grid = msgspec.structs.replace(ready.weight_grid, axis=order.index(0))
        kernel = site.builder.constant(weight.name, _over_two_axes(ready.weight).transpose(order), grid)
        return kernel, site.builder.constant(bias.name if bias else f"{weight.name}/bias", ready.bias)
    kernel = site.builder.constant(
        weight.name, _over_two_axes(weight.real()).transpose(order).astype(np.float32)
    )
    if bias is None:
        return kernel, site.builder.constant(f"{weight.name}/bias", np.zeros(weight.shape[0], np.float32))
    return kernel, site.builder.constant(bias.name, bias.real().astype(np.float32))


def _over_two_axes(array: Array) -> Array:
    """The kernel with two spatial axes: one over a single axis gets a first one of size 1."""
    return array if array.ndim == 4 else array[:, :, None, :]


RULES = {
    "Conv": Rule(lower_conv, weights=(2,), per_channel=(1,), int16=True, steps=steps_of_accumulators),
}
