"""Dense layers: FULLY_CONNECTED, and BATCH_MATMUL where both factors are computed."""

from __future__ import annotations

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Grid, Value
from edgepipe.convert.tflite.layout import Layout, plain
from edgepipe.convert.tflite.lower.site import Rule, Site, options
from edgepipe.convert.tflite.lower.weights import hybrid_weights, integer_weights, steps_of_accumulators
from edgepipe.convert.tflite.program import Tensor


def lower_gemm(site: Site) -> None:
    """Gemm: ``alpha * input [1, in] @ weight + beta * bias``, the weight [in, out] or transposed."""
    if site.setting("transA", 0) or site.value(1).data is None:
        raise site.refuse("only an input times a constant weight is written")
    _fully_connected(site, transposed=bool(site.setting("transB", 0)))


def lower_matmul(site: Site) -> None:
    """MatMul: by a constant matrix a FULLY_CONNECTED, otherwise a BATCH_MATMUL."""
    if site.value(1).data is not None and len(site.value(1).shape) == 2:
        _fully_connected(site, transposed=False)
        return
    if min(len(site.value(index).shape) for index in (0, 1)) < 2:
        raise site.refuse("a factor is a vector, and LiteRT multiplies matrices")
    grid = site.value(1).grid
    if grid is not None and grid.axis is not None:
        raise site.refuse("its weight has more than two axes, and a scale for each channel")
    rank = len(site.result().shape)
    left, right = site.operand(0, plain(rank)), site.operand(1, plain(rank))
    site.builder.operator(
        "BATCH_MATMUL", [left, right], [site.define(plain(rank))], options("BatchMatMulOptions")
    )


def _fully_connected(site: Site, *, transposed: bool) -> None:
    weight = site.value(1)
    if not transposed:
        weight = _transposed(weight)
    layout = site.layout()
    if layout.perm != plain(len(layout.perm)).perm:
        layout = plain(len(layout.perm))
    source = site.read(0, layout)
    kernel, bias = _weights(site, weight, Layout((0, 1), layout.sizes, layout.order))
    result = site.define(plain(len(source.shape)))
    fields = options(
        "FullyConnectedOptions",
        fusedActivationFunction=site.node.activation,
        keepNumDims=len(source.shape) > 2,
        asymmetricQuantizeInputs=site.dynamic,
    )
    site.builder.operator("FULLY_CONNECTED", [source, kernel, bias], [result], fields)


def _weights(site: Site, weight: Value, layout: Layout) -> tuple[Tensor, Tensor]:
    """The kernel [out, in], its columns in the order in which the input is flattened; the bias [out]."""
    channels = weight.shape[0]
    bias = _bias(site, channels)
    name = site.value(1).name
    if site.integer and site.setting("alpha", 1.0) == 1.0:
        ready = integer_weights(site, weight, 0, bias)
        grid = _merged(ready.weight_grid)
        kernel = site.builder.constant(name, layout.arrange(ready.weight), grid)
        bias_grid = None if ready.bias_grid is None else _merged(ready.bias_grid)
        return kernel, site.builder.constant(f"{name}/bias", ready.bias, bias_grid)
    if site.integer:
        raise site.refuse("it is quantized, with an alpha other than 1")
    if site.dynamic and site.setting("alpha", 1.0) == 1.0:
        ready = hybrid_weights(site, weight, 0, bias)
        kernel = site.builder.constant(name, layout.arrange(ready.weight), _merged(ready.weight_grid))
        return kernel, site.builder.constant(f"{name}/bias", ready.bias)
    scaled = (weight.real() * site.setting("alpha", 1.0)).astype(np.float32)
    kernel = site.builder.constant(name, layout.arrange(scaled))
    real = np.zeros(channels) if bias is None else bias.real()
    return kernel, site.builder.constant(f"{name}/bias", real.astype(np.float32))


def _bias(site: Site, channels: int) -> Value | None:
    """The bias spread to [out] and scaled by beta; None where there is none."""
    if not site.has(2):
        return None
    bias, beta = site.value(2), float(site.setting("beta", 1.0))
    if bias.data is None:
        raise site.refuse("its bias is computed at run time")
    if bias.data.size not in {1, channels}:
        raise site.refuse("its bias differs from row to row")
    if beta == 1.0 and bias.data.size == channels:
        return msgspec.structs.replace(bias, data=bias.data.reshape(channels), shape=(channels,))
    data = np.broadcast_to(bias.real().reshape(-1) * beta, (channels,))
    return Value(bias.name, (channels,), "float32", data.astype(np.float32))


def _transposed(weight: Value) -> Value:
    grid = weight.grid
    if grid is not None and grid.axis is not None:
        grid = msgspec.structs.replace(grid, axis=1 - grid.axis)
    data: Array = np.asarray(weight.data).T
    return msgspec.structs.replace(weight, shape=data.shape, data=data, grid=grid)


def _merged(grid: Grid) -> Grid:
    """One step for the tensor where all channels have the same: older kernels know no other."""
    if len(set(grid.scale)) > 1:
        return grid
    return msgspec.structs.replace(grid, scale=grid.scale[:1], zero_point=grid.zero_point[:1], axis=None)


RULES = {
    "Gemm": Rule(lower_gemm, weights=(2,), per_channel=(1,), int16=True, steps=steps_of_accumulators),
    "MatMul": Rule(lower_matmul, weights=(2,), per_channel=(1,), int16=True, steps=steps_of_accumulators),
}
