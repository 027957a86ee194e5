"""Files of the device: digests for resumable uploads, free room, removal below the agent's root."""

import hashlib
import os
import shutil

from device_agent.failures import BadRequest
from device_agent.protocol import FileDigest, FreeSpace, Removed

_BLOCK_BYTES = 1 << 20


def resolve(root: str, path: str) -> str:
    """Absolute form of a path: relative ones start from the root, "~" is the user's home."""
    return os.path.normpath(os.path.join(root, os.path.expanduser(path)))


def digest_file(root: str, path: str) -> FileDigest:
    """Size and sha256 of a file.

    Raises:
        OSError: It is there but cannot be read.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    try:
        with open(resolve(root, path), "rb") as file:
            for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
                digest.update(block)
                size_bytes += len(block)
    except (FileNotFoundError, NotADirectoryError):
        return FileDigest(path, None, None)
    return FileDigest(path, size_bytes, digest.hexdigest())


def free_space(root: str, path: str) -> FreeSpace:
    """Room on the file system that holds `path`, or that would hold it."""
    absolute = resolve(root, path)
    while not os.path.exists(absolute) and absolute != os.path.dirname(absolute):
        absolute = os.path.dirname(absolute)
    usage = os.statvfs(absolute)
    return FreeSpace(path, usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize)


def remove(root: str, path: str) -> Removed:
    """Removes a file, a link or a whole folder below the root.

    Raises:
        BadRequest: The path is the root, or outside of it.
        OSError: It cannot be removed.
    """
    absolute = resolve(root, path)
    # The link itself is what is removed, so only the folder that holds it must be real.
    real = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    if not real.startswith(os.path.realpath(root) + os.sep):
        raise BadRequest("{!r} is not below the agent's root {}".format(path, root))
    if not os.path.lexists(real):
        return Removed(path, False)
    if os.path.isdir(real) and not os.path.islink(real):
        shutil.rmtree(real)
    else:
        os.remove(real)
    return Removed(path, True)
