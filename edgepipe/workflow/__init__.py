"""Whole jobs: the one place that joins what runs on the host with what runs on a device."""

from edgepipe.workflow.compress import Made, compress
from edgepipe.workflow.convert import convert
from edgepipe.workflow.deploy import Pushed, bench, deploy, probe, push
from edgepipe.workflow.judge import Judged, evaluate_subject

__all__ = [
    "Judged",
    "Made",
    "Pushed",
    "bench",
    "compress",
    "convert",
    "deploy",
    "evaluate_subject",
    "probe",
    "push",
]
