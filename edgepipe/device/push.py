"""Bringing a bundle to a device: the artifacts that shall run there, with their golden samples."""

from __future__ import annotations

from collections.abc import Collection

from edgepipe.bundle import Bundle
from edgepipe.device.transport import Transport
from edgepipe.device.upload import ROOT, Upload, put
from edgepipe.events import Emit, silent, stage
from edgepipe.units import format_bytes


def push(
    transport: Transport,
    bundle: Bundle,
    *,
    artifacts: Collection[str] | None = None,
    emit: Emit = silent,
) -> str:
    """Uploads a bundle's files into a folder that its digest names; what is there already stays.

    Args:
        transport: The way to the device.
        bundle: What to bring.
        artifacts: Names of those that shall run there; None brings all.
        emit: Told of the progress, in bytes.

    Returns:
        The folder on the device, relative to the agent's root: "bundles/3f2a...".

    Raises:
        BundleError: The bundle has no artifact of that name, or a file of it was altered.
        DeviceError: As `edgepipe.device.upload.put` says.
    """
    folder = f"bundles/{bundle.digest[:12]}"
    names = [one.name for one in bundle.manifest.artifacts] if artifacts is None else list(artifacts)
    uploads = [upload for name in names for upload in _uploads(bundle, name, folder)]
    total_bytes = sum(upload.size_bytes for upload in uploads)
    with stage(emit, "push", total_bytes) as pushing:
        sent_bytes = put(transport, uploads, progress=pushing.advance)
        pushing.detail = f"{format_bytes(sent_bytes)} sent" if sent_bytes else "already there"
    return folder


def _uploads(bundle: Bundle, name: str, folder: str) -> list[Upload]:
    artifact = bundle.artifact(name)
    digests = {artifact.name: artifact.digest}
    for golden in artifact.golden:
        digests |= golden.digests
    return [
        Upload(
            source=(data := bundle.read(file)),
            remote=f"{ROOT}/{folder}/{file}",
            digest=digest,
            size_bytes=len(data),
        )
        for file, digest in digests.items()
    ]
