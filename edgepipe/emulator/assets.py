"""The files of docker/: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

import re
from pathlib import Path

from edgepipe.errors import TargetError

_HEAD = re.compile(r"^==> (.+) <==\n", re.MULTILINE)


def docker_folder() -> Path:
    """The folder that holds the Dockerfile, the boards, and the script for offline bases."""
    package = Path(__file__).resolve().parent.parent
    in_wheel = package / "docker"
    return in_wheel if in_wheel.is_dir() else package.parent / "docker"


def read_board(board: str) -> dict[str, str]:
    """What a board shows of itself: contents of files by their path on the device.

    Args:
        board: Folder of docker/boards/.

    Raises:
        TargetError: There is no such board.
    """
    path = docker_folder() / "boards" / board / "tree.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        known = sorted(each.parent.name for each in path.parent.parent.glob("*/tree.txt"))
        raise TargetError(
            "there is no such emulated board",
            where="emulation.board",
            got=repr(board),
            remedy=f"take one of {', '.join(known)}",
        ) from error
    parts = _HEAD.split(text)[1:]
    return {file: contents.removesuffix("\n") for file, contents in zip(parts[::2], parts[1::2], strict=True)}
