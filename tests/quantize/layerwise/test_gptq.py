"""Rounding by the error of the output, against all roundings that there are and numpy's least squares."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgepipe.quantize.layerwise.gptq import (
    Moments,
    Step,
    descend,
    fitted_scales,
    fitting_loss,
    least_squares_weight,
    output_error,
    round_in_order,
    round_weight,
)

GROUPS, INPUTS, OUTPUTS, ROWS = 2, 6, 3, 50


def problem(seed=0, groups=GROUPS, inputs=INPUTS, outputs=OUTPUTS, rows=ROWS):
    """A weight, correlated inputs [groups, rows, inputs], and their damped moments."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(groups, inputs, outputs))
    x = random.normal(size=(groups, rows, inputs)) @ random.normal(size=(groups, inputs, inputs))
    gram = x.swapaxes(1, 2) @ x / rows
    return weight, x, Moments(gram, gram).damped(1e-6)


def full_scales(weight, largest):
    return np.abs(weight).max(axis=1) / largest


def step(weight, largest, *, shared=False, least=1e-12):
    scales = full_scales(weight, largest)
    if shared:
        scales = np.full_like(scales, scales.max())
    return Step(scales=scales, least=np.full_like(scales, least), largest=largest, shared=shared)


def nearest(weight, scales, largest):
    return np.clip(np.rint(weight / scales[:, None]), -largest, largest)


def test_the_output_error_is_that_of_the_products():
    weight, x, moments = problem()
    rounded = np.round(weight, 1)
    expected = np.square(x @ (weight - rounded)).mean(axis=1)
    np.testing.assert_allclose(output_error(weight, rounded, moments.gram), expected, rtol=1e-4)


def test_the_target_is_numpys_least_squares():
    weight, x, _ = problem()
    noisy = x + 0.1 * np.random.default_rng(1).normal(size=x.shape)
    moments = Moments(noisy.swapaxes(1, 2) @ noisy / ROWS, noisy.swapaxes(1, 2) @ x / ROWS)
    found = least_squares_weight(weight, moments)
    for group in range(GROUPS):
        expected = np.linalg.lstsq(noisy[group], x[group] @ weight[group], rcond=None)[0]
        np.testing.assert_allclose(found[group], expected, rtol=1e-8)


def test_a_strong_pull_leaves_the_float_weight():
    weight, x, _ = problem()
    moments = Moments(x.swapaxes(1, 2) @ x, 0.3 * x.swapaxes(1, 2) @ x).damped(1e9)
    np.testing.assert_allclose(least_squares_weight(weight, moments), weight, rtol=1e-6)


def test_the_fitting_loss_ranks_as_the_error_on_the_samples_does():
    weight, x, moments = problem()
    trials = [weight + scale * np.random.default_rng(5).normal(size=weight.shape) for scale in (0, 0.1, 1)]
    errors = [np.square(x @ weight - x @ trial).sum() / ROWS for trial in trials]
    losses = [fitting_loss(weight, trial, moments) for trial in trials]
    np.testing.assert_allclose(np.diff(losses), np.diff(errors), rtol=1e-3)


@pytest.mark.parametrize("largest", [1, 3, 7])
@pytest.mark.parametrize("seed", range(8))
def test_no_single_step_makes_two_weights_better(seed, largest):
    weight, _, moments = problem(seed, groups=1, inputs=2, outputs=1)
    scales = full_scales(weight, largest)
    start = round_in_order(weight, moments.gram, scales, largest)
    found = descend(start, weight, moments.gram, scales, largest, 8)
    choices = np.array(list(itertools.product(range(-largest, largest + 1), repeat=2)), float)
    errors = [output_error(weight, each[None, :, None] * scales[0], moments.gram).item() for each in choices]
    error = output_error(weight, found * scales[:, None], moments.gram).item()
    assert min(errors) <= error * (1 + 1e-9)
    assert error <= np.median(errors)
    moved = [found + np.array(one).reshape(1, 2, 1) for one in [(1, 0), (-1, 0), (0, 1), (0, -1)]]
    inside = [each for each in moved if np.abs(each).max() <= largest]
    best = min(output_error(weight, each * scales[:, None], moments.gram).item() for each in inside)
    assert error <= best * (1 + 1e-9)


def test_one_weight_is_rounded_to_the_nearest():
    weight, _, moments = problem(inputs=1)
    scales = np.full((GROUPS, OUTPUTS), 0.1)
    found = round_in_order(weight, moments.gram, scales, 127)
    np.testing.assert_array_equal(found, np.clip(np.rint(weight / 0.1), -127, 127))


