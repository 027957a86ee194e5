"""Comparison of raw tensors, held against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from device_agent.protocol import Port
from device_agent.tensors import Comparison, TensorMismatch, check_size, difference, values_of

DTYPES = [
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def port(dtype, size, scale=None):
    return Port("y", dtype, (1, size), scale)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_values_are_those_of_numpy(dtype):
    values = np.array([0, 1, 1, 0]) if dtype == "bool" else np.array([0, 1, 100, 3])
    tensor = values.astype(dtype)
    assert list(values_of(tensor.tobytes(), dtype)) == tensor.tolist()


@given(st.data(), st.sampled_from(["int8", "uint8", "int16", "int32", "float16", "float32", "float64"]))
def test_difference_is_that_of_numpy(data, dtype):
    bounded = {"allow_nan": False, "allow_infinity": False, "allow_subnormal": False}
    elements = hnp.from_dtype(np.dtype(dtype), **(bounded if "float" in dtype else {}))
    got, expected = (data.draw(hnp.arrays(dtype, 6, elements=elements)) for _ in range(2))
    found = difference(got.tobytes(), expected.tobytes(), port(dtype, 6))
    wide_got, wide_expected = got.astype("float64"), expected.astype("float64")
    assert found.elements == 6
    assert found.differing == np.count_nonzero(got != expected)
    with np.errstate(over="ignore"):
        worst = np.abs(wide_got - wide_expected).max()
    assert found.worst == pytest.approx(worst, rel=1e-12)
    assert found.argmax_equal == (got.argmax() == expected.argmax())
    assert found.not_finite == 0


def test_range_of_constant_outputs_is_their_size():
    constant = np.array([3, 3], "float32")
    assert difference(constant.tobytes(), constant.tobytes(), port("float32", 2)).range == 3.0
    zero = np.zeros(2, "float32")
    assert difference(constant.tobytes(), zero.tobytes(), port("float32", 2)).range == 1.0


def test_nan_and_infinity_are_counted_and_kept_out_of_the_worst():
    nan, inf = np.nan, np.inf
    got = np.array([nan, 1.0, inf, nan, -inf, 2.0], "float32")
    expected = np.array([nan, 1.5, inf, 4.0, inf, nan], "float32")
    found = difference(got.tobytes(), expected.tobytes(), port("float32", 6))
    assert (found.differing, found.not_finite, found.worst) == (4, 3, 0.5)


def test_summary_keeps_the_worst_sample():
    comparison = Comparison(port("float32", 2, 0.25))
    for shift in (0.0, 0.5, 0.25):
        comparison.add(
            np.array([1.0 + shift, 3.0], "float32").tobytes(), np.array([1.0, 3.0], "float32").tobytes()
        )
    found = comparison.summary()
    assert (found.worst_absolute, found.worst_steps, found.worst_relative) == (0.5, 2.0, 0.25)
    assert (found.worst_sample, found.argmax_equal, found.elements, found.differing) == (1, 3, 6, 2)


def test_steps_of_integers_need_no_division():
    comparison = Comparison(port("int8", 1, 0.003))
    comparison.add(b"\x05", b"\x02")
    assert comparison.summary().worst_steps == 3.0
    comparison = Comparison(port("int64", 1))
    comparison.add(bytes(8), bytes(8))
    assert comparison.summary().worst_steps is None


@pytest.mark.parametrize(("dtype", "size"), [("int8", 5), ("float16", 10), ("float32", 20), ("int64", 40)])
def test_sizes(dtype, size):
    check_size(bytes(size), port(dtype, 5), "file")
    with pytest.raises(TensorMismatch, match=f"file: {size - 1} bytes, but port y is {dtype}"):
        check_size(bytes(size - 1), port(dtype, 5), "file")


def test_unknown_type():
    with pytest.raises(TensorMismatch, match="unknown type 'complex64'"):
        check_size(b"", port("complex64", 0), "file")


def test_summary_is_finite_whatever_the_values():
    comparison = Comparison(port("float64", 1, 1e-300))
    comparison.add(np.array([-1.7e308]).tobytes(), np.array([1.7e308]).tobytes())
    found = comparison.summary()
    assert np.isfinite([found.worst_absolute, found.worst_relative, found.worst_steps]).all()
