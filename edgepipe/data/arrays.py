"""Samples from .npz and .npy files. Pickled objects are refused: opening data must run no code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.errors import DataUnreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = tuple[NDArray[np.generic], NDArray[np.generic] | None]

PICKLE_REMEDY = "save plain number arrays: np.savez(path, x=x.astype(np.float32), y=y.astype(np.int64))"


def read_npz(path: Path) -> Arrays:
    """Reads `x` and, where it is there, `y` of an .npz file.

    Raises:
        DataUnreadable: not an .npz, a corrupt one, one without `x`, or one of pickled objects.
    """
    import numpy as np

    try:
        with path.open("rb") as file:  # NumPy closes it itself only where it is whole
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise _unreadable(path, "it is one array, an .npy file by its contents")
            return _members(path, archive)
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise _unreadable(path, _reason(path, error)) from error


def _reason(path: Path, error: Exception) -> str:
    """What is wrong; NumPy takes for a pickle whatever it does not know."""
    text = str(error)
    if "allow_pickle" in text and path.read_bytes()[:1] not in {b"P", b"\x93", b"\x80"}:
        return "no archive of arrays by its contents"
    return text


def _members(path: Path, archive: Mapping[str, NDArray[np.generic]]) -> Arrays:
    if "x" not in archive:
        raise DataUnreadable(
            "the data file has no array `x`",
            where=str(path),
            got=f"arrays {', '.join(archive) or '(none)'}",
            remedy="save it with np.savez(path, x=samples, y=labels), x in the layout and scale "
            "of the model's input",
        )
    return archive["x"], archive.get("y")


def read_npy(path: Path) -> Arrays:
    """Maps the samples of an .npy file into memory, read-only; such a file has no labels.

    Raises:
        DataUnreadable: not an .npy, a corrupt one, or one of pickled objects.
    """
    import numpy as np

    try:
        return np.lib.format.open_memmap(path, mode="r"), None
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> DataUnreadable:
    if "allow_pickle" in reason or "Object arrays" in reason or "Python objects" in reason:
        return DataUnreadable(
            "the data file holds pickled Python objects, which edgepipe does not open",
            where=str(path),
            got="an array of objects",
            remedy=PICKLE_REMEDY,
        )
    return DataUnreadable(
        f"the file is not a readable {path.suffix.lower()} data file",
        where=str(path),
        got=reason.splitlines()[0] if reason else "",
        remedy="save it again with np.savez(path, x=samples, y=labels), or copy it again",
    )
