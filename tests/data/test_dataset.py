"""Splitting and making up samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe import errors
from edgepipe.data import make_dataset, random_data, split
from edgepipe.model import TensorSpec


def numbered(count):
    x = np.arange(count, dtype=np.float32).reshape(-1, 1)
    return make_dataset(x, np.arange(count), "numbers")


@given(st.integers(2, 700), st.integers(0, 5))
def test_default_split_is_a_quarter_at_most_128(count, seed):
    calibration, evaluation = split(numbered(count), None, seed)
    assert len(calibration) == max(1, min(128, count // 4))
    both = np.concatenate([calibration.y, evaluation.y])
    assert sorted(both.tolist()) == list(range(count))  # every sample in exactly one part
    for part in (calibration, evaluation):
        np.testing.assert_array_equal(part.x[:, 0], part.y)
        assert (np.diff(part.y) > 0).all()


def test_split_depends_on_the_seed_alone():
    first, again, other = (split(numbered(50), 10, seed) for seed in (3, 3, 4))
    assert [part.digest for part in first] == [part.digest for part in again]
    assert first[0].digest != other[0].digest


def test_split_leaves_its_input_alone():
    data = numbered(20)
    before = data.digest
    split(data, 5, 0)[0].x[:] = 0
    assert make_dataset(data.x, data.y, "").digest == before


@pytest.mark.parametrize("calibration", [0, -1, 20, 21])
def test_split_that_leaves_a_part_empty(calibration):
    with pytest.raises(errors.UsageError, match=r"calibration"):
        split(numbered(20), calibration, 0)


def test_one_sample_cannot_be_split():
    with pytest.raises(errors.DataEmpty):
        split(numbered(1), None, 0)


def test_random_samples_are_branded_and_seeded():
    spec = TensorSpec("input", "float32", (None, 3, 8, 8))
    data = random_data(spec, 500, 7)
    assert data.random
    assert data.x.shape == (500, 3, 8, 8)
    assert data.x.dtype == np.float32
    assert abs(data.x.mean()) < 0.02
    assert abs(data.x.std() - 1) < 0.02
    assert random_data(spec, 500, 7).digest == data.digest
    assert random_data(spec, 500, 8).digest != data.digest
    assert all(part.random for part in split(data, 10, 0))


def test_random_samples_of_8_bit_inputs_cover_the_range():
    x = random_data(TensorSpec("input", "uint8", (1, 64, 64, 3)), 4, 0).x
    assert (x.dtype, x.min(), x.max()) == (np.uint8, 0, 255)


def test_random_tokens_are_refused():
    with pytest.raises(errors.DataTypeMismatch):
        random_data(TensorSpec("tokens", "int64", (None, 4)), 4, 0)
