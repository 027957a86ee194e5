"""Bringing files to a device: streamed, resumable, checked there, and in place only when whole.

A file travels as ``NAME.part`` through ``cat`` on the exec channel (as fast as SFTP, which small systems
lack). When all of it is there and its sha256 is right, the device renames it. A cut connection or
Ctrl-C leaves the part where it is, on purpose: the next upload of the same contents goes on from there.
Small files travel together, and all of them or none arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from edgepipe.device.parcel import SUMS, pack
from edgepipe.device.transport import Completed, Transport, last_lines
from edgepipe.errors import BundleError, DeviceDiskFull, DeviceError
from edgepipe.model import digest_bytes
from edgepipe.units import format_bytes

ROOT = ".edgepipe"
"""Everything that edgepipe puts on a device is in this folder of the user's home."""

_CHUNK_BYTES = 1 << 18
_SMALL_BYTES = 1 << 18
_HEX_DIGITS = 64
_CHECK_TIMEOUT_S = 300.0
_EXIT_UNWRITTEN = 28
_EXIT_ALTERED = 65
_FULL_SIGNS = ("No space left", "quota exceeded", "File too large", "File size limit")

Progress = Callable[[int], None]
"""Told how many bytes of all files are on the device."""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """One file to bring to the device.

    Attributes:
        source: Its bytes, or a file of this machine.
        remote: Where it goes, relative to the home folder there.
        digest: sha256 of the contents, in hex.
        size_bytes: Their size.
    """

    source: bytes | Path
    remote: str
    digest: str
    size_bytes: int


def upload_of(source: bytes | Path, remote: str) -> Upload:
    """An Upload with digest and size read off the source.

    Raises:
        BundleError: The file cannot be read.
    """
    if isinstance(source, bytes):
        return Upload(source=source, remote=remote, digest=digest_bytes(source), size_bytes=len(source))
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Upload(source=source, remote=remote, digest=digest, size_bytes=source.stat().st_size)
    except OSError as error:
        raise _unreadable(source, error) from error


class _Part(msgspec.Struct, frozen=True):
    """What the device has of a file: whole or in part; None where it has nothing."""

    whole: tuple[int, str] | None
    part: tuple[int, str] | None


def _ignore(done_bytes: int) -> None:
    """Progress that nobody watches."""


def put(transport: Transport, uploads: Sequence[Upload], *, progress: Progress = _ignore) -> int:
    """Brings files to the device, all that it does not have yet, and gives the bytes that were sent.

    Raises:
        DeviceDiskFull: There is no room; no part of the file that did not fit is left.
        DeviceError: The device cannot write there, or what arrives is not what was sent.
        DeviceTimeout: The device takes no more data.
        HostUnreachable: The connection was lost; what arrived stays, for the next time.
        BundleError: A source cannot be read.
    """
    free_bytes, parts = _inspect(transport, uploads)
    plans = [(upload, _missing_from(upload, part)) for upload, part in zip(uploads, parts, strict=True)]
    missing = [(upload, offset) for upload, offset in plans if offset is not None]
    need_bytes = sum(upload.size_bytes - offset for upload, offset in missing)
    if free_bytes is not None and need_bytes > free_bytes:
        raise _disk_full(transport, f"{format_bytes(need_bytes)} needed, {format_bytes(free_bytes)} free")
    done = sum(upload.size_bytes for upload in uploads) - sum(upload.size_bytes for upload, _ in missing)
    progress(done)
    small = [upload for upload, offset in missing if offset == 0 and upload.size_bytes <= _SMALL_BYTES]
    if len(small) > 1 and _send_parcel(transport, small):
        missing = [(upload, offset) for upload, offset in missing if upload not in small]
        done += sum(upload.size_bytes for upload in small)
        progress(done)
    for upload, offset in missing:
        _send(transport, upload, offset, partial(_advance, progress, done))
        done += upload.size_bytes
        progress(done)
    return need_bytes


