"""What only the person at the terminal can answer."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.cli.show import ProgressView
    from edgepipe.job import Emulator, Place


def ask_place(
    host: str | None,
    emulate: bool | Emulator,
    identity: Path | None,
    accept_new_host_key: bool,
    view: ProgressView | None,
) -> Place:
    """The place that the options name.

    Args:
        host: As typed.
        emulate: What --emulator names, or whether --emulate was typed.
        identity: Likewise.
        accept_new_host_key: Likewise.
        view: With --ask-password, what gives way to the questions that logging in brings up; else None.

    Raises:
        UsageError: Somebody is to be asked, and there is no terminal.
    """
    from edgepipe.job import Place

    if view is not None and not _has_terminal():
        raise _nobody()
    return Place(
        host=host,
        emulate=emulate,
        identity=identity,
        accept_new_host_key=accept_new_host_key,
        prompt=None if view is None else lambda question: ask(question, view.paused()),
    )


def ask(question: str, paused: AbstractContextManager[None]) -> str:
    """Asks for one secret at the moment when it is needed; nothing is kept, so nothing is sent twice.

    Args:
        question: Who wants to know what: "pi@10.0.0.5's password: ". A server may have worded it.
        paused: Held while the terminal belongs to the question.

    Raises:
        UsageError: There is no terminal whose echo can be turned off.
    """
    from getpass import GetPassWarning, getpass

    printable = "".join(each if each.isprintable() else " " for each in question)
    try:
        with paused, warnings.catch_warnings():
            warnings.simplefilter("error", GetPassWarning)  # what it can't hide must not be typed
            return getpass(printable)
    except (EOFError, GetPassWarning):
        raise _nobody() from None


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True


def _nobody() -> UsageError:
    return UsageError(
        "nobody is there to type the password",
        where="--ask-password",
        remedy="run the command in a terminal, or put a key on the device with ssh-copy-id",
    )
