"""The agent as one file: device_agent/*.py in a zip that Python runs, the same bytes everywhere."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

_PACKAGE = "device_agent"
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE = 0o100644 << 16
_UNIX = 3
_ENTRY = b'"""Runs the agent."""\nimport sys\n\nfrom device_agent.__main__ import main\n\nsys.exit(main())\n'


def build_agent(package: Path | None = None) -> bytes:
    """Builds the agent's zipapp.

    Names are sorted, timestamps fixed, and nothing is compressed, as what a compressor writes differs
    between versions of zlib: the digest is that of the sources, from a checkout as from a wheel.

    Args:
        package: The folder of the package device_agent; None takes the installed one.
    """
    return _build(package) if package is not None else _installed()


@cache
def _installed() -> bytes:
    return _build(files(_PACKAGE))


def _build(package: Traversable) -> bytes:
    sources = {f"{_PACKAGE}/{name}": data for name, data in _sources(package, "")}
    sources["__main__.py"] = _ENTRY
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(sources.items()):
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.create_system = _UNIX
            entry.external_attr = _REGULAR_FILE
            archive.writestr(entry, data)
    return buffer.getvalue()


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield prefix + entry.name, entry.read_bytes()
