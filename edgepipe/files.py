"""How files are written: whole or not at all; records as JSON."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

from edgepipe.errors import EdgepipeError, OutputError

Record = TypeVar("Record", bound=msgspec.Struct)

_NUMBERS = re.compile(rb"\[\s+-?\d[-+.\dEe,\s]*\]")


def write_whole(
    path: Path,
    data: bytes,
    what: str = "the file cannot be written",
    remedy: str = "free some space, or name another file",
) -> None:
    """Writes a file under a temporary name beside it, then renames it; missing folders are made.

    Args:
        path: The file; one that is there is replaced.
        data: Its contents.
        what: What the error says.
        remedy: What it advises.

    Raises:
        OutputError: It cannot be written. Nothing but empty folders is left behind, nor after Ctrl-C.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(what, where=str(path), got=error.strerror or str(error), remedy=remedy) from error


def to_json(data: object) -> bytes:
    """Any record as JSON: indented for people, but each series of numbers on one line, however long."""
    indented = msgspec.json.format(msgspec.json.encode(data), indent=1)
    return _NUMBERS.sub(lambda found: b"".join(found.group().split()), indented) + b"\n"


def from_json(
    encoded: bytes, kind: type[Record], schema: int, *, what: str, where: str, error: type[EdgepipeError]
) -> Record:
    """A record that may be of a form that this edgepipe does not know yet.

    Args:
        encoded: The record as JSON.
        kind: Its type.
        schema: The newest form that is known.
        what: What was recorded: "the run".
        where: Where it stands.
        error: Raised for a newer form, before what that may hold is looked at.

    Raises:
        msgspec.DecodeError: It is malformed.
    """
    found = msgspec.json.decode(encoded, type=dict[str, object]).get("schema")
    if isinstance(found, int) and found > schema:
        raise error(
            f"{what} was made by a newer edgepipe",
            where=where,
            got=f"schema {found}, this edgepipe knows {schema}",
            remedy="upgrade edgepipe",
        )
    return msgspec.json.decode(encoded, type=kind)
