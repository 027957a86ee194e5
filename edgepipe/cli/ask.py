"""What only the person at the terminal can answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.job import Place


def ask_place(
    host: str | None, emulate: bool, identity: Path | None, accept_new_host_key: bool, ask_password: bool
) -> Place:
    """The place that the options name; asks for the password first, before progress bars own the terminal."""
    from edgepipe.job import Place

    prompt = None
    if ask_password:
        import warnings
        from getpass import GetPassWarning, getpass

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", GetPassWarning)  # what it can't hide must not be typed
                password = getpass(f"Password for {host or 'the host'}: ")
        except (EOFError, GetPassWarning):
            raise UsageError(
                "nobody is there to type the password",
                where="--ask-password",
                remedy="run the command in a terminal, or put a key on the device with ssh-copy-id",
            ) from None

        def prompt(_question: str) -> str:
            return password

    return Place(
        host=host, emulate=emulate, identity=identity, accept_new_host_key=accept_new_host_key, prompt=prompt
    )
