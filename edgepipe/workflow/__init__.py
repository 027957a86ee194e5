"""Whole jobs: the one place that joins what runs on the host with what runs on a device."""

from edgepipe.bundle import Pushed
from edgepipe.evaluate import Judged
from edgepipe.workflow.deployment import bench, deploy, facts_data, probe, push
from edgepipe.workflow.explaining import explain
from edgepipe.workflow.exporting import export_run, import_run
from edgepipe.workflow.judge import evaluate_subject
from edgepipe.workflow.make import Made, compress
from edgepipe.workflow.outputs import compare_outputs
from edgepipe.workflow.reproducing import reproduce
from edgepipe.workflow.rewrite import convert
from edgepipe.workflow.subject import Depth

__all__ = [
    "Depth",
    "Judged",
    "Made",
    "Pushed",
    "bench",
    "compare_outputs",
    "compress",
    "convert",
    "deploy",
    "evaluate_subject",
    "explain",
    "export_run",
    "facts_data",
    "import_run",
    "probe",
    "push",
    "reproduce",
]
