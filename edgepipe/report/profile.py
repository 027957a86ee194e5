"""Geometry of the picture of a network's layers: SQNR along it, and what each costs, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from edgepipe.quantize.explain.diagnosis import Diagnosis, LayerDiagnosis
from edgepipe.quantize.explain.explanation import Explanation
from edgepipe.report.charts import LEFT, RIGHT, WIDTH, Tick
from edgepipe.units import format_share

TOP = 16
GROUND = 214
COST = 64
"""Height of the strip of costs."""
LABEL = 84
"""Height that slanted names take below."""
NAMED = 6
"""Layers whose names are written out."""
APART = 30.0
"""Distance along the axis at which slanted names do not touch."""
MOST_DB = 60.0
"""SQNRs above are drawn at the upper edge: nobody needs to tell them apart."""


class LayerMark(msgspec.Struct, frozen=True, kw_only=True):
    """One layer in the picture.

    Attributes:
        x: Where it stands.
        reached: y of its output's SQNR; None where it is exact.
        own: y of the SQNR that it has with float inputs; likewise.
        clipped: Height of the bar for the share of clipped values, 0 for none.
        cost: Height of the bar for its share of the error.
        title: What a pointer shows.
        name: Its name, for the layers that are named; "" for the others.
    """

    x: float
    reached: float | None
    own: float | None
    clipped: float
    cost: float
    title: str
    name: str


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The picture of a network.

    Attributes:
        marks: One for each layer, in order of computation.
        line: SVG path through the SQNRs that layers reach.
        y_ticks: SQNRs.
        width: Of a bar.
        ground: y of the axis.
        costs: Whether there is a strip of costs; its ground line is `height` less the labels.
        base: y of the ground line of the costs.
        height: Of the drawing.
    """

    marks: tuple[LayerMark, ...]
    line: str
    y_ticks: tuple[Tick, ...]
    width: float
    ground: float
    costs: bool
    base: float
    height: float


def profile(found: Diagnosis | Explanation) -> Profile | None:
    """The picture of a diagnosis, or of an explanation, which knows costs too; None without layers."""
    if isinstance(found, Diagnosis):
        return _profile(found.layers, {})
    order = sorted(found.layers, key=lambda each: each.layer.position)
    return _profile([each.layer for each in order], {each.layer.tensor: each.share for each in order})


def _profile(layers: Sequence[LayerDiagnosis], shares: Mapping[str, float]) -> Profile | None:
    sqnrs = [db for each in layers for db in (each.sqnr_db, each.local_sqnr_db) if db is not None]
    if not layers or not sqnrs:
        return None
    low = min(0.0, 10 * math.floor(min(sqnrs) / 10))
    high = min(MOST_DB, 10 * math.ceil(max(sqnrs) / 10))

    def y(sqnr_db: float | None) -> float | None:
        if sqnr_db is None:
            return None
        share = (min(sqnr_db, high) - low) / (high - low)
        return round(GROUND - (GROUND - TOP) * share, 1)

    span = (WIDTH - LEFT - RIGHT) / len(layers)
    named = _named(layers, shares, math.ceil(APART / span))
    dearest = max(shares.values(), default=0.0)
    marks = tuple(
        LayerMark(
            x=round(LEFT + span * (index + 0.5), 1),
            reached=y(each.sqnr_db),
            own=y(each.local_sqnr_db),
            clipped=_clipped(each),
            cost=round(COST * shares.get(each.tensor, 0.0) / dearest, 1) if dearest else 0.0,
            title=_title(each, shares.get(each.tensor)),
            name=each.name if each.tensor in named else "",
        )
        for index, each in enumerate(layers)
    )
    base = GROUND + (COST + 18 if shares else 0)
    points = [f"{mark.x} {mark.reached}" for mark in marks if mark.reached is not None]
    step = 10 if high - low <= 60 else 20
    values = range(int(low), int(high) + 1, step)
    return Profile(
        marks=marks,
        line="M" + "L".join(points) if points else "",
        y_ticks=tuple(Tick(y(value) or 0.0, f"{value} dB".replace("-", "−")) for value in values),
        width=round(max(1.5, min(14.0, 0.6 * span)), 1),
        ground=GROUND,
        costs=bool(shares),
        base=base,
        height=base + LABEL,
    )


def _named(layers: Sequence[LayerDiagnosis], shares: Mapping[str, float], apart: int) -> set[str]:
    """The layers that cost the most, or add the most error of their own, where their names have room."""

    def worst(each: LayerDiagnosis) -> float:
        if shares:
            return -shares.get(each.tensor, 0.0)
        return math.inf if each.local_sqnr_db is None else each.local_sqnr_db

    places: list[int] = []
    for place in sorted(range(len(layers)), key=lambda index: worst(layers[index])):
        if len(places) < NAMED and all(abs(place - other) >= apart for other in places):
            places.append(place)
    return {layers[place].tensor for place in places}


def _clipped(each: LayerDiagnosis) -> float:
    """Height of a bar for the share of clipped values, on a logarithmic scale from one in 100,000."""
    share = each.activation.clipped if each.activation else 0.0
    return round(8 * (5 + math.log10(share)), 1) if share > 1e-5 else 0.0


def _title(each: LayerDiagnosis, share: float | None) -> str:
    parts = [f"{each.name} ({each.op})"]
    for label, sqnr_db in (("reached", each.sqnr_db), ("own", each.local_sqnr_db)):
        parts.append(f"{label} {'exact' if sqnr_db is None else f'{sqnr_db:.1f} dB'}")
    if each.activation and each.activation.clipped:
        parts.append(f"clipped {100 * each.activation.clipped:.2g} %")
    if share is not None:
        parts.append(f"cost {format_share(share)}")
    return ", ".join(parts)
