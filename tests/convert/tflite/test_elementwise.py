"""Element-wise ops: broadcasting in every layout, both domains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

OPS = ["Add", "Sub", "Mul"]


def constant(*shape):
    """The same numbers for the same shape, whatever ran before."""
    return np.random.default_rng([7, *shape]).normal(size=shape).astype(np.float32)


@settings(max_examples=80)
@given(
    op=st.sampled_from([*OPS, "Div", "Max", "Min"]),
    shape=st.sampled_from([(), (1,), (4,), (3, 1, 1), (1, 3, 1, 1), (5, 1), (3, 5, 4), (1, 1, 5, 4)]),
    first=st.booleans(),
    behind_conv=st.booleans(),
)
def test_constants_broadcast(tools, op, shape, first, behind_conv):
    constants = {"w": constant(3, 3, 1, 1), "k": np.abs(constant(*shape)) + np.float32(0.5)}
    source = "c" if behind_conv else "x"
    nodes = [("Conv", ["x", "w"], ["c"], {})] if behind_conv else []
    nodes.append((op, ["k", source] if first and op != "Div" else [source, "k"], ["y"], {}))
    emission = tools.same(tools.model(nodes, {"x": [1, 3, 5, 4]}, constants), tolerance=1e-4)
    assert "TRANSPOSE" not in emission.op_counts


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 5, 4)])
def test_int8_constants_broadcast(tools, op, shape):
    constants = {"w": constant(3, 3, 1, 1), "k": constant(*shape)}
    nodes = [("Conv", ["x", "w"], ["c"], {}), (op, ["c", "k"], ["y"], {})]
    model = tools.model(nodes, {"x": [1, 3, 5, 4]}, constants)
    # A step of the conv's output, by which the runtimes may differ, is up to two of the result.
    emission = tools.both(model, steps=2)[1]
    assert set(emission.op_counts) == {"CONV_2D", op.upper()}


@pytest.mark.parametrize("op", [*OPS, "Div", "Max", "Min"])
@pytest.mark.parametrize("other", [(1, 3, 5, 4), (1, 3, 1, 1), (1, 1, 5, 4), (5, 4), (4,)])
def test_computed_values_broadcast(tools, op, other):
    """The second input comes in the layout of ONNX, the first from a conv."""
    model = tools.model(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            ("Exp", ["z"], ["e"], {}),
            (op, ["c", "e"], ["y"], {}),
        ],
        {"x": [1, 3, 5, 4], "z": list(other)},
        {"w": constant(3, 3, 1, 1)},
    )
    tools.same(model, tolerance=1e-4)


@pytest.mark.parametrize("op", [*OPS, "Max", "Min"])
def test_int8_of_two_computed_values(tools, op):
    model = tools.model([(op, ["a", "b"], ["y"], {})], {"a": [1, 6], "b": [1, 6]})
    tools.both(model, steps=1.0 if op in OPS else 2.0)


def test_division_by_a_scalar_stays_on_integers(tools):
    model = tools.model([("Div", ["x", "k"], ["y"], {})], {"x": [1, 9]}, {"k": np.float32(6)})
    emission = tools.both(model)[1]
    assert emission.op_counts == {"MUL": 1}


def test_an_op_without_int8_kernel_stands_in_float_between_conversions(tools):
    model = tools.model(
        [("Relu", ["x"], ["r"], {}), ("Exp", ["r"], ["e"], {}), ("Relu", ["e"], ["y"], {})], {"x": [1, 9]}
    )
    emission = tools.both(model)[1]
    assert {"DEQUANTIZE", "EXP", "QUANTIZE"} <= set(emission.op_counts)


def test_squeeze_and_excitation(tools):
    """Channel weights from a pooled branch scale the map they came from."""
    model = tools.model(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            ("GlobalAveragePool", ["c"], ["p"], {}),
            ("Conv", ["p", "v"], ["s"], {}),
            ("HardSigmoid", ["s"], ["h"], {"alpha": 1 / 6, "beta": 0.5}),
            ("Mul", ["h", "c"], ["y"], {}),
        ],
        {"x": [1, 3, 6, 6]},
        {"w": constant(4, 3, 1, 1), "v": constant(4, 4, 1, 1)},
    )
    for emission in tools.both(model, steps=3):
        assert "TRANSPOSE" not in emission.op_counts
