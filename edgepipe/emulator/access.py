"""The way in to an emulated device: a key of its own, its pinned host key, and files that ssh reads too."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgepipe.emulator.assets import read_board
from edgepipe.errors import OutputError
from edgepipe.files import write_whole

USER = "edge"
_KEY = "id_ecdsa"


class Access(msgspec.Struct, frozen=True):
    """The folder of one device on this machine: what opens it, and what it shows of its board.

    Attributes:
        folder: Holds the files below; gone once the device is taken down.
    """

    folder: Path

    @property
    def identity(self) -> Path:
        """The private key that the device lets in."""
        return self.folder / _KEY

    @property
    def known_hosts(self) -> Path:
        """The device's host key, as OpenSSH and edgepipe read it."""
        return self.folder / "known_hosts"

    @property
    def config(self) -> Path:
        """An ssh_config with the device under its target's name."""
        return self.folder / "config"

    @property
    def tree(self) -> Path:
        """What the device sees of its board: tree/sys is mounted over its /sys, and is live."""
        return self.folder / "tree"


def state_folder() -> Path:
    """Where emulated devices of this user leave their files."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser().absolute() / "edgepipe" / "emulator"


def owner() -> str:
    """Tells this user's devices from those of others on the same engine."""
    return hashlib.sha256(str(state_folder()).encode()).hexdigest()[:8]


def access_to(target: str) -> Access:
    """The folder of a target's device, which need not be there."""
    return Access(state_folder() / target)


@contextlib.contextmanager
def locked(access: Access) -> Iterator[None]:
    """Keeps a second `edgepipe` from making the same device meanwhile.

    Raises:
        OutputError: The folder cannot be made.
    """
    lock = access.folder.with_name(f".{access.folder.name}.lock")
    try:
        access.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OutputError(
            "the folder of emulated devices cannot be written",
            where=str(access.folder),
            got=error.strerror or str(error),
            remedy="make it writable, or name another one: XDG_STATE_HOME=/path edgepipe ...",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_key(access: Access) -> str:
    """Makes a new key for the device, and gives its public part as authorized_keys has it.

    Raises:
        OutputError: It cannot be written.
    """
    import paramiko

    key = paramiko.ECDSAKey.generate(bits=256)
    text = io.StringIO()
    key.write_private_key(text)
    access.identity.unlink(missing_ok=True)
    access.identity.touch(mode=0o600)
    access.identity.write_text(text.getvalue())
    return f"{key.get_name()} {key.get_base64()} edgepipe"


def lay_out(access: Access, board: str, memory_bytes: int) -> dict[str, Path]:
    """Writes what the board shows of itself.

    Args:
        access: The device's folder.
        board: Folder of docker/boards/.
        memory_bytes: The container's limit: with the engine's /sys out of sight, programs read it here.

    Returns:
        What to mount, by its path on the device.

    Raises:
        TargetError: There is no such board.
        OutputError: A file cannot be written.
    """
    shutil.rmtree(access.tree, ignore_errors=True)
    files = read_board(board)
    limit = str(memory_bytes)
    files |= {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": limit,
        "/sys/fs/cgroup/memory.max": limit,
    }
    mounts = {"/sys": access.tree / "sys"}
    for path, contents in files.items():
        end = "\0" if "/devicetree/" in path else "\n"
        file = access.tree / path.lstrip("/")
        write_whole(file, (contents.rstrip("\n") + end).encode())
        if not path.startswith("/sys/"):
            mounts[path] = file
    return mounts


def pin(access: Access, target: str, port: int, host_key: str) -> None:
    """Writes known_hosts and an ssh_config for the device.

    Args:
        access: The device's folder.
        target: Name of the target, which becomes the name of the host.
        port: Of the device's sshd on 127.0.0.1.
        host_key: Its public host key, as `ssh-keygen` writes it.

    Raises:
        OutputError: A file cannot be written.
    """
    algorithm, base64, *_ = host_key.split()
    write_whole(access.known_hosts, f"[127.0.0.1]:{port} {algorithm} {base64}\n".encode())
    lines = [
        f"Host {target}",
        "    HostName 127.0.0.1",
        f"    Port {port}",
        f"    User {USER}",
        f'    IdentityFile "{access.identity}"',
        "    IdentitiesOnly yes",
        f'    UserKnownHostsFile "{access.known_hosts}"',
        "    StrictHostKeyChecking yes",
    ]
    write_whole(access.config, "\n".join([*lines, ""]).encode())


def forget(access: Access) -> None:
    """Removes everything of a device that is no more."""
    shutil.rmtree(access.folder, ignore_errors=True)
