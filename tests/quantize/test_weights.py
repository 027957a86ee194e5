"""Integer weights and the bias correction against convolutions by their definition."""

import numpy as np
import onnx_ir as ir
import pytest

from edgepipe.quantize.grid import Grid
from edgepipe.quantize.weights import mean_output_error, quantize_linear

RNG = np.random.default_rng(0)
GRID = Grid(0.05, -10)


def linear(op_type, weight, bias=None, **attributes):
    def constant(name, array):
        return ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))

    inputs = [ir.Value(name="x"), constant("w", weight)]
    if bias is not None:
        inputs.append(constant("b", bias))
    return ir.node(op_type, inputs, attributes)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("op_type", "shape", "attributes", "axis"),
    [
        ("Conv", (6, 3, 3, 3), {}, 0),
        ("Conv", (6, 1, 3, 3), {"group": 6}, 0),
        ("ConvTranspose", (3, 6, 2, 2), {}, 1),
        ("Gemm", (6, 5), {"transB": 1}, 0),
        ("Gemm", (5, 6), {}, 1),
        ("MatMul", (5, 6), {}, 1),
    ],
)
def test_each_output_channel_has_a_scale(op_type, shape, attributes, axis):
    weight = normal(*shape) * np.arange(1, 7).reshape(
        [-1 if each == axis else 1 for each in range(len(shape))]
    )
    result = quantize_linear(
        linear(op_type, weight.astype(np.float32), **attributes), GRID, "per-channel", None
    )
    others = tuple(each for each in range(len(shape)) if each != axis)
    assert result.axis == axis
    np.testing.assert_allclose(result.scales, np.abs(weight).max(axis=others) / 127, rtol=1e-6)
    np.testing.assert_array_equal(np.abs(result.weight).max(axis=others), 127)
    assert result.bias is None


def test_one_scale_for_the_whole_weight():
    weight = normal(6, 3, 3, 3)
    result = quantize_linear(linear("Conv", weight, normal(6)), GRID, "per-tensor", None)
    assert result.scales.shape == result.bias_scales.shape == (1,)
    assert result.scales[0] == pytest.approx(np.abs(weight).max() / 127)


def test_bias_is_on_the_accumulators_grid():
    bias = normal(6)
    result = quantize_linear(linear("Conv", normal(6, 3, 3, 3), bias), GRID, "per-channel", None)
    np.testing.assert_array_equal(result.bias_scales, np.float32(0.05) * result.scales)
    np.testing.assert_allclose(
        result.bias * result.bias_scales.astype(float), bias, atol=result.bias_scales.max()
    )


def test_channels_whose_bias_would_overflow_are_rounded_more_coarsely():
    weight, bias = normal(6, 3, 1, 1), normal(6)
    weight[2] *= 1e-9
    result = quantize_linear(linear("Conv", weight, bias), GRID, "per-channel", None)
    assert result.raised == 1
    assert abs(result.bias[2]) > 2**29
    assert result.bias[2] * float(result.bias_scales[2]) == pytest.approx(bias[2], rel=1e-5)


def convolve(x, weight, group):
    """A valid convolution by its definition: [n, o, h, w]."""
    n, _, height, width = x.shape
    outputs, depth, kh, kw = weight.shape
    result = np.zeros((n, outputs, height - kh + 1, width - kw + 1))
    for o in range(outputs):
        first = o // (outputs // group) * depth
        for i in range(result.shape[2]):
            for j in range(result.shape[3]):
                patch = x[:, first : first + depth, i : i + kh, j : j + kw]
                result[:, o, i, j] = (patch * weight[o]).sum(axis=(1, 2, 3))
    return result


@pytest.mark.parametrize(("shape", "group"), [((4, 6, 1, 1), 1), ((4, 3, 1, 1), 2), ((6, 1, 1, 1), 6)])
def test_mean_error_of_a_pointwise_convolution_is_exact(shape, group):
    x, error = normal(3, 6, 5, 5), normal(*shape)
    expected = convolve(x, error, group).mean(axis=(0, 2, 3))
    found = mean_output_error(linear("Conv", error, group=group), error, x.mean(axis=(0, 2, 3), dtype=float))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mean_error_of_a_larger_kernel_is_exact_where_the_map_is_constant():
    means = RNG.normal(size=6)
    x = np.broadcast_to(means.reshape(1, 6, 1, 1), (2, 6, 7, 7))
    error = normal(4, 3, 3, 3)
    expected = convolve(x, error, 2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(
        mean_output_error(linear("Conv", error, group=2), error, means), expected, atol=1e-5
    )


@pytest.mark.parametrize("transposed", [0, 1])
def test_mean_error_of_gemm_is_exact(transposed):
    x, error = normal(9, 5), normal(5, 4)
    node = linear("Gemm", error.T if transposed else error, transB=transposed)
    found = mean_output_error(node, error.T if transposed else error, x.mean(axis=0, dtype=float))
    np.testing.assert_allclose(found, (x @ error).mean(axis=0), atol=1e-5)


def test_correction_cancels_the_mean_error():
    weight, bias, mean = normal(6, 5), normal(6), RNG.normal(3, 1, 5)
    node = linear("Gemm", weight, bias, transB=1)
    plain, corrected = (quantize_linear(node, Grid(1e-4, 0), "per-tensor", each) for each in (None, mean))

    def mean_output(result):
        return (result.weight * result.scales[0]) @ mean + result.bias * result.bias_scales.astype(float)

    exact = weight @ mean + bias
    assert np.abs(mean_output(plain) - exact).max() > 1e-2
    assert np.abs(mean_output(corrected) - exact).max() < 1e-4
