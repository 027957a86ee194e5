"""What the figures of a model say about edgepipe's claims: each holds or falls short, with the figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from tools import Tool

OWN = {
    "int8": "edgepipe int8 (default)",
    "per-tensor": "edgepipe per-tensor",
    "4-bit": "edgepipe mixed, average 4-bit",
}
"""The row of each table that the claims are about."""

FAST = "edgepipe int8_fast"
"""The default without its rounding optimization."""

SIGNIFICANT = 0.05
LARGEST_MULTIPLE = {"EfficientNet-Lite0": 4.0}
"""Of the bare forward passes that quantization without rounding optimization may take; nothing is promised of
models whose passes are over in milliseconds, where what costs the same for every model outweighs them."""
LONGEST_S = 300.0
"""Of quantization with it."""
MOST_LOST_POINTS = 1.0
"""Of top-1 accuracy with one scale for each weight tensor."""
LEAST = {("EfficientNet-Lite0", OWN["int8"]): (99.0, 22.0), ("EfficientNet-Lite0", FAST): (None, 20.0)}
"""Agreement in percent and SQNR in dB that are promised whatever the peers reach."""
RUNTIMES = {"onnx": "ORT", "tflite": "LiteRT"}
FLOAT = "float"
"""What the float model is called among the artifacts whose latency is measured."""


class Verdict(NamedTuple):
    """One claim.

    Attributes:
        claim: What is claimed.
        holds: Whether the figures bear it out.
        figures: The figures.
    """

    claim: str
    holds: bool
    figures: str

    def __str__(self) -> str:
        return f"- {self.claim}: **{'holds' if self.holds else 'falls short'}**; {self.figures}\n"


class Entry(NamedTuple):
    """One artifact of one row that was run.

    Attributes:
        name: The row's.
        kind: "onnx" or "tflite".
        row: What results.json knows of the row.
    """

    name: str
    kind: str
    row: dict[str, Any]

    @property
    def artifact(self) -> dict[str, Any]:
        """What the judge said of it."""
        found: dict[str, Any] = self.row["artifacts"][self.kind]
        return found

    @property
    def is_peer(self) -> bool:
        """Whether another tool made it, and with integers in all layers."""
        return not self.name.startswith("edgepipe") and not self.artifact.get("float_layers")


def verdicts(results: dict[str, Any], table: str, model: str, tools: list[Tool]) -> list[Verdict]:
    """The claims that this table of this model decides; none before edgepipe's row was run."""
    rows = {tool.name: results["rows"][f"{model}|{tool.name}"] for tool in tools}
    entries = [Entry(name, kind, row) for name, row in rows.items() for kind in row.get("artifacts", ())]
    own = [entry for entry in entries if entry.name == OWN[table]]
    against = results.get("against", {}).get(f"{table}|{model}", {})
    peers = [entry for entry in entries if entry.is_peer and _key(entry) in against]
    if not own or not peers:
        return []
    found = []
    if table == "int8":
        found += [_first_in_agreement(own[0], peers, against), _first_in_sqnr(own[0], peers, against)]
        found += _promised(model, entries)
        found += _fastest(results.get("latency", {}).get(model, {}), own, peers)
        found += _costs(model, rows)
    elif table == "per-tensor":
        found += [_lost(own[0], peers)]
        found += [_first_in_agreement(own[0], peers, against), _first_in_sqnr(own[0], peers, against)]
    else:
        found += _better(own[0], peers, against)
    return found


def _key(entry: Entry) -> str:
    return f"{entry.name}|{entry.kind}"


def _agreement(entry: Entry) -> float:
    return 100 * float(entry.artifact["agreement"][0])


def _sqnr(entry: Entry) -> float:
    value = entry.artifact["sqnr_db"]
    return float("-inf") if value is None else float(value)


def _first_in_agreement(own: Entry, peers: list[Entry], against: dict[str, Any]) -> Verdict:
    best = max(peers, key=_agreement)
    ahead = [
        peer
        for peer in peers
        if _agreement(peer) > _agreement(own) and against[_key(peer)]["p_value"] < SIGNIFICANT
    ]
    figures = f"{_agreement(own):.1f} %, the best peer ({best.name}) {_agreement(best):.1f} %"
    figures += f", p = {against[_key(best)]['p_value']:.2g}"
    if ahead:
        figures += f"; significantly ahead: {', '.join(peer.name for peer in ahead)}"
    return Verdict("first in agreement, or within noise of first", not ahead, figures)


def _first_in_sqnr(own: Entry, peers: list[Entry], against: dict[str, Any]) -> Verdict:
    best = max(peers, key=_sqnr)
    ahead = [peer for peer in peers if (interval := against[_key(peer)]["ahead_db"]) and interval[0] > 0]
    low, high = against[_key(best)]["ahead_db"]
    figures = f"{_sqnr(own):.1f} dB, the best peer ({best.name}) {_sqnr(best):.1f} dB"
    figures += f", a lead of {-high:+.1f} to {-low:+.1f} dB"
    if ahead:
        figures += f"; significantly ahead: {', '.join(peer.name for peer in ahead)}"
    return Verdict("first in SQNR, or within noise of first", not ahead, figures)


