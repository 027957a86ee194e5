"""Extrapolated ranges against searches, sampled Gumbel laws and samples that were held back."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from edgepipe.quantize.calibration.extremes import Reach, extrapolated_range
from edgepipe.quantize.calibration.ranges import Observation, choose_grid, joined
from edgepipe.quantize.grid import activation_grid

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)


def reach(low, high, typical_low, typical_high, samples=64, elements=10):
    return Reach(
        low=low,
        high=high,
        typical_low=typical_low,
        typical_high=typical_high,
        samples=samples,
        elements=elements,
    )


REACHES = st.builds(
    lambda ends, shares, samples, elements: reach(
        ends[0],
        ends[1],
        ends[0] + shares[0] * (ends[1] - ends[0]),
        ends[1] - shares[1] * (ends[1] - ends[0]),
        samples,
        elements,
    ),
    st.tuples(FINITE, FINITE).map(sorted),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.integers(1, 1000),
    st.integers(1, 10**6),
)
GROUPS = st.lists(REACHES, min_size=1, max_size=3)


def ends_of(reaches):
    return min(each.low for each in reaches), max(each.high for each in reaches)


def law(greatest, mean, samples):
    """SciPy's Gumbel law with this mean, whose greatest of `samples` has this mean in turn."""
    from scipy.stats import gumbel_r

    scale = (greatest - mean) / math.log(samples)
    return gumbel_r(loc=mean - np.euler_gamma * scale, scale=scale)


def modelled_error(reaches, low, high, width, levels):
    """Expected squared error of rounding and of clipping, at arrays of ends."""
    total = sum(each.elements for each in reaches) * (width / levels) ** 2 / 12
    for each in reaches:
        sides = [(each.high, each.typical_high, high), (-each.low, -each.typical_low, -low)]
        for greatest, mean, end in sides:
            if greatest > 0 and greatest > mean and each.samples > 1:
                scale = (greatest - mean) / math.log(each.samples)
                total = total + 2 * scale**2 * np.exp(-(end - mean) / scale - np.euler_gamma)
    return total


