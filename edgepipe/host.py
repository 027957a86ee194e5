"""The address of a device, as people write it."""

from __future__ import annotations

import msgspec

from edgepipe.errors import UsageError


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Where one device stands.

    Attributes:
        hostname: A name, an address, or an alias of ~/.ssh/config.
        user: Who logs in; "" leaves it to ~/.ssh/config, then to the local user's name.
        port: TCP port; None leaves it to ~/.ssh/config, then to 22.
        identity_files: Private keys to try first, beside those of ~/.ssh/config.
        alias: What the user calls the device; "" where it has no other name.
    """

    hostname: str
    user: str = ""
    port: int | None = None
    identity_files: tuple[str, ...] = ()
    alias: str = ""

    def __str__(self) -> str:
        """``user@hostname:port``, the parts that are set."""
        hostname = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port is not None else ""
        return f"{user}{hostname}{port}"


def parse_host(text: str) -> Host:
    """Reads ``[user@]hostname[:port]``; an IPv6 address with a port stands in brackets.

    Raises:
        UsageError: The text is no such thing. It is not repeated where it may hold a password.
    """
    user, at, rest = text.strip().rpartition("@")
    if ":" in user:
        raise _secret_in_host(rest)
    hostname, port = _split_port(rest, text)
    if (at and not user) or not hostname or any(char.isspace() or char in "/,'\"" for char in user + rest):
        raise _bad_host(text)
    if user.startswith("-") or hostname.startswith("-"):
        raise _bad_host(text)
    return Host(hostname=hostname, user=user, port=port)


def _split_port(rest: str, text: str) -> tuple[str, int | None]:
    if rest.startswith("["):
        hostname, bracket, tail = rest[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise _bad_host(text)
        return hostname, _parse_port(tail[1:], text) if tail else None
    if rest.count(":") > 1:  # a bare IPv6 address
        return rest, None
    hostname, colon, port = rest.partition(":")
    return hostname, _parse_port(port, text) if colon else None


def _parse_port(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits[:6]) < 65536):
        raise _bad_host(text)
    return int(digits)


def _secret_in_host(rest: str) -> UsageError:
    return UsageError(
        "the host is not of the form user@address: nothing may follow the user's name, above all no password",
        where="--host",
        got=f"a colon before @{rest}",
        remedy="write user@address, and have the password asked for with --ask-password",
    )


def _bad_host(text: str) -> UsageError:
    return UsageError(
        "the host is not of the form user@address",
        where="--host",
        got=repr(text),
        remedy="write user@address or user@address:port, with an IPv6 address in brackets: pi@[fe80::1]:22",
    )
