"""How far samples reach that calibration did not see, from how the extremes of those it saw scatter.

The greatest values of samples follow a law of extreme values, whose tail is exponential: Gumbel 1958,
"Statistics of Extremes"; Coles 2001, "An Introduction to Statistical Modeling of Extreme Values", ch. 3.
So what a range ought to leave for them is a matter of arithmetic. Room costs every value a wider step;
too little of it costs the few beyond the end all that they are clipped by. Logits get room, where few
elements share the cost and samples differ; large feature maps and saturating activations get none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

_EULER = 0.5772156649015329
"""Mean of the standard Gumbel law."""
_ROUNDS = 100
"""Newton steps at most; it takes about five."""
_PRECISION = 1e-9
"""Share of a range below which a step ends the search."""


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """How far the samples of one tensor reach.

    Attributes:
        low: Least value of all samples.
        high: Greatest value of all samples.
        typical_low: Mean over the samples of the least value of each.
        typical_high: Mean over the samples of the greatest value of each.
        samples: How many there were.
        elements: Values that a sample has.
    """

    low: float
    high: float
    typical_low: float
    typical_high: float
    samples: int
    elements: int


class _Tail(msgspec.Struct, frozen=True):
    """A Gumbel law of the samples' greatest values, by its mean and its scale."""

    mean: float
    scale: float

    def log_slope(self, end: float) -> float:
        """Logarithm of what clipping at `end` costs less, for each unit that `end` moves out.

        A sample exceeds `end` with probability ``p = exp(-(end - mean) / scale - 0.577)``, by `scale` on
        average, so that the expected squared excess is ``2 scale**2 p``, whose slope is this over `scale`.
        """
        return math.log(2 * self.scale) - (end - self.mean) / self.scale - _EULER


def extrapolated_range(
    low: float, high: float, reaches: Sequence[Reach], *, symmetric: bool, bits: int = 8
) -> tuple[float, float]:
    """Ends of the range whose expected squared error on a further sample is least.

    That is ``elements step**2 / 12`` for rounding and the expected squared excess for clipping, summed over
    the tensors: a convex function of both ends. Where it is least, both have the same slope.

    Args:
        low: Least value seen of all tensors.
        high: Greatest value seen of all tensors.
        reaches: How far the samples of each tensor reach that shares the range.
        symmetric: Whether the zero point must be 0.
        bits: Bits of an integer.

    Returns:
        Ends that hold `low` and `high`; those two where there is nothing to extrapolate from.
    """
    if not reaches:
        return low, high
    above = [_tail(each.high, each.typical_high, each.samples) for each in reaches if each.high > 0]
    below = [_tail(-each.low, -each.typical_low, each.samples) for each in reaches if each.low < 0]
    elements = sum(each.elements for each in reaches)
    last, ends = 2**bits - 1, [_End(max(-low, 0.0), below), _End(max(high, 0.0), above)]
    if not symmetric:
        below_room, above_room = _rooms(ends, elements / (6 * last**2))
        return low - below_room, high + above_room
    both = _End(max(ends[0].start, ends[1].start), below + above)
    room = _rooms([both, both], elements / (3 * (last - 1) ** 2))[0]  # both ends move for either one's tails
    return low - room, high + room


def _tail(greatest: float, mean: float, samples: int) -> _Tail:
    """Its scale from the expected greatest of `samples`, ``mean + scale ln(samples)``."""
    return _Tail(mean, max(greatest - mean, 0.0) / math.log(samples) if samples > 1 else 0.0)


class _End(msgspec.Struct, frozen=True):
    """One end of a range, as a distance from 0: what was seen reaches to `start`."""

    start: float
    tails: list[_Tail]

    def room(self, log_cost: float) -> tuple[float, float]:
        """How far it has to move until moving on saves less than it costs.

        Returns:
            The distance, and by how much it shrinks for a rise of `log_cost` by 1.
        """
        tails = [tail for tail in self.tails if tail.scale > 0]
        room = give = 0.0
        if not tails:
            return room, give
        for _ in range(_ROUNDS):  # the sum is convex and falls, so that Newton's steps never overshoot
            slopes = [tail.log_slope(self.start + room) for tail in tails]
            greatest = max(slopes)
            shares = [math.exp(each - greatest) for each in slopes]
            excess = greatest + math.log(sum(shares)) - log_cost
            if room == 0.0 and excess <= 0:
                break
            give = sum(shares) / sum(share / tail.scale for share, tail in zip(shares, tails, strict=True))
            room += excess * give
            if abs(excess) * give <= _PRECISION * (self.start + room):
                break
        return room, give


def _rooms(ends: Sequence[_End], noise: float) -> list[float]:
    """Room for each end, so that it saves as much as the wider steps cost where it stops.

    Args:
        ends: Both ends.
        noise: What moving an end by one unit costs, over the width of the range.
    """
    seen = sum(end.start for end in ends)
    room = 0.0
    for _ in range(_ROUNDS):  # what the ends ask for is convex and falls with the width: as above
        width = seen + room
        found = [end.room(math.log(noise * width)) for end in ends] if width > 0 else [(0.0, 0.0)] * len(ends)
        missing = sum(each for each, _ in found) - room
        room += missing / (1 + sum(give for _, give in found) / max(width, 1e-300))
        if missing <= _PRECISION * width:
            break
    return [each for each, _ in found]
