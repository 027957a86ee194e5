"""What artifacts compute in several places, side by side."""

from __future__ import annotations

import msgspec

from edgepipe.measure.record import Kind


def steps(count: float) -> str:
    """``1 step``, ``14 steps``; of a float output, whose values are near a step, the nearest number."""
    return "1 step" if round(count) == 1 else f"{count:.0f} steps"


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """A place where artifacts ran.

    Attributes:
        name: How it was named: a target, a host; unique.
        description: How it calls itself.
        kind: Whether that is a real board.
        architecture: "x86_64", "aarch64", "armv7l".
        cpu: The processor's own name.
        emulation: What emulates it; "" for real hardware.
    """

    name: str
    description: str
    kind: Kind
    architecture: str
    cpu: str
    emulation: str


class LayerDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How one layer's output differs from the reference's, over all samples.

    Attributes:
        layer: The layer, as the artifact names it.
        op: What it is: "Conv", "CONV_2D"; "output" for an output of the model.
        elements: Elements compared.
        differing: Elements that are not bit-equal.
        worst_steps: Greatest difference in steps of its grid; None for floats.
        worst_relative: Greatest difference over the range of the reference's output.
    """

    layer: str
    op: str
    elements: int
    differing: int
    worst_steps: float | None
    worst_relative: float


class SiteOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """What one artifact computed at one site, against the reference.

    Attributes:
        artifact: The artifact.
        site: Name of the site.
        runtime: "onnxruntime", "litert" or "tflite-runtime".
        runtime_version: Its version there.
        providers: What it ran on.
        exact: True where all outputs are bit-equal to the reference's.
        samples: Samples compared.
        differing_samples: Samples with an output that is not bit-equal.
        elements: Elements compared.
        differing: Elements that are not bit-equal.
        worst_steps: Greatest difference of any output in steps of its grid; None where no output has one.
        worst_relative: Greatest difference of any output over its range.
        argmax_equal: Samples whose greatest element is at the same place in every output.
        not_finite: Elements that are NaN or infinite where the reference's are not.
        digests: sha256 of each output: for each sample, one for each port.
        reason: Why it did not run there; "" where it did.
        layers: Layer by layer, in the order of the work, the outputs last; empty where that was not asked.
        first_layer: The first layer that differs; "" where none does, or that was not asked.
        disturbed: True where returning the layers changes the outputs here, as a runtime fuses less: then
            all of this is told of that form.
    """

    artifact: str
    site: str
    runtime: str = ""
    runtime_version: str = ""
    providers: tuple[str, ...] = ()
    exact: bool = False
    samples: int = 0
    differing_samples: int = 0
    elements: int = 0
    differing: int = 0
    worst_steps: float | None = None
    worst_relative: float = 0.0
    argmax_equal: int = 0
    not_finite: int = 0
    digests: tuple[tuple[str, ...], ...] = ()
    reason: str = ""
    layers: tuple[LayerDifference, ...] = ()
    first_layer: str = ""
    disturbed: bool = False

    def __str__(self) -> str:
        """``exact``, ``2 steps at most on 3 of 16 samples``, or that it did not run."""
        if self.reason:
            return "did not run"
        if self.exact:
            return "exact"
        where = f"on {self.differing_samples} of {self.samples} samples"
        if self.not_finite:
            return f"not finite {where}"
        if self.worst_steps is None:
            return f"{self.worst_relative:.1e} of the range at most {where}"
        return f"{steps(self.worst_steps)} at most {where}"


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two sites that ran the same artifact.

    Attributes:
        artifact: The artifact.
        first: Name of one site.
        second: Name of the other.
        differing_samples: Samples on which they do not compute the same bits.
    """

    artifact: str
    first: str
    second: str
    differing_samples: int


class OutputsReport(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle's artifacts in several places.

    Attributes:
        model_name: Name of the source model.
        bundle_digest: sha256 of the bundle's manifest.
        samples: Samples that were run.
        source: Where they came from.
        reference: What all are compared with: this host, its processor and runtimes.
        sites: Where they ran.
        results: One for each artifact and site.
        pairs: Each two sites by what they computed.
    """

    model_name: str
    bundle_digest: str
    samples: int
    source: str
    reference: str
    sites: tuple[Site, ...]
    results: tuple[SiteOutputs, ...]
    pairs: tuple[Pair, ...]