def test_inputs_without_correlation_are_rounded_to_the_nearest():
    weight, _, _ = problem()
    gram = np.broadcast_to(np.diag(np.arange(1.0, INPUTS + 1)), (GROUPS, INPUTS, INPUTS))
    scales = full_scales(weight, 7)
    expected = nearest(weight, scales, 7)
    np.testing.assert_array_equal(round_in_order(weight, gram, scales, 7), expected)
    np.testing.assert_array_equal(descend(expected, weight, gram, scales, 7, 5), expected)


def test_blocks_change_nothing(monkeypatch):
    weight, _, moments = problem(inputs=40, rows=200)
    scales = full_scales(weight, 7)
    whole = round_in_order(weight, moments.gram, scales, 7)
    monkeypatch.setattr("edgepipe.quantize.layerwise.gptq._BLOCK", 7)
    np.testing.assert_array_equal(round_in_order(weight, moments.gram, scales, 7), whole)


def test_groups_are_rounded_as_if_each_were_alone():
    weight, _, moments = problem(groups=4)
    scales = full_scales(weight, 7)
    together = round_in_order(weight, moments.gram, scales, 7)
    for group in range(4):
        at = slice(group, group + 1)
        alone = round_in_order(weight[at], moments.gram[at], scales[at], 7)
        np.testing.assert_array_equal(together[at], alone)


@given(seed=st.integers(0, 10**6), largest=st.sampled_from([1, 3, 7, 127]), sweeps=st.integers(1, 5))
def test_descent_never_makes_it_worse(seed, largest, sweeps):
    weight, _, moments = problem(seed)
    scales = full_scales(weight, largest)
    start = nearest(weight, scales, largest)
    before = output_error(weight, start * scales[:, None], moments.gram)
    found = descend(start, weight, moments.gram, scales, largest, sweeps)
    after = output_error(weight, found * scales[:, None], moments.gram)
    assert (after <= before * (1 + 1e-9) + 1e-15).all()
    assert np.abs(found).max() <= largest


@given(seed=st.integers(0, 10**6), shared=st.booleans())
def test_fitted_scales_never_make_it_worse(seed, shared):
    weight, _, moments = problem(seed)
    grid = step(weight, 7, shared=shared)
    integers = nearest(weight, grid.scales, 7)
    scales = fitted_scales(integers, weight, moments.gram, grid.scales, shared=shared)
    before = output_error(weight, integers * grid.scales[:, None], moments.gram).sum()
    after = output_error(weight, integers * scales[:, None], moments.gram).sum()
    assert after <= before * (1 + 1e-9)
    assert not shared or np.ptp(scales) == 0


@given(seed=st.integers(0, 10**6), largest=st.sampled_from([1, 3, 7, 15, 31, 63, 127]), shared=st.booleans())
def test_the_whole_never_falls_behind_the_nearest(seed, largest, shared):
    weight, _, moments = problem(seed)
    grid = step(weight, largest, shared=shared)
    plain = nearest(weight, grid.scales, largest) * grid.scales[:, None]
    integers, scales = round_weight(weight, moments.gram, grid)
    before = output_error(weight, plain, moments.gram)
    after = output_error(weight, integers * scales[:, None], moments.gram)
    if shared:
        before, after = before.sum(), after.sum()
        assert np.ptp(scales) == 0
    assert (after <= before * (1 + 1e-5) + 1e-12).all()  # scales are float32
    assert (integers == np.rint(integers)).all()
    assert np.abs(integers).max() <= largest
    assert (scales == scales.astype(np.float32)).all()


def test_four_bits_gain_what_correlation_offers():
    weight, _, moments = problem(inputs=32, rows=400, outputs=16)
    grid = step(weight, 7)
    plain = output_error(weight, nearest(weight, grid.scales, 7) * grid.scales[:, None], moments.gram)
    integers, scales = round_weight(weight, moments.gram, grid)
    found = output_error(weight, integers * scales[:, None], moments.gram)
    assert found.sum() < 0.5 * plain.sum()


def test_scales_keep_to_the_least_that_is_allowed():
    weight, _, moments = problem()
    least = 2 * full_scales(weight, 7).max()
    _, scales = round_weight(weight, moments.gram, step(weight, 7, least=least))
    assert (scales >= np.float32(least) * (1 - 1e-6)).all()


@given(gram=arrays.arrays(np.float64, (1, 3, 3), elements=st.sampled_from([0.0, 1.0, 1e-20, 1e20])))
def test_dead_inputs_and_dead_outputs_stay_sound(gram):
    root = gram @ gram.swapaxes(1, 2)
    moments = Moments(root, root).damped(0.01)
    weight = np.array([[[0.0, 1.0], [0.0, -2.0], [0.0, 1e-30]]])
    grid = Step(scales=np.full((1, 2), 0.1), least=np.full((1, 2), 1e-12), largest=7, shared=False)
    integers, scales = round_weight(weight, moments.gram, grid)
    assert np.isfinite(integers).all()
    assert (scales > np.finfo(np.float32).tiny).all()
    assert not integers[:, :, 0].any()
