"""Golden samples: real inputs with the outputs that the host computed, for a device to reproduce.

A runtime that loads a model may still compute something else (an emulated CPU without the right
features, a kernel bug of an old version); so no device is measured before it reproduces these.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from edgepipe.bundle import Artifact, Golden
from edgepipe.convert.emission import Emission
from edgepipe.errors import DataEmpty, ModelError
from edgepipe.model import digest_bytes
from edgepipe.runtime import Session, open_session, to_port

SAMPLES = 4
"""Golden samples of each artifact: enough to show a wrong kernel, small to send."""

SealedArtifact = tuple[Artifact, dict[str, bytes]]


def seal(emission: Emission, x: NDArray[Any]) -> SealedArtifact:
    """Names and digests an emission, with golden samples made from the first samples of `x`.

    Args:
        emission: What an emitter gave; it has one input port.
        x: Real samples in the source's layout: float32 [n, ...].

    Returns:
        The artifact's record, and its files by path below the bundle: the payload and the golden tensors.

    Raises:
        DataEmpty: `x` holds no sample.
        ModelUnreadable: The host's runtime does not accept the payload.
        ModelError: It failed on a sample, or the model has more than one input.
    """
    if not len(x):
        raise DataEmpty("golden samples need at least one real sample", where=emission.name)
    golden, files = make_golden(emission, x[:SAMPLES], open_session(emission.payload, emission.format))
    artifact = Artifact(
        name=emission.name,
        format=emission.format,
        precision=emission.precision,
        digest=digest_bytes(emission.payload),
        size_bytes=len(emission.payload),
        inputs=emission.inputs,
        outputs=emission.outputs,
        op_counts=emission.op_counts,
        needs=emission.needs,
        golden=golden,
    )
    return artifact, {emission.name: emission.payload, **files}


def make_golden(
    emission: Emission, x: NDArray[Any], session: Session
) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    """Runs every sample of `x` alone and keeps the raw tensors of all ports.

    Args:
        emission: The artifact; it has one input port.
        x: Samples in the source's layout: float32 [n, ...].
        session: The artifact, opened.

    Returns:
        A record for each sample, and the tensors by file: little-endian, C order.

    Raises:
        ModelError: The runtime failed on a sample, or the model has more than one input.
    """
    if len(emission.inputs) != 1:
        raise ModelError("golden samples feed one input, but the model has more", where=emission.name)
    records: list[Golden] = []
    files: dict[str, bytes] = {}
    for index in range(len(x)):
        inputs = [to_port(x[index : index + 1], emission.inputs[0])]
        stem = f"golden/{emission.name}/{index}"
        ins = {f"{stem}.input{i}.bin": _raw(tensor) for i, tensor in enumerate(inputs)}
        outs = {f"{stem}.output{i}.bin": _raw(tensor) for i, tensor in enumerate(session.run(inputs))}
        files |= ins | outs
        digests = {name: digest_bytes(data) for name, data in (ins | outs).items()}
        records.append(Golden(inputs=tuple(ins), outputs=tuple(outs), digests=digests))
    return tuple(records), files


def _raw(tensor: NDArray[Any]) -> bytes:
    return tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()
