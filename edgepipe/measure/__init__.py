"""Measurements: raw samples are stored, statistics are made on reading, and the tool doubts itself aloud."""

from edgepipe.measure.energy import Energy, energy_of
from edgepipe.measure.record import (
    Kind,
    Measurement,
    Memory,
    Outcome,
    Power,
    Reading,
    Series,
    Window,
    from_protocol,
)
from edgepipe.measure.statistics import Interval, Latency, latency_of, ratio_of_medians
from edgepipe.measure.verdict import Finding, Verdict, starved, verdict_of
from edgepipe.measure.verification import OutputDifference, Verification, verification_from_protocol

__all__ = [
    "Energy",
    "Finding",
    "Interval",
    "Kind",
    "Latency",
    "Measurement",
    "Memory",
    "Outcome",
    "OutputDifference",
    "Power",
    "Reading",
    "Series",
    "Verdict",
    "Verification",
    "Window",
    "energy_of",
    "from_protocol",
    "latency_of",
    "ratio_of_medians",
    "starved",
    "verdict_of",
    "verification_from_protocol",
]
