"""OpenSSH's known_hosts files: which host keys a name may have (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from edgepipe.errors import OutputError

DEFAULT_PORT = 22


class KnownKey(msgspec.Struct, frozen=True):
    """A host key as known_hosts writes it: "ssh-ed25519" and the base64 of its public part."""

    algorithm: str
    base64: str

    def __str__(self) -> str:
        """``ssh-ed25519 SHA256:...``."""
        return f"{self.algorithm} {self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` as ``ssh-keygen -lf`` prints it."""
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


class KnownHosts:
    """The lines of one or several known_hosts files; a file that does not exist holds none."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._lines = [line for path in paths if path.is_file() for line in _entries(path)]

    def keys_of(self, name: str) -> tuple[KnownKey, ...]:
        """The keys that the host may have, in the order of the files; without the revoked ones."""
        return tuple(key for marker, names, key in self._lines if not marker and _matches(name, names))

    def is_revoked(self, name: str, key: KnownKey) -> bool:
        """True where a line marks the key as stolen or retired."""
        return any(
            marker == "@revoked" and key == revoked and _matches(name, names)
            for marker, names, revoked in self._lines
        )


def known_name(hostname: str, port: int) -> str:
    """The name by which known_hosts lists a host: the port stands with it unless it is 22."""
    hostname = hostname.lower()
    return hostname if port == DEFAULT_PORT else f"[{hostname}]:{port}"


def hash_name(name: str, salt: bytes) -> str:
    """The name as HashKnownHosts hides it: HMAC-SHA1 under a salt of 20 bytes."""
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def add_known_host(path: Path, name: str, key: KnownKey, *, hashed: bool = False) -> None:
    """Appends a line to a known_hosts file, which is created (0600, its folder 0700) where need be.

    Raises:
        OutputError: The file cannot be written.
    """
    listed = hash_name(name, os.urandom(20)) if hashed else name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        needs_newline = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(("\n" if needs_newline else "") + f"{listed} {key.algorithm} {key.base64}\n")
    except OSError as error:
        raise OutputError(
            "the host key cannot be remembered",
            where=str(path),
            got=error.strerror or str(error),
            remedy="make the file writable, or name another known_hosts file",
        ) from error


def _entries(path: Path) -> Iterable[tuple[str, str, KnownKey]]:
    for line in path.read_text(errors="replace").splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if len(fields) >= 3 and _is_base64(fields[2]):
            yield marker, fields[0], KnownKey(fields[1], fields[2])


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _matches(name: str, patterns: str) -> bool:
    found = False
    for pattern in patterns.split(","):
        if pattern.startswith("!") and _matches_one(name, pattern[1:]):
            return False
        found = found or _matches_one(name, pattern)
    return found


def _matches_one(name: str, pattern: str) -> bool:
    if pattern.startswith("|1|"):
        parts = pattern.split("|")
        if len(parts) != 4 or not _is_base64(parts[2]):
            return False
        return hmac.compare_digest(hash_name(name, base64.b64decode(parts[2])), pattern)
    # OpenSSH knows * and ? alone: brackets stand for themselves.
    return fnmatchcase(name, pattern.lower().replace("[", "[[]"))
