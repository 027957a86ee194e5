"""What a run that was written as one file says of itself."""

from __future__ import annotations

import msgspec

SCHEMA = 1


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """An input that an export does not hold.

    Attributes:
        what: "model", "weights" or "data".
        name: As the user named it.
        sha256: Of its file; None for a folder, or where nobody took it.
    """

    what: str
    name: str
    sha256: str | None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What an export holds.

    Attributes:
        schema: Version of this record's form.
        run: Id of the run.
        files: sha256 of every file but this one, by its path.
        left_out: Inputs that it does not hold.
    """

    schema: int = SCHEMA
    run: str
    files: dict[str, str]
    left_out: tuple[LeftOut, ...] = ()


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """An export that was written.

    Attributes:
        file: Where it is.
        size_bytes: Its size.
        sha256: Its digest.
        run: Id of the run.
        left_out: Inputs that it does not hold.
    """

    file: str
    size_bytes: int
    sha256: str
    run: str
    left_out: tuple[LeftOut, ...]
