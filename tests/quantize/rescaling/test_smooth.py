"""Smoothing: a transformer's outlying channels move into weights, and nothing that is computed changes."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgepipe.errors import CalibrationDataMissing
from edgepipe.graph.simplify import simplify
from edgepipe.model import onnx_model
from edgepipe.quantize.rescaling.smooth import Smooth, migration
from edgepipe.quantize.static import QuantizeStatic

TOKENS, WIDTH = 6, 16


def block(*, outliers, seed=0):
    """LayerNormalization read by two dense layers, one with Relu and a further one behind; a residual sum."""
    rng = np.random.default_rng(seed)
    gamma, beta = rng.uniform(0.5, 1.5, WIDTH), rng.normal(size=WIDTH) * 0.2
    first, second = (rng.normal(size=(WIDTH, WIDTH)) / 4 for _ in range(2))
    third = rng.normal(size=(WIDTH, WIDTH)) / 4
    for channel in outliers:
        gamma[channel] *= 50
        beta[channel] *= 50
        first[channel] /= 50
        second[channel] /= 50
    constants = {
        "gamma": gamma,
        "beta": beta,
        "a": first,
        "b": second,
        "c": third,
        "bias": rng.normal(size=WIDTH),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "a"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["s"]),
        helper.make_node("MatMul", ["n", "b"], ["t"]),
        helper.make_node("Add", ["s", "t"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, 1, ["n", TOKENS, WIDTH]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(each.astype(np.float32), name) for name, each in constants.items()]
    graph = helper.make_graph(nodes, "block", values[:1], values[1:], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return simplify(onnx_model(proto, "block"))


def samples(seed):
    return np.random.default_rng(seed).normal(size=(32, TOKENS, WIDTH)).astype(np.float32)


def sqnr_db(exact, found):
    return 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())


@pytest.mark.parametrize("settings", [{}, {"search": False}, {"search": False, "strength": 0.75}])
def test_outliers_cost_nothing_once_smoothed(compute, make_context, settings):
    model, context, x = block(outliers=(2, 11)), make_context(samples(0)), samples(1)
    smooth = Smooth(**settings).apply(model, context)
    [exact], [same] = compute(model, x), compute(smooth, x)
    np.testing.assert_allclose(same, exact, rtol=1e-3, atol=1e-5 * np.abs(exact).max())
    before, after = (compute(QuantizeStatic().apply(each, context), x)[0] for each in (model, smooth))
    assert sqnr_db(exact, after) > sqnr_db(exact, before) + 10


def test_search_does_no_harm_where_there_are_no_outliers(compute, make_context):
    model, context, x = block(outliers=()), make_context(samples(0)), samples(1)
    [exact] = compute(model, x)
    before, after = (
        compute(QuantizeStatic().apply(each, context), x)[0]
        for each in (model, Smooth().apply(model, context))
    )
    assert sqnr_db(exact, after) > sqnr_db(exact, before) - 0.5


def test_divisors_are_those_of_the_paper():
    peaks, weights = np.array([4.0, 1.0, 64.0, 0.0]), np.array([1.0, 0.25, 0.5, 2.0])
    found = migration(peaks, weights, 0.75)
    paper = peaks[:3] ** 0.75 / weights[:3] ** 0.25
    np.testing.assert_allclose(found[:3] / found[0], paper / paper[0])
    assert found[3] == 1
    assert np.prod(found[:3]) == pytest.approx(1)


def test_the_divisor_goes_into_scale_and_bias_of_the_normalization(make_context):
    model, context = block(outliers=(2,)), make_context(samples(0))

    def of(each):
        proto = onnx.load_from_string(each.payload)
        arrays = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
        [node] = [one for one in proto.graph.node if one.op_type == "LayerNormalization"]
        return [arrays[name] for name in node.input[1:]]

    (gamma, beta), (smooth_gamma, smooth_beta) = of(model), of(Smooth().apply(model, context))
    np.testing.assert_allclose(smooth_gamma / gamma, smooth_beta / beta, rtol=1e-4)
    assert np.argmin(smooth_gamma / gamma) == 2


def test_models_without_dense_layers_pass_through(make_context, tiny_onnx):
    model = onnx_model(onnx.load_from_string(tiny_onnx(batch=None).payload), "tiny")
    assert Smooth().apply(model, make_context(np.zeros((2, 3, 4, 5), np.float32))) is model


def test_needs_samples(make_context):
    with pytest.raises(CalibrationDataMissing, match="smoothing"):
        Smooth().apply(block(outliers=()), make_context())