CASES = {
    "one end": [reach(0.0, 20.0, 0.0, 9.0)],
    "both ends": [reach(-12.0, 20.0, -6.0, 9.0)],
    "large": [reach(-12.0, 20.0, -6.0, 9.0, elements=400)],
    "few samples": [reach(-12.0, 20.0, -6.0, 9.0, samples=3)],
    "shared": [reach(-12.0, 20.0, -6.0, 9.0), reach(-15.0, 11.0, -13.0, 4.0, elements=30)],
    "above zero": [reach(2.0, 20.0, 3.0, 9.0)],
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("case", CASES)
def test_both_ends_are_those_of_a_search(case, bits):
    reaches = CASES[case]
    seen = ends_of(reaches)
    low, high = extrapolated_range(*seen, reaches, symmetric=False, bits=bits)
    start = min(seen[0], 0.0), max(seen[1], 0.0)
    shift = low - seen[0], high - seen[1]

    def error(below, above):
        ends = start[0] - below, start[1] + above
        return modelled_error(reaches, *ends, ends[1] - ends[0], 2**bits - 1)

    found = error(-shift[0], shift[1])
    trials = np.linspace(0, 2 * max(seen[1] - seen[0], *np.abs(shift)), 1201)
    best = error(trials[:, None] if seen[0] < 0 else 0.0, trials).min()
    assert found <= best * (1 + 1e-9)
    assert found >= best * 0.99
    # and where the error is least, no step aside makes it less
    assert found <= min(error(-shift[0], max(shift[1] + side, 0)) for side in (-1e-2, 1e-2)) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("case", CASES)
def test_a_symmetric_range_is_that_of_a_search(case, bits):
    reaches = CASES[case]
    seen = ends_of(reaches)
    grid = activation_grid(*extrapolated_range(*seen, reaches, symmetric=True, bits=bits), symmetric=True)
    magnitude = grid.scale * 127  # of an 8-bit grid over the range chosen for either
    start = max(-seen[0], seen[1])

    def error(end):
        return modelled_error(reaches, -end, end, 2 * end, 2**bits - 2)

    best = error(np.linspace(start, 4 * start, 20_001)).min()
    assert magnitude >= start * (1 - 1e-6)
    assert error(magnitude) <= best * (1 + 1e-6)


def test_the_modelled_clipping_is_that_of_the_law():
    """The exponential tail against the whole Gumbel law: its integral, and samples drawn from it."""
    from scipy.integrate import quad

    greatest, mean = 20.0, 9.0
    gumbel = law(greatest, mean, 64)
    assert gumbel.mean() == pytest.approx(mean)

    def modelled(end):
        return modelled_error([reach(0.0, greatest, 0.0, mean)], 0.0, end, 0.0, 255)

    for end in (20.0, 24.0, 30.0):
        whole, _ = quad(lambda x, end=end: 2 * (x - end) * gumbel.sf(x), end, end + 200)
        assert modelled(end) == pytest.approx(whole, rel=0.01)
    drawn = gumbel.rvs(size=500_000, random_state=np.random.default_rng(0))
    assert modelled(greatest) == pytest.approx(np.square(np.maximum(drawn - greatest, 0)).mean(), rel=0.1)
    largest = gumbel.rvs(size=(20_000, 64), random_state=np.random.default_rng(1)).max(1)
    assert largest.mean() == pytest.approx(greatest, rel=0.01)


def test_it_errs_less_on_samples_that_were_held_back():
    """Logits of a heavy-tailed kind: 64 samples to choose by, many others to judge, over many draws."""
    rng = np.random.default_rng(1)
    errors = {"minmax": 0.0, "extrapolated": 0.0}
    for _ in range(100):
        scores = rng.gumbel(size=(2064, 10)).astype(np.float32) * 3
        seen, held = scores[:64], scores[64:]
        typical = float(seen.min(1).mean()), float(seen.max(1).mean())
        ends = float(seen.min()), float(seen.max())
        observation = Observation(*ends, typical=typical, reaches=(reach(*ends, *typical),))
        for way in errors:
            grid = choose_grid(observation, way, percentile=99.9, symmetric=False)
            steps = np.clip(
                np.rint(held / grid.scale), grid.first - grid.zero_point, grid.last - grid.zero_point
            )
            errors[way] += float(np.square(steps * grid.scale - held).sum())
    assert errors["extrapolated"] < 0.8 * errors["minmax"]


@settings(max_examples=200)
@given(GROUPS, st.booleans(), st.sampled_from([8, 16]))
def test_ranges_hold_what_was_seen_and_stay_finite(reaches, symmetric, bits):
    seen = ends_of(reaches)
    low, high = extrapolated_range(*seen, reaches, symmetric=symmetric, bits=bits)
    assert low <= seen[0]
    assert high >= seen[1]
    assert np.isfinite([low, high]).all()
    assert extrapolated_range(*seen, reaches, symmetric=symmetric, bits=bits) == (low, high)
    turned = extrapolated_range(*seen, reaches[::-1], symmetric=symmetric, bits=bits)
    assert turned == pytest.approx((low, high), rel=1e-6, abs=1e-300)


@given(GROUPS)
def test_a_mirrored_tensor_has_the_mirrored_range(reaches):
    mirrored = [
        reach(-each.high, -each.low, -each.typical_high, -each.typical_low, each.samples, each.elements)
        for each in reaches
    ]
    low, high = extrapolated_range(*ends_of(reaches), reaches, symmetric=False)
    assert extrapolated_range(*ends_of(mirrored), mirrored, symmetric=False) == pytest.approx(
        (-high, -low), rel=1e-6, abs=1e-300
    )


@given(GROUPS, st.sampled_from([0.25, 1024.0]))
def test_units_do_not_matter(reaches, factor):
    scaled = [
        reach(
            factor * each.low,
            factor * each.high,
            factor * each.typical_low,
            factor * each.typical_high,
            each.samples,
            each.elements,
        )
        for each in reaches
    ]
    low, high = extrapolated_range(*ends_of(reaches), reaches, symmetric=False)
    assert extrapolated_range(*ends_of(scaled), scaled, symmetric=False) == pytest.approx(
        (factor * low, factor * high), rel=1e-6, abs=1e-300
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "still",
    [
        reach(-3.0, 5.0, -3.0, 5.0, samples=1),
        reach(0.0, 6.0, 0.0, 6.0),  # a ReLU6 that every sample saturates
        reach(0.0, 0.0, 0.0, 0.0),
        reach(-3.0, 6.0, -3.0 + 1e-9, 6.0 - 1e-9),
        reach(-12.0, 20.0, -6.0, 9.0, elements=10**7),
    ],
)
def test_nothing_is_added_where_nothing_is_to_be_gained(still, symmetric):
    ends = still.low, still.high
    assert extrapolated_range(*ends, [still], symmetric=symmetric) == ends


def test_a_rectified_end_stays_at_zero():
    low, high = extrapolated_range(0.0, 20.0, [reach(0.0, 20.0, 0.0, 9.0)], symmetric=False)
    assert low == 0.0
    assert high > 20.0


def test_tensors_that_share_a_grid_are_extrapolated_together_or_not_at_all():
    own = [Observation(-12.0, 20.0, reaches=(reach(-12.0, 20.0, -6.0, 9.0),)) for _ in range(2)]
    both = joined(own)
    assert both.reaches == own[0].reaches + own[1].reaches
    # twice the elements, twice the tails: the same balance
    alone = extrapolated_range(-12.0, 20.0, own[0].reaches, symmetric=False)
    assert extrapolated_range(-12.0, 20.0, both.reaches, symmetric=False) == pytest.approx(alone, rel=1e-9)
    assert joined([own[0], Observation(-1.0, 1.0)]).reaches == ()
    assert extrapolated_range(-12.0, 20.0, (), symmetric=False) == (-12.0, 20.0)
