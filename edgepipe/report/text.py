"""How figures are written, the same in tables and in the HTML report; None stands for "no figure"."""

from __future__ import annotations

from edgepipe.bundle import Calibration
from edgepipe.evaluate import Estimate, Evaluation
from edgepipe.measure import Energy, Interval, Latency, Measurement
from edgepipe.store import DataUse, Run
from edgepipe.units import format_bytes, format_mj, format_mw, format_ns, format_share

NONE = "–"


def samples(data: DataUse | Calibration) -> str:
    """``872 samples of val.npz``."""
    return f"{data.samples} samples of {data.source}"


def ran_on(measurement: Measurement) -> str:
    """``CPU, threads: 4``; ONNX Runtime's long names of its execution providers are cut short."""
    names = [name.removesuffix("ExecutionProvider") for name in measurement.providers]
    return ", ".join([*names, f"threads: {measurement.threads}"])


def share(estimate: Estimate | None) -> str:
    """``97.2 %``."""
    return NONE if estimate is None else format_share(estimate.value)


def share_interval(estimate: Estimate | None) -> str:
    """``[95.1, 98.4]``, in per cent."""
    return "" if estimate is None else f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(estimate: Estimate | None) -> str:
    """A difference of shares in percentage points: ``−0.3 pt``."""
    return NONE if estimate is None else f"{signed(100 * estimate.value)} pt"


def points_interval(estimate: Estimate | None) -> str:
    """``[−1.2, +0.5]``, in percentage points."""
    return "" if estimate is None else f"[{signed(100 * estimate.low)}, {signed(100 * estimate.high)}]"


def signed(value: float) -> str:
    """One digit after the point with its sign; ``0.0`` for what rounds to zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")


def sqnr(evaluation: Evaluation | None) -> str:
    """``24.1 dB``; ``exact`` where all outputs are equal, ``not finite`` where one is NaN."""
    if evaluation is None:
        return NONE
    if evaluation.exact:
        return "exact"
    if any(output.not_finite for output in evaluation.fidelity):
        return "not finite"
    return NONE if evaluation.sqnr_db is None else f"{evaluation.sqnr_db:.1f} dB"


def median(latency: Latency | None) -> str:
    """``1.23 ms``."""
    return format_ns(latency.median_ns.value) if latency and latency.median_ns else NONE


def median_interval(latency: Latency | None) -> str:
    """``[1.22, 1.25]``, in the unit of the ends; ``[998 µs, 1.01 ms]`` where these have two."""
    if latency is None or latency.median_ns is None:
        return ""
    low, high = format_ns(latency.median_ns.low), format_ns(latency.median_ns.high)
    if low.split()[1] == high.split()[1] == median(latency).split()[1]:
        return f"[{low.split()[0]}, {high.split()[0]}]"
    return f"[{low}, {high}]"


def quantile(value_ns: float | None) -> str:
    """``1.41 ms``; ``too few runs`` where the quantile can't be told."""
    return "too few runs" if value_ns is None else format_ns(value_ns)


def times(ratio: Interval | None) -> str:
    """``2.1×``."""
    return NONE if ratio is None else f"{ratio.value:.2f}×"


def times_interval(ratio: Interval | None) -> str:
    """``[2.02, 2.19]``."""
    return "" if ratio is None else f"[{ratio.low:.2f}, {ratio.high:.2f}]"


def size(size_bytes: int | None) -> str:
    """``1.21 MiB``."""
    return NONE if not size_bytes else format_bytes(size_bytes)


def energy(found: Energy | None) -> str:
    """``12.3 mJ``, without what the idle device draws where that is known; ``none`` without a sensor."""
    if found is None:
        return NONE
    if found.missing:
        return found.missing
    figure = found.gross_mj if found.net_mj is None else found.net_mj
    return NONE if figure is None else format_mj(figure)


def without_energy(run: Run) -> tuple[str, ...]:
    """``energy none: ina3221: no such sensor``: the readers' own reasons, each once."""
    powers = [each.measurement.power for each in run.results if each.measurement]
    notes = dict.fromkeys(power.note for power in powers if power.source == "none" and power.note)
    return tuple(f"energy none: {note}" for note in notes)


def energy_detail(found: Energy | None) -> str:
    """``net; gross 15.1 mJ, board, ina3221``."""
    if found is None or found.gross_mj is None:
        return ""
    gross = f"gross {format_mj(found.gross_mj)}"
    parts = [gross if found.net_mj is None else f"net; {gross}", found.coverage, found.source]
    if found.mean_mw is not None:
        parts.append(format_mw(found.mean_mw))
    return ", ".join(filter(None, parts))
