"""Whether a device computes what the host computed, before it is measured."""

from __future__ import annotations

import msgspec

from device_agent import protocol


class OutputDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How one output of the device differs from the host's, over all golden samples.

    Attributes:
        name: The port.
        elements: Elements compared.
        differing: Elements that are not bit-equal.
        worst_steps: Greatest difference in steps of the port's scale; None for a port without one.
        worst_absolute: Greatest absolute difference, in the port's own numbers.
        worst_relative: The same over the range of the expected output.
        worst_sample: The sample with the greatest difference.
        argmax_equal: Samples whose greatest element is at the same place.
        not_finite: Elements that are NaN or infinite where the host's are not.
    """

    name: str
    elements: int
    differing: int
    worst_steps: float | None
    worst_absolute: float
    worst_relative: float
    worst_sample: int
    argmax_equal: int
    not_finite: int


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What the device made of the golden samples.

    Attributes:
        ok: True where every output is within the tolerance and finite.
        samples: Samples compared.
        outputs: One for each output port.
        runtime_version: Version of the runtime that computed.
        providers: What it ran on.
        digests: sha256 of each raw output that it computed: for each sample, one for each port; empty in
            old runs.
    """

    ok: bool
    samples: int
    outputs: tuple[OutputDifference, ...]
    runtime_version: str
    providers: tuple[str, ...]
    digests: tuple[tuple[str, ...], ...] = ()


def verification_from_protocol(said: protocol.Verification) -> Verification:
    """The record of what the agent said."""
    return Verification(
        ok=said.ok,
        samples=said.samples,
        outputs=tuple(OutputDifference(**output._asdict()) for output in said.outputs),
        runtime_version=said.runtime_version,
        providers=said.providers,
        digests=said.digests,
    )