def _advance(progress: Progress, before: int, done_bytes: int) -> None:
    progress(before + done_bytes)


def _missing_from(upload: Upload, part: _Part) -> int | None:
    """Where to go on; None where the device has the file already."""
    if part.whole == (upload.size_bytes, upload.digest):
        return None
    if part.part is None or not 0 < part.part[0] <= upload.size_bytes:
        return 0
    size, digest = part.part
    return size if _digest_of_start(upload, size) == digest else 0


def _send_parcel(transport: Transport, uploads: Sequence[Upload]) -> bool:
    """Sends small files together; False where that brought none of them, for want of tar, say."""
    parcel = pack({upload.remote: b"".join(_read(upload, 0)) for upload in uploads})
    argv = ["sh", "-c", _UNPACK, "sh", f"{ROOT}/parcel-{digest_bytes(parcel)[:12]}"]
    completed = transport.run(argv, stdin=parcel, timeout_s=_CHECK_TIMEOUT_S)
    if completed.exit_status == _EXIT_UNWRITTEN:
        raise _failed(transport, None, completed)
    return completed.exit_status == 0


def _send(transport: Transport, upload: Upload, offset: int, progress: Progress) -> None:
    """Sends one file from `offset` on, from its start where the device then has something else."""
    for start in (offset, 0):
        argv = ["sh", "-c", _RECEIVE, "sh", upload.remote, upload.digest, str(start)]
        chunks = _chunks(upload, start, progress)
        completed = transport.run(argv, stdin=chunks, timeout_s=_CHECK_TIMEOUT_S)
        if completed.exit_status == 0:
            return
        if completed.exit_status != _EXIT_ALTERED:
            raise _failed(transport, upload, completed)
    raise DeviceError(
        "the device has something else than what was sent, twice",
        where=f"{transport.description}:~/{upload.remote}",
        got=f"sha256 {last_lines(completed.stdout)} instead of {upload.digest}",
        remedy="see whether the storage of the device is sound, and nothing else writes there",
    )


def _chunks(upload: Upload, start: int, progress: Progress) -> Iterator[bytes]:
    done = start
    for chunk in _read(upload, start):
        yield chunk
        done += len(chunk)
        progress(done)


def _read(upload: Upload, start: int) -> Iterator[bytes]:
    if isinstance(upload.source, bytes):
        view = memoryview(upload.source)
        for position in range(start, len(view), _CHUNK_BYTES):
            yield bytes(view[position : position + _CHUNK_BYTES])
        return
    try:
        with upload.source.open("rb") as file:
            file.seek(start)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise _unreadable(upload.source, error) from error


def _digest_of_start(upload: Upload, size: int) -> str:
    digest = hashlib.sha256()
    for chunk in _read(upload, 0):
        digest.update(chunk[:size])
        size -= len(chunk)
        if size <= 0:
            break
    return digest.hexdigest()


def _inspect(transport: Transport, uploads: Sequence[Upload]) -> tuple[int | None, list[_Part]]:
    """Asks, in one round trip, for the room on the device and what it has of the files."""
    names = "".join(f"{upload.remote}\n" for upload in uploads)
    argv = ["sh", "-c", _INSPECT, "sh"]
    completed = transport.run(argv, stdin=names.encode(), timeout_s=_CHECK_TIMEOUT_S)
    lines = completed.stdout.decode(errors="replace").splitlines()
    if completed.exit_status != 0 or not lines:
        raise _failed(transport, None, completed)
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for line in lines[1:]:
        value, _, name = line.strip().partition(" ")
        if len(value) == _HEX_DIGITS:
            digests[name.lstrip()] = value
        elif value.isdigit():
            sizes[name.lstrip()] = int(value)

    def found(name: str) -> tuple[int, str] | None:
        return (sizes[name], digests[name]) if name in sizes and name in digests else None

    parts = [_Part(found(upload.remote), found(f"{upload.remote}.part")) for upload in uploads]
    return _free_bytes(lines[0]), parts


