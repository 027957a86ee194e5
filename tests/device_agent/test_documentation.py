"""docs/protocol.md says what the schema says."""

import re
from pathlib import Path

import pytest

from device_agent import protocol

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()


@pytest.mark.parametrize("tag", [*protocol.REQUESTS, *protocol.EVENTS])
def test_every_message_is_described(tag):
    assert f"`{tag}`" in TEXT


@pytest.mark.parametrize("kind", protocol.FAILURES)
def test_every_kind_of_failure_is_described(kind):
    assert f"`{kind}`" in TEXT


@pytest.mark.parametrize("tag", protocol.REQUESTS)
def test_every_field_of_a_request_is_described_with_its_default(tag):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{tag}` |"))
    cls = protocol.REQUESTS[tag]
    for field in cls._fields:
        assert f"`{field}`" in row
        default = cls._field_defaults.get(field)
        if isinstance(default, int) and not isinstance(default, bool):
            shown = f"{default / 1e9:g} s" if field.endswith("_ns") else str(default)
            assert f"`{field}` ({shown}" in row


def test_version_is_the_current_one():
    assert f"protocol, version {protocol.VERSION}\n" in TEXT


def test_transcript_is_of_this_version():
    transcript = re.search(r"^## A transcript.*?^```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE).group(1)
    lines = [line for line in transcript.splitlines() if line]
    assert len(lines) > 20
    for line in lines:
        direction, message = line[:2], line[2:]
        if '"deep"' in message:  # the bad request that it shows
            with pytest.raises(protocol.ProtocolError):
                protocol.decode_request(message)
            continue
        decode = protocol.decode_request if direction == "> " else protocol.decode_event
        assert protocol.encode(decode(message)) == message
