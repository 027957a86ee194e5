"""Secrets are asked for when they are needed, each by its own question, while the progress gives way."""

import contextlib
import os
import pty
import signal
import subprocess
import sys

import pytest

from edgepipe.cli.ask import ask, ask_place
from edgepipe.cli.show import ProgressView
from edgepipe.errors import UsageError
from edgepipe.events import StageStarted

# Two questions in the middle of a stage, on a terminal of its own; what was typed comes back on stdout.
CHILD = """
from edgepipe.cli.ask import ask
from edgepipe.cli.show import ProgressView
from edgepipe.events import stage

with ProgressView() as view:
    with stage(view, "connect"):
        answers = [ask(question, view.paused()) for question in ("jump's password: ", "board's password: ")]
print(answers)
"""


@pytest.fixture
def terminal():
    """Starts `CHILD` on a pseudo-terminal; gives the process and our end of it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0)\n{CHILD}"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    yield process, ours
    process.kill()
    process.communicate()
    os.close(ours)


def read_until(ours, text):
    seen = b""
    while text not in seen:
        seen += os.read(ours, 1024)
    return seen


def test_every_question_is_shown_and_gets_its_own_answer(terminal):
    process, ours = terminal
    seen = read_until(ours, b"jump's password: ")
    os.write(ours, b"one\n")
    seen += read_until(ours, b"board's password: ")
    os.write(ours, b"two\n")
    seen += read_until(ours, "✓".encode())
    stdout, _ = process.communicate(timeout=20)
    assert stdout == b"['one', 'two']\n"
    assert b"one" not in seen
    assert b"two" not in seen


def test_ctrl_c_at_a_question_ends_the_program(terminal):
    process, ours = terminal
    read_until(ours, b"jump's password: ")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT


def test_nothing_is_asked_ahead_and_nothing_is_kept(monkeypatch):
    asked = []
    monkeypatch.setattr("edgepipe.cli.ask._has_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda question: asked.append(question) or f"answer {len(asked)}")
    place = ask_place("board", False, None, False, ProgressView())
    assert asked == []
    assert [place.prompt("same? "), place.prompt("same? ")] == ["answer 1", "answer 2"]
    assert asked == ["same? ", "same? "]


def test_a_server_cannot_write_to_the_terminal_what_it_likes(monkeypatch):
    monkeypatch.setattr("getpass.getpass", lambda question: question)
    assert ask("\x1b[2JPassword:\r\n", contextlib.nullcontext()) == " [2JPassword:  "


def test_without_a_terminal_nobody_can_be_asked(monkeypatch):
    monkeypatch.setattr("edgepipe.cli.ask._has_terminal", lambda: False)
    with pytest.raises(UsageError, match="nobody is there"):
        ask_place("board", False, None, False, ProgressView())
    assert ask_place("board", False, None, False, None).prompt is None


def test_a_pause_off_a_terminal_prints_nothing(capsys):
    with ProgressView() as view:
        view(StageStarted("connect"))
        with view.paused():
            pass
        assert capsys.readouterr().err == ""
