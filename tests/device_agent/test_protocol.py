"""The one schema: what is sent comes back, and nothing else is let through."""

import json
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent import protocol
from device_agent.protocol import ProtocolError, decode_event, decode_request, encode

ALL = {**protocol.REQUESTS, **protocol.EVENTS}

PLAN = protocol.Plan(
    folder="bundles/ab12",
    artifact="int8.tflite",
    runtime="litert",
    threads=1,
    inputs=(protocol.Port("x", "int8", (1, 4), 0.5, -3),),
    outputs=(protocol.Port("y", "float32", (1, 2)),),
    samples=(protocol.Sample(("0.in",), ("0.out",)),),
)


def values(hint):
    """A strategy for any value of a field's type."""
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        return records(hint)
    origin = typing.get_origin(hint)
    if origin is typing.Union:
        return st.none() | values(typing.get_args(hint)[0])
    if origin is tuple:
        return st.lists(values(typing.get_args(hint)[0]), max_size=3).map(tuple)
    return {
        str: st.text(max_size=20),
        int: st.integers(-(2**63), 2**63),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }[hint]


def records(cls):
    if cls is protocol.Plan:
        return st.builds(
            lambda name, threads: PLAN._replace(folder=name, threads=threads), st.text(), st.integers(1, 64)
        )
    if cls is protocol.Failed:
        return st.builds(protocol.Failed, st.sampled_from(protocol.FAILURES), st.text(), st.text())
    if cls is protocol.Samples:
        pairs = st.lists(st.tuples(st.integers(), values(float)), max_size=5)
        return st.builds(
            lambda series, found: protocol.Samples(
                series, "mw", tuple(t_ns for t_ns, _ in found), tuple(value for _, value in found)
            ),
            st.text(),
            pairs,
        )
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{name: values(hints[name]) for name in cls._fields})


@pytest.mark.parametrize("tag", sorted(ALL))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_message_survives_the_wire(tag, data):
    message = data.draw(records(ALL[tag]))
    line = encode(message)
    decode = decode_request if tag in protocol.REQUESTS else decode_event
    assert decode(line) == message
    assert decode(line.encode()) == message
    assert type(decode(line)) is type(message)
    assert "\n" not in line
    assert line.isascii()
    assert json.loads(line)["v"] == protocol.VERSION


@given(st.binary(max_size=200))
def test_garbage_is_always_a_protocol_error(line):
    with pytest.raises(ProtocolError):
        decode_request(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_json_that_is_no_message_is_a_protocol_error(value):
    with pytest.raises(ProtocolError):
        decode_event(json.dumps(value))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"type": "probe"}', "version None"),
        ('{"v": 2, "type": "probe"}', "version 2"),
        ('{"v": true, "type": "probe"}', "version True"),
        ('{"v": 1}', "unknown type None"),
        ('{"v": 1, "type": "done"}', "unknown type 'done'"),
        ('{"v": 1, "type": ["probe"]}', "unknown type"),
        ('{"v": 1, "type": "probe", "deep": 1}', "probe: unknown field 'deep'"),
        ('{"v": 1, "type": "probe", "import_runtimes": 1}', "probe.import_runtimes: expected bool, got int"),
        ('{"v": 1, "type": "digest"}', "digest: field 'paths' is missing"),
        ('{"v": 1, "type": "digest", "paths": "a"}', "digest.paths: expected a list, got str"),
        ('{"v": 1, "type": "digest", "paths": ["a", null]}', "digest.paths[1]: expected str, got null"),
        ('{"v": 1, "type": "space", "path": NaN}', "NaN is not a number"),
        ('{"v": 1, "type": "space", "path": "a", "path": "b"}', "'path' is there twice"),
        ('{"v": 1, "type": "space"', "not a line of JSON"),
        ("[" * 100000, "not a line of JSON"),
        ("[]", "expected an object, got list"),
        (b"\xff\xfe", "not a line of JSON"),
        ('{"v": 1, "type": "space", "path": "' + "x" * protocol.MAX_LINE_BYTES + '"}', "too long"),
    ],
)
def test_bad_lines_are_named(line, complaint):
    with pytest.raises(ProtocolError) as caught:
        decode_request(line)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"runtime": "tensorrt"}, "unknown runtime 'tensorrt'"),
        ({"samples": []}, "at least one sample"),
        ({"threads": 0}, "at least one thread"),
        ({"threads": 1.0}, "plan.threads: expected int, got float"),
        ({"samples": [{"inputs": [], "outputs": ["0.out"]}]}, "one file for each input port"),
        ({"samples": [{"inputs": ["0.in"], "outputs": []}]}, "one file for each output port"),
        ({"inputs": [{"name": "x", "dtype": "int8", "shape": [1, -1.5]}]}, "plan.inputs[0].shape[1]"),
        (
            {"inputs": [{"name": "x", "dtype": "int8", "shape": [1], "scale": "1"}]},
            "scale: expected float, got str",
        ),
        ({"inputs": [{"name": "x", "dtype": "int8", "shape": [1], "scale": 10**400}]}, "out of range"),
    ],
)
def test_bad_plans_are_named(change, complaint):
    fields = json.loads(encode(protocol.Verify(PLAN)))
    fields["plan"].update(change)
    with pytest.raises(ProtocolError) as caught:
        decode_request(json.dumps(fields))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        PLAN,
        protocol.Progress("run", 1.5),
        protocol.Progress("run", True),
        protocol.Progress("run", 1)._replace(stage=None),
        protocol.Failed("sad", "message"),
        protocol.Samples("power", "mw", (1, 2), (1.0,)),
        protocol.Samples("power", "mw", (1,), (float("nan"),)),
        protocol.Samples("power", "mw", [1], (1.0,)),
        protocol.Latencies(0, (10**12,) * 90_000),
        protocol.Verify(plan=("folder",)),
    ],
)
def test_what_may_not_be_received_is_not_sent(message):
    with pytest.raises(ProtocolError):
        encode(message)


def test_missing_fields_take_their_defaults():
    assert decode_request('{"v": 1, "type": "space"}') == protocol.Space(".")


def test_requests_and_events_share_no_type():
    assert not set(protocol.REQUESTS) & set(protocol.EVENTS)


def test_a_full_chunk_fits_in_a_line():
    greatest = 2**63 - 1
    times = (greatest,) * protocol.CHUNK
    assert len(encode(protocol.Latencies(greatest, times))) < protocol.MAX_LINE_BYTES
    reading = (1.7976931348623157e308,) * protocol.CHUNK
    assert len(encode(protocol.Samples("power", "uj", times, reading))) < protocol.MAX_LINE_BYTES
