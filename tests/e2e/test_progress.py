"""What moves on the screen: bars on a terminal, a line a stage elsewhere, and nothing of it on stdout."""

import os
import pty
import re

import pytest

COMPRESS = ("compress", "model.onnx", "--target", "x86", "--calibration-samples", "64", "--data", "val.npz")
STAGES = ["load ONNX", "calibrate", "quantize.static", "write artifacts", "record golden samples"]


def read_all(terminal):
    """Everything that was written to a terminal whose other end is closed."""
    seen = b""
    try:
        while data := os.read(terminal, 65536):
            seen += data
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    return seen.decode()


@pytest.fixture
def seen(equipped):
    """What a terminal on stderr showed, and what stdout took, of one command."""

    def run(*argv):
        terminal, inside = pty.openpty()
        process = equipped.start(*argv, stderr=inside)
        os.close(inside)
        shown = read_all(terminal)
        stdout, _ = process.communicate(timeout=60)
        return process.returncode, shown, stdout.decode()

    return run


def test_a_terminal_shows_bars_and_keeps_a_line_a_stage(seen):
    code, shown, stdout = seen(*COMPRESS)
    assert code == 0
    assert "\x1b[" in shown
    assert "━" in shown
    kept = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert all(f"✓ {stage}" in kept for stage in STAGES)
    assert "\x1b[" not in stdout
    assert "✓" not in stdout
    assert "int8.tflite" in stdout


def test_a_terminal_is_left_as_it_was_after_an_error(seen):
    code, shown, stdout = seen(*COMPRESS[:-1], "nothing.npz")
    assert code != 0
    assert stdout == ""
    assert "nothing.npz" in shown
    assert shown.count("\x1b[?25h") >= shown.count("\x1b[?25l")  # the cursor is shown again


def test_elsewhere_there_is_a_line_a_stage(equipped):
    outcome = equipped.ok(*COMPRESS)
    lines = outcome.stderr.splitlines()
    assert all(re.fullmatch(r"✓ .+ \d+\.\d s(  .+)?", line) for line in lines), lines
    named = [re.sub(r" \d+\.\d s.*", "", line).removeprefix("✓ ") for line in lines]
    assert [name for name in named if name in STAGES] == STAGES
    assert "\x1b" not in outcome.stderr + outcome.stdout
    assert "✓" not in outcome.stdout


def test_json_is_all_that_stdout_takes(equipped):
    process = equipped.start(*COMPRESS, "--json")  # a process of its own: libraries may print by themselves
    stdout, stderr = process.communicate(timeout=60)
    assert stdout.startswith(b"{")
    assert stdout.endswith(b"}\n")
    assert all(line.startswith("✓ ") for line in stderr.decode().splitlines())
