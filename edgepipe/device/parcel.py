"""Many small files as one: a tar with a list of digests, so that they cost one round trip together."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

from edgepipe.model import digest_bytes

SUMS = "SHA256SUMS"
"""Name of the list, the first file of the tar, in the form that ``sha256sum -c`` reads."""


def pack(files: Mapping[str, bytes]) -> bytes:
    """A tar of the files, by their path on the device, with the list of their digests before them."""
    sums = "".join(f"{digest_bytes(data)}  {name}\n" for name, data in files.items()).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in {SUMS: sums, **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
