"""Bits under a budget: the solver against every assignment there is."""

import ctypes
import itertools

import hypothesis
import hypothesis.strategies as st
import pytest

from edgepipe.errors import RecipeError
from edgepipe.quantize.mixed import budget
from edgepipe.quantize.mixed.budget import Budget, allocate


def every_assignment(costs):
    return itertools.product(*(range(len(layer)) for layer in costs))


def total(costs, chosen):
    return sum(layer[option] for layer, option in zip(costs, chosen, strict=True))


@st.composite
def problems(draw):
    options = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    magnitudes = st.floats(-9, 3).map(lambda power: 10.0**power)
    costs = [[draw(magnitudes) for _ in range(count)] for count in options]
    budgets = []
    for name in ("bytes", "operations")[: draw(st.integers(1, 2))]:
        largest = draw(st.sampled_from([5, 1000, 10**12]))
        spending = tuple(tuple(draw(st.integers(0, largest)) for _ in range(count)) for count in options)
        most = sum(map(max, spending))
        fixed = draw(st.integers(0, 10))
        limit = fixed + draw(st.integers(0, most))
        budgets.append(Budget(resource=name, limit=limit, spending=spending, fixed=fixed))
    return costs, budgets


@hypothesis.given(problems())
@hypothesis.settings(max_examples=150)
def test_is_as_good_as_the_best_of_all(problem):
    costs, budgets = problem
    fitting = [
        chosen for chosen in every_assignment(costs) if all(b.spent(chosen) <= b.limit for b in budgets)
    ]
    if not fitting:
        with pytest.raises(RecipeError):
            allocate(costs, budgets)
        return
    chosen = allocate(costs, budgets)
    assert chosen in fitting
    assert total(costs, chosen) <= min(total(costs, each) for each in fitting) * (1 + 1e-9)


def test_an_impossible_budget_names_the_least_possible():
    budget = Budget(resource="bytes of weights", limit=10, spending=((8, 4), (16, 7)), fixed=1)
    with pytest.raises(RecipeError, match="bytes of weights") as caught:
        allocate([[0.0, 1.0], [0.0, 1.0]], [budget])
    assert caught.value.got == "a limit of 10.00; the candidates reach from 12.00 to 25.00"


def test_a_limit_a_hair_below_the_least_does_not_look_like_it():
    budget = Budget(resource="size", limit=20479, spending=((20480,),), unit="KiB", amount=1024)
    assert budget.told() == "a limit of 19.99 KiB; the candidates reach from 20.00 to 20.00 KiB"


def test_budgets_that_exclude_each_other():
    first = Budget(resource="bytes", limit=1, spending=((0, 5),))
    second = Budget(resource="operations", limit=1, spending=((5, 0),))
    with pytest.raises(RecipeError, match="together"):
        allocate([[0.0, 1.0]], [first, second])


def test_without_a_tight_budget_every_layer_takes_its_cheapest():
    costs = [[3.0, 1.0, 2.0], [0.5, 0.7, 0.9]]
    budget = Budget(resource="bytes", limit=100, spending=((1, 2, 3), (4, 5, 6)))
    assert allocate(costs, [budget]) == (1, 0)


def test_a_hundred_layers_with_costs_of_many_magnitudes():
    """Against dynamic programming over every amount that can be spent, an oracle of its own."""
    costs = [[4.0**-bits * (1 + layer % 7) ** 6 for bits in (2, 3, 4, 8)] for layer in range(100)]
    spending = tuple(tuple((1 + layer % 5) * bits for bits in (2, 3, 4, 8)) for layer in range(100))
    limit = 4 * sum(1 + layer % 5 for layer in range(100))
    best = {0: 0.0}
    for layer, amounts in zip(costs, spending, strict=True):
        following = {}
        for spent, cost in best.items():
            for amount, extra in zip(amounts, layer, strict=True):
                place = spent + amount
                if place <= limit and cost + extra < following.get(place, float("inf")):
                    following[place] = cost + extra
        best = following
    chosen = allocate(costs, [Budget(resource="bits", limit=limit, spending=spending)])
    assert total(costs, chosen) == pytest.approx(min(best.values()), rel=1e-9)


def test_what_the_solver_prints_does_not_reach_standard_output(capfd):
    """HiGHS prints a line with `printf` on some problems, whatever its options; --json must stand alone."""
    library = ctypes.CDLL(None)
    library.printf(b"before ")
    with budget._silence():
        library.printf(b"the solver's line")
    library.printf(b"after")
    library.fflush(None)
    assert capfd.readouterr().out == "before after"
