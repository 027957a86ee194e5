import msgspec
import pytest

from device_agent import protocol
from edgepipe.errors import AgentFailed
from edgepipe.measure import Measurement, from_protocol

PORT = protocol.Port("x", "int8", (1, 4), 0.1, 0)
PLAN = protocol.Plan(
    "bundle", "int8.tflite", "litert", 2, (PORT,), (PORT,), (protocol.Sample(("a.bin",), ("b.bin",)),)
)
SAID = protocol.Measurement(
    load_ns=5,
    import_ns=6,
    first_inference_ns=7,
    warmup_runs=3,
    runs=4,
    window=protocol.Window(100, 200),
    timed="invoke",
    clock=protocol.Clock("time.perf_counter_ns", 1.0),
    memory=protocol.ChildMemory(1, 2, 3, 10, "VmHWM"),
    cpu_ns=80,
    involuntary_switches=1,
    power=protocol.Power("rapl", "counter", "soc", ("package-0",), protocol.Window(1, 50), 1000, ""),
    throttle_before=(protocol.Reading("rpi", "throttled-now", 0, "flag"),),
    throttle_after=(protocol.Reading("rpi", "throttled-now", 1, "flag"),),
    runtime_version="2.3.0",
    providers=("XNNPACK",),
    threads=2,
    affinity=(0, 1),
)


def facts(*, emulated=False):
    policy = protocol.CpuPolicy("policy0", "0-3", "ondemand", 1, 1, 1)
    told = {
        "cpu": protocol.CpuFacts("Cortex-A72", "aarch64", (), 4, 4, (policy,)),
        "load_average": 0.5,
        "emulated": emulated,
        "emulation": "QEMU" if emulated else "",
    }
    return protocol.Facts(**{**dict.fromkeys(protocol.Facts._fields, ""), **told})


EVENTS = [
    protocol.Progress("run", 1),
    protocol.Latencies(0, (11, 12)),
    protocol.Samples("power", "uj", (90, 110), (1.0, 2.0)),
    protocol.Latencies(2, (13, 14)),
    protocol.Samples("power", "uj", (130,), (3.0,)),
    SAID,
    protocol.Done(),
]


def test_chunks_are_joined_in_order():
    found = from_protocol(EVENTS, PLAN, facts(), kind="board")
    assert found.latencies_ns == (11, 12, 13, 14)
    (power,) = found.series_named("power")
    assert (power.t_ns, power.values) == ((90, 110, 130), (1.0, 2.0, 3.0))
    assert (found.load_ns, found.first_ns, found.window.duration_ns) == (5, 7, 100)
    assert found.power.idle.end_ns == 50
    assert found.throttle_after[0].value == 1
    assert found.governors == {"policy0": "ondemand"}
    assert found.memory.model_bytes == 8
    assert (found.runtime, found.runtime_version, found.providers) == ("litert", "2.3.0", ("XNNPACK",))


def test_what_was_asked_for_stands_beside_what_ran():
    plan = PLAN._replace(providers=("TensorrtExecutionProvider", "CPUExecutionProvider"))
    said = SAID._replace(providers=("CPUExecutionProvider",), runs=1)
    found = from_protocol([protocol.Latencies(0, (1,)), said], plan, facts(), kind="board")
    assert (found.providers, found.providers_asked) == (("CPUExecutionProvider",), plan.providers)
    failed = from_protocol([protocol.Failed("crashed", "it crashed", "")], plan, facts(), kind="board")
    assert failed.providers == ()


def test_the_record_survives_json():
    found = from_protocol(EVENTS, PLAN, facts(), kind="embedded")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Measurement) == found


def test_a_failure_is_a_result():
    failed = protocol.Failed("out-of-memory", "the child was killed", "SIGKILL")
    found = from_protocol([protocol.Latencies(0, (1,)), failed], PLAN, facts(), kind="board")
    assert (found.outcome, found.message, found.detail) == (
        "out-of-memory",
        "the child was killed",
        "SIGKILL",
    )
    assert found.latencies_ns == ()


def test_a_board_that_is_emulated_is_recorded_so():
    found = from_protocol(EVENTS, PLAN, facts(emulated=True), kind="board")
    assert (found.kind, found.emulation) == ("emulated", "QEMU")
    assert from_protocol(EVENTS, PLAN, facts(emulated=True), kind="embedded").kind == "embedded"


@pytest.mark.parametrize(
    "events",
    [
        [],
        [protocol.Done()],
        [protocol.Latencies(0, (1, 2, 3)), SAID],
        [protocol.Latencies(0, (1, 2)), protocol.Latencies(3, (4,)), SAID],
    ],
)
def test_what_is_incomplete_is_refused(events):
    with pytest.raises(AgentFailed):
        from_protocol(events, PLAN, facts(), kind="board")


def test_every_failure_of_the_protocol_is_an_outcome():
    from typing import get_args

    from edgepipe.measure.record import Outcome

    assert set(get_args(Outcome)) == {"ok", *protocol.FAILURES}
