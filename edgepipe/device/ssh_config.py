"""What ~/.ssh/config says about a host, as far as a connection needs it (ssh_config(5))."""

from __future__ import annotations

import getpass
import glob
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgepipe.device.known_hosts import DEFAULT_PORT, known_name
from edgepipe.errors import UsageError
from edgepipe.host import Host, parse_host

Prompt = Callable[[str], str]
"""Asks the user for a secret; the answer is used once and kept nowhere."""

_DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa")
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_MAX_INCLUDE_DEPTH = 16
_INCLUDE = re.compile(r"^\s*include[\s=]+(.+)$", re.IGNORECASE)


class SshOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to connect, the same for every host.

    Attributes:
        config_path: OpenSSH's client configuration; its folder is where default keys are looked for.
        known_hosts_path: None takes UserKnownHostsFile of the configuration, else its default.
        identity_files: Private keys to try before all others.
        accept_new_host_key: Remember the key of a host that is not known yet, instead of refusing. A
            changed key is refused all the same.
        connect_timeout_s: For each of: the TCP connection, the SSH handshake, an answer to a login.
        prompt: Asked for passwords and passphrases; None where nobody can answer.
        use_agent: Ask the ssh-agent that SSH_AUTH_SOCK names.
    """

    config_path: Path = Path("~/.ssh/config")
    known_hosts_path: Path | None = None
    identity_files: tuple[Path, ...] = ()
    accept_new_host_key: bool = False
    connect_timeout_s: float = 15.0
    prompt: Prompt | None = None
    use_agent: bool = True


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One host with everything that its configuration fills in.

    Attributes:
        host: As the user named it.
        hostname: What to connect to.
        port: TCP port there.
        user: Who logs in.
        identity_files: Private keys to try, in order; those that do not exist are skipped.
        identities_only: Offer only keys of the agent that `identity_files` names too.
        jumps: Hosts to pass through, in order.
        proxy_command: A command whose pipes are the connection; "" for none.
        known_name: How known_hosts lists the host.
        known_hosts: The files that are read; a new key is added to the first.
        hash_known_hosts: Hide names that are added.
    """

    host: Host
    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    jumps: tuple[Host, ...]
    proxy_command: str
    known_name: str
    known_hosts: tuple[Path, ...]
    hash_known_hosts: bool

    def __str__(self) -> str:
        """``user@hostname``, with the port where it is not 22."""
        port = None if self.port == DEFAULT_PORT else self.port
        return str(Host(hostname=self.hostname, user=self.user, port=port))


def resolve(host: Host, options: SshOptions) -> Route:
    """Looks a host up in the configuration; what `host` itself says goes first.

    Raises:
        UsageError: The configuration cannot be read.
    """
    config_path = options.config_path.expanduser()
    entry = _lookup(host, config_path)
    hostname = str(entry.get("hostname", host.hostname))
    port = entry["port"]
    identities = [Path(path) for path in host.identity_files]
    identities += [*options.identity_files, *(Path(path) for path in entry.get("identityfile", []))]
    if not identities:
        identities = [config_path.parent / name for name in _DEFAULT_IDENTITIES]
    jump = str(entry.get("proxyjump") or "none")
    alias = entry.get("hostkeyalias")
    return Route(
        host=host,
        hostname=hostname,
        port=port,
        user=str(entry.get("user") or getpass.getuser()),
        identity_files=tuple(dict.fromkeys(path.expanduser() for path in identities)),
        identities_only=entry.get("identitiesonly", "no") == "yes",
        jumps=() if jump.lower() == "none" else tuple(parse_host(part) for part in jump.split(",")),
        proxy_command=str(entry.get("proxycommand") or ""),
        known_name=str(alias).lower() if alias else known_name(hostname, port),
        known_hosts=_known_hosts_paths(options, config_path, entry),
        hash_known_hosts=entry.get("hashknownhosts", "no") == "yes",
    )


def _known_hosts_paths(options: SshOptions, config_path: Path, entry: dict[str, Any]) -> tuple[Path, ...]:
    if options.known_hosts_path is not None:
        return (options.known_hosts_path.expanduser(),)
    named = [Path(path).expanduser() for path in str(entry.get("userknownhostsfile", "")).split()]
    return (*(named or [config_path.parent / "known_hosts"]), _SYSTEM_KNOWN_HOSTS)


def _lookup(host: Host, config_path: Path) -> dict[str, Any]:
    import paramiko

    # The first value found for a keyword is the one that counts, and tokens such as %r and %p stand
    # for it: so what the user said on the command line is put on top.
    given = [f"User {host.user}"] if host.user else []
    given += [f"Port {host.port}"] if host.port is not None else []
    try:
        lines = ["Host *", *given, *_config_lines(config_path, host.hostname, config_path.parent)]
        entry = dict(paramiko.SSHConfig.from_text("\n".join(lines)).lookup(host.hostname))
        return entry | {"port": int(entry.get("port", DEFAULT_PORT))}
    except (paramiko.SSHException, ImportError, ValueError, KeyError, OSError) as error:
        raise UsageError(
            "the SSH configuration cannot be read",
            where=str(config_path),
            got=str(error),
            remedy="correct the file, or name another one",
        ) from error


def _config_lines(path: Path, hostname: str, folder: Path, depth: int = 0) -> Iterator[str]:
    """The lines of a configuration file with `Include`, which paramiko passes over, carried out."""
    if depth > _MAX_INCLUDE_DEPTH or not path.is_file():
        return
    block = "Host *"
    for line in path.read_text(errors="replace").splitlines():
        if re.match(r"^\s*(host|match)\b", line, re.IGNORECASE):
            block = line
        included = _INCLUDE.match(line)
        if included is None:
            yield line
        elif _applies(block, hostname):
            for pattern in included[1].split():
                for name in sorted(glob.glob(str(folder / Path(pattern.strip('"')).expanduser()))):  # noqa: PTH207 -- absolute patterns too
                    yield from _config_lines(Path(name), hostname, folder, depth + 1)
            yield block  # the file may have opened blocks of its own; after it, this one goes on


def _applies(block: str, hostname: str) -> bool:
    """Whether what stands below a `Host` or `Match` line counts for the host."""
    import paramiko

    config = paramiko.SSHConfig.from_text(f"{block}\n  Below yes")
    return "below" in config.lookup(hostname)
