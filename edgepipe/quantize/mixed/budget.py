"""Which layer gets how many bits: the cheapest assignment within a budget, found exactly.

Every layer takes one of its options; each option has a cost (what it adds to the output's error) and
spends something (bytes, weight bits, bit operations, microseconds). Least total cost within the limits is
the multiple-choice knapsack problem, which quantization meets as the integer program of Dong et al. 2020
(HAWQ-V2, arXiv 1911.03852, section 3.3) and Yao et al. 2021 (HAWQ-V3, arXiv 2011.10680, equations 10-12).
HiGHS, which SciPy brings, solves it to the optimum within milliseconds.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.errors import RecipeError

_OBJECTIVE = 1e4
"""What costs are scaled to: the solver's absolute gap of 1e-6 is then one part in 10^10."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on what all layers spend together.

    Attributes:
        resource: What is spent, for people: "bytes of the file".
        limit: The most that may be spent.
        spending: What each option of each layer spends, one tuple a layer; not negative.
        fixed: What is spent whatever is chosen.
        unit: What amounts are told in: "KiB".
        amount: How much one of it is.
    """

    resource: str
    limit: int
    spending: tuple[tuple[int, ...], ...]
    fixed: int = 0
    unit: str = ""
    amount: float = 1.0

    def spent(self, chosen: Sequence[int]) -> int:
        """What an assignment spends in all: `chosen` holds the number of an option for each layer."""
        return self.fixed + sum(layer[option] for layer, option in zip(self.spending, chosen, strict=True))

    @property
    def least(self) -> int:
        """The least that can be spent."""
        return self.fixed + sum(map(min, self.spending))

    def told(self) -> str:
        """The limit and what can be spent, for people; rounding never makes the one seem the other."""
        most = self.fixed + sum(map(max, self.spending))
        limit = math.floor(100 * self.limit / self.amount) / 100
        least, greatest = (math.ceil(100 * each / self.amount) / 100 for each in (self.least, most))
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"a limit of {limit:,.2f}{unit}; the candidates reach from {least:,.2f} to {greatest:,.2f}{unit}"
        )


def allocate(costs: Sequence[Sequence[float]], budgets: Sequence[Budget]) -> tuple[int, ...]:
    """The assignment of least total cost that keeps within every budget.

    Args:
        costs: Cost of each option of each layer, finite; layers may differ in their number of options.
        budgets: The limits, each with one tuple of spending a layer, shaped as `costs`.

    Returns:
        The number of the chosen option, for each layer. Equal input gives equal output.

    Raises:
        RecipeError: No assignment keeps within a budget, or within all of them together.
    """
    for budget in budgets:
        if budget.least > budget.limit:
            raise RecipeError(
                "no choice of bits keeps within the budget",
                where=budget.resource,
                got=budget.told(),
                remedy="raise the limit, or allow fewer bits among the candidates",
            )
    if not costs:
        return ()
    above_least = [np.asarray(layer, np.float64) - min(layer) for layer in costs]
    chosen = _solve(above_least, budgets, scale=_scale(sum(float(layer.max()) for layer in above_least)))
    total = sum(float(layer[option]) for layer, option in zip(above_least, chosen, strict=True))
    # An option dearer than this whole assignment is in no better one. Without such options the costs that
    # matter stand clear of the solver's tolerances, however dear the others are.
    within = [np.where(layer <= total, layer, np.inf) for layer in above_least]
    return _solve(within, budgets, scale=_scale(total))


def _scale(total: float) -> float:
    return _OBJECTIVE / total if total > 0 else 1.0


def _solve(costs: list[NDArray[np.float64]], budgets: Sequence[Budget], *, scale: float) -> tuple[int, ...]:
    """The best assignment; an infinite cost rules an option out."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    flat = np.concatenate(costs)
    owners = np.repeat(np.arange(len(costs)), [len(layer) for layer in costs])
    one_each = (owners == np.arange(len(costs))[:, None]).astype(np.float64)
    constraints = [LinearConstraint(one_each, 1, 1)]
    for budget in budgets:
        spending = np.concatenate([np.asarray(layer, np.int64) for layer in budget.spending])
        unit = max(int(np.gcd.reduce(spending)), 1)
        limit = (budget.limit - budget.fixed) // unit
        constraints.append(LinearConstraint((spending // unit).astype(np.float64), -np.inf, limit))
    allowed = np.isfinite(flat)
    objective = np.where(allowed, flat, 0.0) * scale
    while True:
        with _silence():
            found = milp(
                objective,
                integrality=np.ones(len(flat)),
                bounds=Bounds(0, allowed.astype(np.float64)),
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
        if found.x is None:
            raise _infeasible(budgets)
        chosen = tuple(
            int(np.argmax(np.where(owners == layer, found.x, -1.0)[owners == layer]))
            for layer in range(len(costs))
        )
        if all(budget.spent(chosen) <= budget.limit for budget in budgets):
            return chosen
        # The solver's tolerance let an assignment through that is over by a hair: exclude just that one.
        starts = np.searchsorted(owners, np.arange(len(costs)))
        cut = np.zeros(len(flat))
        cut[starts + np.asarray(chosen)] = 1.0
        constraints.append(LinearConstraint(cut, -np.inf, len(costs) - 1))


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps off standard output what HiGHS prints there, whatever its options (its issue: HiGHS.jl 312).

    Its text waits in the C library's buffer, which has to be emptied before and after.
    """
    try:
        empty_buffers = ctypes.CDLL(None).fflush
        kept = os.dup(1)
    except (OSError, TypeError, AttributeError):  # no such library on this system, or no standard output
        yield
        return
    empty_buffers(None)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        empty_buffers(None)
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def _infeasible(budgets: Sequence[Budget]) -> RecipeError:
    return RecipeError(
        "no choice of bits keeps within all budgets together",
        where="budgets",
        got=", and ".join(f"{budget.resource}: {budget.told()}" for budget in budgets),
        remedy="raise one of the limits, or allow fewer bits among the candidates",
    )
