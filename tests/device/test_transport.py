"""Programs on a device behave the same over OpenSSH, on the embedded device, and locally."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.device.ssh import connect
from edgepipe.errors import AgentFailed, DeviceTimeout, HostUnreachable, UsageError
from edgepipe.host import Host, parse_host


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("10.0.0.7", Host(hostname="10.0.0.7")),
        ("nvidia@10.0.0.7", Host(hostname="10.0.0.7", user="nvidia")),
        (" pi@raspberrypi.local:2222 ", Host(hostname="raspberrypi.local", user="pi", port=2222)),
        ("pi@[fe80::1]:22", Host(hostname="fe80::1", user="pi", port=22)),
        ("pi@[fe80::1]", Host(hostname="fe80::1", user="pi")),
        ("fe80::1%eth0", Host(hostname="fe80::1%eth0")),
        ("first.last@board", Host(hostname="board", user="first.last")),
        ("user@domain@board", Host(hostname="board", user="user@domain")),
    ],
)
def test_parse_host(text, host):
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@board",
        "pi@",
        "pi@board:",
        "pi@board:0",
        "pi@board:65536",
        "pi@board:ssh",
        "pi@[::1",
        "[::1]22",
        "[]:22",
        "a b@board",
        "pi@bo ard",
        "ssh://pi@board",
        "-oProxyCommand=x",
        "pi@-oProxyCommand",
        "pi@board:\uff12\uff12",
        "pi@board:" + "9" * 5000,
    ],
)
def test_a_bad_host_is_one_clear_error(text):
    with pytest.raises(UsageError) as error:
        parse_host(text)
    assert "user@address" in error.value.remedy


@pytest.mark.parametrize("text", ["root:hunter2@board", "root:hun@ter2@board:22", ":hunter2@", "a:hunter2@b"])
def test_a_password_in_the_host_is_refused_and_not_repeated(text):
    with pytest.raises(UsageError) as error:
        parse_host(text)
    assert "--ask-password" in error.value.remedy
    assert not re.search("hun|ter2", str(error.value))


@given(
    st.builds(
        Host,
        hostname=st.from_regex(r"[a-z0-9][a-z0-9.\-]{0,20}|[0-9a-f]{1,4}::[0-9a-f]{1,4}", fullmatch=True),
        user=st.from_regex(r"([a-z_][a-z0-9_\-]{0,8})?", fullmatch=True),
        port=st.none() | st.integers(1, 65535),
    )
)
def test_a_host_reads_back_what_it_writes(host):
    assert parse_host(str(host)) == host


def test_status_and_both_outputs(place):
    transport, root = place
    completed = transport.run(["sh", "-c", "pwd; echo oops >&2; exit 3"])
    assert completed.exit_status == 3
    assert completed.stdout.decode().strip() == str(root)
    assert completed.stderr == b"oops\n"


def test_home_is_the_folder(place):
    transport, root = place
    assert transport.check(["sh", "-c", 'echo "$HOME"']).decode().strip() == str(root)


def test_arguments_arrive_as_they_are(place):
    arguments = [
        "",
        " ",
        "a b",
        "$HOME",
        "`id`",
        "'",
        '"',
        "\\",
        "*",
        "~",
        "é",
        "a\nb",
        "-n",
        ";exit 1",
        "!x",
    ]
    output = place[0].check(["printf", "%s\\0", *arguments])
    assert output.decode().split("\0")[:-1] == arguments


def test_input_larger_than_every_buffer_comes_back(place):
    data = os.urandom(3_000_000)
    chunks = (data[start : start + 100_000] for start in range(0, len(data), 100_000))
    assert place[0].run(["cat"], stdin=chunks).stdout == data


def test_a_program_that_does_not_read_tells_why_by_its_status(place):
    completed = place[0].run(
        ["sh", "-c", "exec <&-; sleep 0.2; exit 7"], stdin=(b"x" * 100_000 for _ in range(100))
    )
    assert completed.exit_status == 7


def test_a_flood_of_messages_blocks_nothing(place):
    script = "yes error | head -c 6000000 >&2; echo done"
    completed = place[0].run(["sh", "-c", script], timeout_s=30)
    assert completed.stdout == b"done\n"
    assert completed.stderr.endswith(b"error\n")


def test_no_such_program(place):
    transport, _ = place
    completed = transport.run(["no-such-program"])
    assert completed.exit_status == 127
    with pytest.raises(AgentFailed, match="127"):
        transport.check(["no-such-program"])


def test_a_program_ended_by_a_signal(place):
    assert place[0].run(["sh", "-c", "exec sleep 60 & kill -9 $!; wait $!"]).exit_status == 137


def test_talking_line_by_line(place):
    with place[0].open(
        ["sh", "-c", 'while read -r line; do echo "<$line>"; done; echo end; printf tail']
    ) as channel:
        channel.write_line(b"one")
        assert channel.read_line(10) == b"<one>"
        channel.write(b"two\nthr")
        assert channel.read_line(10) == b"<two>"
        channel.write(b"ee\n")
        channel.close_stdin()
        assert [channel.read_line(10) for _ in range(4)] == [b"<three>", b"end", b"tail", None]
        assert channel.wait(10) == 0


def test_a_line_that_does_not_end_is_cut(place):
    with place[0].open(["sh", "-c", "yes | tr -d '\\n'"]) as channel:
        line = channel.read_line(30)
    assert 1 << 22 < len(line) < 1 << 23
    assert set(line) == {ord("y")}


def test_what_login_scripts_say_is_passed_over(start_openssh):
    noise = "echo Welcome; printf 'no newline'; echo hint >&2"
    server = start_openssh(ForceCommand=f'{noise}; cd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"')
    with connect(server.host, server.ssh_options) as transport:
        assert transport.run(["echo", "in"]).stdout == b"in\n"
        assert transport.run(["cat"], stdin=b"x" * 100_000).stdout == b"x" * 100_000
        assert transport.run(["true"]).stdout == b""


def test_silence_is_a_timeout(place):
    transport, _ = place
    with pytest.raises(DeviceTimeout) as error:
        transport.run(["sleep", "2"], timeout_s=0.2)
    assert error.value.where == transport.description


def test_waiting_for_a_line_is_a_timeout_too(place):
    with place[0].open(["sh", "-c", "printf half; cat"]) as channel, pytest.raises(DeviceTimeout):
        channel.read_line(0.3)


def test_leaving_the_channel_ends_the_program(place, no_process_names, marker):
    with place[0].open(["sh", "-c", f"cat; : {marker}"]) as channel:
        channel.write_line(b"there")
        assert channel.read_line(10) == b"there"
    assert no_process_names(marker)


def test_a_lost_connection_is_said_to_be_lost(device, cut_wire, tmp_path):
    wire = cut_wire(device)
    with connect(wire.host(device), wire.options(device, tmp_path)) as transport:
        assert transport.run(["true"]).exit_status == 0
        with transport.open(["cat"]) as channel:
            channel.write_line(b"a")
            assert channel.read_line(10) == b"a"
            wire.cut()
            assert channel.read_line(10) is None
            with pytest.raises(HostUnreachable, match="lost"):
                channel.wait(10)
        with pytest.raises(HostUnreachable, match="lost"):
            transport.open(["true"])
