"""Then and now on a device: what is compared, what is not, and why."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgepipe.bundle import Artifact, Golden, Port
from edgepipe.measure import Measurement, OutputDifference, Verification
from edgepipe.measure.record import Memory, Window
from edgepipe.store import ArtifactResult, Run
from edgepipe.workflow.matching import LATENCY_TOLERANCE, MEMORY_TOLERANCE, compare_results

PORT = Port(name="logits", dtype="int8", shape=(1, 4), permutation=(0, 1), scale=0.1)
GOLDEN = tuple(
    Golden(inputs=(f"{i}.in",), outputs=(f"{i}.out",), digests={f"{i}.in": "", f"{i}.out": f"host{i}"})
    for i in range(3)
)
ARTIFACT = Artifact(
    name="int8.tflite",
    format="tflite",
    precision="int8",
    digest="",
    size_bytes=1,
    inputs=(),
    outputs=(PORT,),
    op_counts={},
    needs={},
    golden=GOLDEN,
)
AS_HOST = (("host0",), ("host1",), ("host2",))


def verification(digests=AS_HOST, differing=0, worst_steps=0.0):
    output = OutputDifference(
        name="logits",
        elements=12,
        differing=differing,
        worst_steps=worst_steps,
        worst_absolute=worst_steps,
        worst_relative=0.0,
        worst_sample=0,
        argmax_equal=3,
        not_finite=0,
    )
    return Verification(
        ok=True,
        samples=3,
        outputs=(output,),
        runtime_version="2.3.0",
        providers=("XNNPACK",),
        digests=digests,
    )


def measurement(median_ns=2e6, peak_bytes=100 << 20, **changes):
    latencies = np.random.default_rng(0).normal(median_ns, median_ns / 100, 700).astype(int).tolist()
    fields = {
        "kind": "board",
        "runtime": "litert",
        "runtime_version": "2.3.0",
        "threads": 4,
        "providers": ("XNNPACK",),
        "latencies_ns": tuple(latencies),
        "window": Window(0, sum(latencies)),
        "clock_resolution_ns": 1.0,
        "cpu_ns": sum(latencies),
        "memory": Memory(
            start_bytes=1, runtime_bytes=1, loaded_bytes=1, peak_bytes=peak_bytes, source="VmHWM"
        ),
    }
    return Measurement(**{**fields, **changes})


def result(**changes):
    fields = {"artifact": ARTIFACT, "verification": verification(), "measurement": measurement()}
    return ArtifactResult(**{**fields, **changes})


def run(*, kind="board", board="Board", **changes):
    return Run(
        id="r",
        created="",
        edgepipe_version="",
        command="",
        model_name="m",
        model_source="m",
        model_digest="",
        target="x86",
        recipe="int8",
        seed=0,
        bundle_digest="",
        host="h",
        kind=kind,
        device={"board": board, "cpu": {"model": "CPU", "architecture": "aarch64"}},
        results=(result(**changes),),
    )


def device(*, kind="board", board="Board", architecture="aarch64"):
    cpu = SimpleNamespace(model="CPU", architecture=architecture)
    return SimpleNamespace(kind=kind, facts=SimpleNamespace(board=board, cpu=cpu))


def compared(then, there, **now):
    checks = {each.subject: each for each in compare_results(then, there, (result(**now),))}
    assert all(each.artifact == "int8.tflite" for each in checks.values())
    return checks


def test_the_same_board_gives_the_same():
    found = compared(run(), device())
    assert [each.state for each in found.values()] == ["equal", "equal", "within"]


@pytest.mark.parametrize(
    ("factor", "state"), [(1.02, "within"), (1 + 2 * LATENCY_TOLERANCE, "differs"), (0.7, "differs")]
)
def test_latency_between_two_boards(factor, state):
    check = compared(run(), device(), measurement=measurement(2e6 * factor))["median latency"]
    assert check.state == state
    assert "ms" in check.recorded
    assert "tolerance 10%" in check.note


@pytest.mark.parametrize("kinds", [("emulated", "emulated"), ("board", "emulated"), ("embedded", "board")])
def test_no_figure_of_a_latency_is_shown_unless_both_are_boards(kinds):
    check = compared(run(kind=kinds[0]), device(kind=kinds[1]))["median latency"]
    assert check.state == "not compared"
    assert (check.recorded, check.found) == ("", "")
    assert "only two boards of one kind" in check.note


def test_latencies_of_two_kinds_of_boards_are_not_compared():
    check = compared(run(), device(board="Other"))["median latency"]
    assert (check.state, check.note) == ("not compared", "Board then, Other now")


def test_an_invalid_latency_is_not_compared():
    few = measurement(latencies_ns=(5,), window=Window(0, 5))
    check = compared(run(), device(), measurement=few)["median latency"]
    assert check.state == "not compared"
    assert check.note.startswith("INVALID now")


@pytest.mark.parametrize(
    ("share", "state"),
    [
        (1.0, "equal"),
        (1 + MEMORY_TOLERANCE / 2, "within"),
        (1 + 2 * MEMORY_TOLERANCE, "differs"),
        (0.5, "differs"),
    ],
)
def test_memory_within_its_tolerance(share, state):
    check = compared(run(), device(), measurement=measurement(peak_bytes=int(share * (100 << 20))))
    assert check["peak memory"].state == state


@pytest.mark.parametrize(
    ("there", "changes", "why"),
    [
        ({"kind": "emulated"}, {}, "board then, emulated now"),
        ({"architecture": "armv7l"}, {}, "architecture aarch64 then, armv7l now"),
        ({}, {"runtime_version": "2.4.0"}, "runtime litert 2.3.0 then, litert 2.4.0 now"),
        ({}, {"threads": 1}, "threads 4 then, 1 now"),
        ({}, {"memory": None}, "one is unknown"),
    ],
)
def test_memory_is_compared_in_the_same_circumstances_alone(there, changes, why):
    now = msgspec.structs.replace(measurement(), **changes)
    check = compared(run(), device(**there), measurement=now)["peak memory"]
    assert (check.state, check.note) == ("not compared", why)


def test_other_bits_are_told_with_sample_port_and_circumstances():
    other = verification(digests=(("host0",), ("x",), ("y",)), differing=2, worst_steps=1.0)
    check = compared(run(), device(architecture="x86_64"), verification=other)["outputs"]
    assert check.state == "differs"
    assert check.note == (
        "2 of 3 samples, the first is 1, output logits; architecture aarch64 then, x86_64 now"
    )
    assert (check.recorded, check.found) == ("bit-equal to the host", "off by 1 steps at most")


def test_outputs_as_far_from_the_host_but_other_bits_differ():
    """The same summary of differences does not hide that the bits are others."""
    then = verification(digests=(("a",), ("b",), ("c",)), differing=2, worst_steps=1.0)
    now = verification(digests=(("a",), ("b",), ("d",)), differing=2, worst_steps=1.0)
    assert compared(run(verification=then), device(), verification=now)["outputs"].state == "differs"


def test_an_old_record_that_equals_the_host_is_compared_by_the_golden_digests():
    then = run(verification=verification(digests=()))
    assert compared(then, device())["outputs"].state == "equal"
    other = verification(digests=(("x",), ("host1",), ("host2",)))
    assert compared(then, device(), verification=other)["outputs"].state == "differs"


def test_an_old_record_that_differs_from_the_host_is_compared_by_how_far():
    then = run(verification=verification(digests=(), differing=2, worst_steps=1.0))
    same = verification(digests=(("a",), ("b",), ("c",)), differing=2, worst_steps=1.0)
    check = compared(then, device(), verification=same)["outputs"]
    assert check.state == "within"
    assert "keeps no digests" in check.note
    assert compared(then, device())["outputs"].state == "differs"


def test_an_artifact_that_ran_and_does_not_now_differs():
    check = compared(run(), device(), verification=None, measurement=None, skipped="no runtime")["outputs"]
    assert (check.state, check.found) == ("differs", "no runtime")
    then = run(verification=None, measurement=None, skipped="no runtime")
    assert compared(then, device())["outputs"].state == "not compared"
    neither = compared(then, device(), verification=None, measurement=None, skipped="none")
    assert {name: each.state for name, each in neither.items()} == {"outputs": "not compared"}