def _free_bytes(df_line: str) -> int | None:
    """Reads the last line of ``df -Pk``: file system, size, used, available, capacity, mount point."""
    fields = df_line.split()
    percent = next((index for index, field in enumerate(fields) if field.endswith("%")), 0)
    return int(fields[percent - 1]) * 1024 if percent >= 3 and fields[percent - 1].isdigit() else None


def _failed(transport: Transport, upload: Upload | None, completed: Completed) -> DeviceError:
    said = last_lines(completed.stderr) or f"exit status {completed.exit_status}, no message"
    where = f"{transport.description}:~/{upload.remote if upload else ''}"
    if any(sign in said for sign in _FULL_SIGNS):
        free_bytes = _free_bytes(last_lines(completed.stdout, 1))
        free = "" if free_bytes is None else f" ({format_bytes(free_bytes)} free)"
        return _disk_full(transport, said + free)
    return DeviceError(
        "the device cannot take the file",
        where=where,
        got=said,
        remedy=f"see whether ~/{ROOT} can be written there, and sh, cat and sha256sum are installed",
    )


def _disk_full(transport: Transport, got: str) -> DeviceDiskFull:
    return DeviceDiskFull(
        "the device has no room left",
        where=f"{transport.description}:~/{ROOT}",
        got=got,
        remedy=f"free some room there; `rm -r ~/{ROOT}/bundles` removes what edgepipe pushed before",
    )


def _unreadable(source: Path, error: OSError) -> BundleError:
    return BundleError(
        "a file to upload cannot be read",
        where=str(source),
        got=error.strerror or str(error),
        remedy="see whether it is still there",
    )


# POSIX sh, as dash and BusyBox have it; sha256sum and tar are part of both Debian and BusyBox.
_HEAD = "LC_ALL=C; export LC_ALL; umask 077\n"

# Reads names; tells the room, then digest and size of each file that is there, whole or in part.
_INSPECT = f"""{_HEAD}
mkdir -p {ROOT} || exit 1
df -Pk {ROOT} 2>/dev/null | tail -n 1 | grep . || echo unknown
set --
while IFS= read -r name; do
  for file in "$name" "$name.part"; do if [ -f "$file" ]; then set -- "$@" "$file"; fi; done
done
if [ $# -gt 0 ]; then sha256sum "$@" && wc -c "$@"; fi
"""

# Arguments: file, sha256, offset. A file that does not fit leaves no part behind, an interrupted one does.
_RECEIVE = f"""{_HEAD}
part=$1.part
failed() {{ rm -f "$part"; df -Pk . | tail -n 1; exit {_EXIT_UNWRITTEN}; }}
mkdir -p "$(dirname "$1")" || failed
if [ "$3" = 0 ]; then : > "$part" || failed; fi
cat >> "$part" || failed
found=$(sha256sum < "$part" | cut -c 1-64)
if [ "$found" != "$2" ]; then echo "$found"; exit {_EXIT_ALTERED}; fi
mv -f "$part" "$1"
"""

# Argument: a folder to unpack in, which is gone afterwards, come what may.
_UNPACK = f"""{_HEAD}
parcel=$1
trap 'rm -rf "$parcel"' EXIT
trap 'exit 129' HUP INT TERM
trap '' PIPE
failed() {{ df -Pk . | tail -n 1; exit {_EXIT_UNWRITTEN}; }}
rm -rf "$parcel"
mkdir -p "$parcel" || failed
command -v tar >/dev/null || exit {_EXIT_ALTERED}
if ! said=$(tar -xf - -C "$parcel" 2>&1); then
  echo "$said" >&2
  case $said in *space*|*quota*|*large*) failed;; *) exit {_EXIT_ALTERED};; esac
fi
(cd "$parcel" && sha256sum -c {SUMS} >/dev/null) || exit {_EXIT_ALTERED}
while read -r digest name; do
  mkdir -p "${{name%/*}}" && mv -f "$parcel/$name" "$name" || failed
done < "$parcel/{SUMS}"
"""
