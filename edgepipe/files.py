"""Writing a file whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path

from edgepipe.errors import OutputError


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