def _promised(model: str, entries: list[Entry]) -> Iterator[Verdict]:
    for entry in entries:
        agreement, sqnr = LEAST.get((model, entry.name), (None, None))
        if entry.kind != "onnx":
            continue
        if agreement is not None:
            got = _agreement(entry)
            yield Verdict(f"{entry.name}: agreement of {agreement:g} %", got >= agreement, f"{got:.2f} %")
        if sqnr is not None:
            got = _sqnr(entry)
            yield Verdict(f"{entry.name}: SQNR of {sqnr:g} dB", got >= sqnr, f"{got:.1f} dB")


def _fastest(latency: dict[str, Any], own: list[Entry], peers: list[Entry]) -> Iterator[Verdict]:
    """Turns are paired: noise is where the 95 % interval of their ratios' median holds 1."""
    for entry in own:
        turns = latency.get(entry.kind, {}).get("turns_ms", {})
        timed = [peer for peer in peers if peer.kind == entry.kind and peer.name in turns]
        if entry.name not in turns or not timed:
            continue
        best = min(timed, key=lambda peer: ratio(turns, peer.name, FLOAT).value)
        share, found = ratio(turns, entry.name, FLOAT).value, ratio(turns, entry.name, best.name)
        yield Verdict(
            f"fastest artifact on {RUNTIMES[entry.kind]}, or within noise of it",
            found.low <= 1,
            f"{share:.3f} of float's latency, {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] of the"
            f" fastest peer's ({best.name})",
        )


class Ratio(NamedTuple):
    """A median of paired turns' ratios with its 95 % interval by order statistics."""

    value: float
    low: float
    high: float


def ratio(turns: dict[str, list[float]], name: str, other: str) -> Ratio:
    """How long `name` takes compared with `other`, turn by turn."""
    found = sorted(a / b for a, b in zip(turns[name], turns[other], strict=True))
    # The count of values below the median is binomial with p = 1/2: its normal approximation, from 10 on.
    reach = math.ceil(0.98 * math.sqrt(len(found)))
    middle = (len(found) - 1) / 2
    low, high = max(0, math.floor(middle - reach)), min(len(found) - 1, math.ceil(middle + reach))
    return Ratio(statistics.median(found), found[low], found[high])


def _costs(model: str, rows: dict[str, dict[str, Any]]) -> Iterator[Verdict]:
    runs = rows.get(FAST, {}).get("runs")
    most = LARGEST_MULTIPLE.get(model)
    if runs and most is not None:
        passes = statistics.median(run["passes"] / run["floor_seconds"] for run in runs)
        whole = {
            name: statistics.median(run["seconds"] / run["floor_seconds"] for run in row["runs"])
            for name, row in rows.items()
            if row.get("runs") and (name == FAST or not name.startswith("edgepipe"))
        }
        quickest = min(whole.keys() - {FAST}, key=lambda name: whole[name])
        yield Verdict(
            f"the passes, without rounding optimization, within {most:g} times the forward passes",
            passes <= most,
            f"{passes:.3g} times (load {_loads(runs)}); from file to files, {whole[FAST]:.3g} times with both"
            f" runtimes' artifacts, the quickest peer ({quickest}) {whole[quickest]:.3g} times with one",
        )
    runs = rows[OWN["int8"]]["runs"]
    seconds = statistics.median(run["seconds"] for run in runs)
    yield Verdict(
        f"with it within {LONGEST_S:.0f} s", seconds <= LONGEST_S, f"{seconds:.3g} s (load {_loads(runs)})"
    )


def _loads(runs: list[dict[str, Any]]) -> str:
    return "/".join(f"{run['load']:.1f}" for run in runs)


def _lost(own: Entry, peers: list[Entry]) -> Verdict:
    least = min(peers, key=lambda peer: float(peer.artifact["lost_points"]))
    lost = float(own.artifact["lost_points"])
    return Verdict(
        f"loses at most {MOST_LOST_POINTS:g} point of top-1",
        lost <= MOST_LOST_POINTS,
        f"{lost:+.1f} points, the best peer ({least.name}) {least.artifact['lost_points']:+.1f}",
    )


def _better(own: Entry, peers: list[Entry], against: dict[str, Any]) -> Iterator[Verdict]:
    best = max(peers, key=_agreement)
    yield Verdict(
        "agrees with float more often than every peer",
        _agreement(own) > _agreement(best),
        f"{_agreement(own):.1f} %, the best peer ({best.name}) {_agreement(best):.1f} %"
        f", p = {against[_key(best)]['p_value']:.2g}",
    )
    best = max(peers, key=_sqnr)
    low, high = against[_key(best)]["ahead_db"]
    yield Verdict(
        "has a higher SQNR than every peer",
        _sqnr(own) > _sqnr(best),
        f"{_sqnr(own):.1f} dB, the best peer ({best.name}) {_sqnr(best):.1f} dB"
        f", a lead of {-high:+.1f} to {-low:+.1f} dB",
    )
