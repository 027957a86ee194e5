"""What a stored run says went wrong on the device, and how differences are put into words."""

import pytest

from edgepipe.bundle import Artifact
from edgepipe.errors import AgentFailed, VerificationFailed
from edgepipe.measure import Measurement, OutputDifference, Verification
from edgepipe.store import ArtifactResult, Run
from edgepipe.workflow.measure import difference_in_words, raise_if_nothing_ran

MEASURED = Measurement(kind="board", runtime="litert", threads=1, latencies_ns=(5,))
KILLED = Measurement(
    kind="board", runtime="litert", threads=1, outcome="out-of-memory", message="the kernel killed it"
)


def difference(**changes):
    fields = {
        "name": "logits", "elements": 40, "differing": 0, "worst_steps": None, "worst_absolute": 0.0,
        "worst_relative": 0.0, "worst_sample": 0, "argmax_equal": 4, "not_finite": 0,
    }  # fmt: skip
    return OutputDifference(**(fields | changes))


def verification(*outputs, ok=True):
    return Verification(ok=ok, samples=4, outputs=outputs, runtime_version="1", providers=())


def result(name, **fields):
    artifact = Artifact(
        name=name, format="tflite", precision="int8", digest="", size_bytes=1, inputs=(), outputs=(),
        op_counts={}, needs={},
    )  # fmt: skip
    return ArtifactResult(artifact=artifact, **fields)


def run_of(*results):
    return Run(
        id="20261122", created="", edgepipe_version="", command="", model_name="m", model_source="",
        model_digest="", target="x86", recipe="int8", seed=0, bundle_digest="", host="pi@board", kind="board",
        results=results,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([difference()], "bit-equal to the host"),
        ([difference(differing=3, worst_steps=1.0)], "off by 1 steps at most"),
        ([difference(differing=3, worst_relative=2e-4)], "off by 2.0e-04 of the range at most"),
        ([difference(), difference(differing=1, worst_steps=7.0)], "off by 7 steps at most"),
        ([difference(differing=3, worst_steps=1.0, not_finite=2)], "2 values of logits are NaN or infinite"),
    ],
)
def test_differences_in_words(outputs, words):
    assert difference_in_words(verification(*outputs)) == words


def test_a_measured_artifact_is_enough():
    raise_if_nothing_ran(run_of(result("a", measurement=MEASURED), result("b", skipped="no runtime")))


def test_nothing_measured():
    run = run_of(result("a", measurement=KILLED), result("b", skipped="no runtime"))
    with pytest.raises(AgentFailed) as error:
        raise_if_nothing_ran(run)
    assert error.value.got == "the kernel killed it; no runtime"
    assert error.value.where == "pi@board"
    assert "runs show 20261122" in error.value.remedy


def test_a_difference_is_told_though_others_were_measured():
    wrong = result("b", verification=verification(ok=False), skipped="b differs")
    with pytest.raises(VerificationFailed, match="than the host: b") as error:
        raise_if_nothing_ran(run_of(result("a", measurement=MEASURED, verification=verification()), wrong))
    assert error.value.got == "b differs"
