"""What quantization did to each layer of a network: the records, and how they are read back."""

from __future__ import annotations

import msgspec

from edgepipe.bundle import DIAGNOSIS, Bundle
from edgepipe.errors import BundleError

SCHEMA = 1


class WeightDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The weight of a layer on its grid.

    Attributes:
        bits: Bits that its integers take.
        scales: How many scales it has: 1 for the whole tensor, or one for each output channel.
        low: Least weight, dequantized.
        high: Greatest weight, dequantized.
        channel_spread: Greatest magnitude of the widest output channel over that of the median channel.
        sqnr_db: SQNR of the rounded weight against the float one; None where they are equal, or the
            float weight is not known.
    """

    bits: int
    scales: int
    low: float
    high: float
    channel_spread: float
    sqnr_db: float | None


class ActivationDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What a layer puts out, on its grid.

    Attributes:
        bits: Bits of its integers.
        low: Least value that the float model gives on the samples.
        high: Greatest value likewise.
        grid_low: Least value on the grid.
        grid_high: Greatest value on the grid.
        clipped: Share of the float model's values that lie more than half a step beyond the grid.
    """

    bits: int
    low: float
    high: float
    grid_low: float
    grid_high: float
    clipped: float


class LayerDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: an op with its weight, the activation function after it, and the grid of what it puts out.

    SQNRs are None where the layer is exact, or where it puts out nothing but zeros.

    Attributes:
        name: As overrides of a recipe name it.
        op: Its ONNX type; "Input" for the model's input.
        tensor: What it puts out, by its name in the float model.
        readers: The layers that read that, as overrides name them.
        position: Its place in the order of computation, from 0.
        weight: None where the layer has no quantized weight.
        activation: None where its output stays in float.
        sqnr_db: SQNR of its output in the quantized model, against the float model: all error up to here.
        local_sqnr_db: Likewise where its inputs are those of the float model: what the layer itself adds.
        channel_sqnr_db: The latter in the median channel, which one channel of outliers does not lift.
    """

    name: str
    op: str
    tensor: str
    readers: tuple[str, ...]
    position: int
    weight: WeightDiagnosis | None
    activation: ActivationDiagnosis | None
    sqnr_db: float | None
    local_sqnr_db: float | None
    channel_sqnr_db: float | None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """A quantized model beside the float model that it was made from.

    Attributes:
        schema: Version of this record's form.
        samples: How many samples both computed.
        output_sqnr_db: SQNR of the model's outputs; None where they are exact.
        layers: In order of computation.
    """

    schema: int = SCHEMA
    samples: int
    output_sqnr_db: float | None
    layers: tuple[LayerDiagnosis, ...]


def encode(diagnosis: Diagnosis) -> bytes:
    """The diagnosis as JSON."""
    return msgspec.json.format(msgspec.json.encode(diagnosis), indent=1) + b"\n"


def decode(data: bytes, where: str) -> Diagnosis:
    """A diagnosis that `encode` wrote.

    Raises:
        BundleError: It is of a newer form, or malformed.
    """
    try:
        found = msgspec.json.decode(data, type=Diagnosis)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise BundleError(
            "the bundle's diagnosis is malformed", where=where, got=str(error), remedy="make the bundle again"
        ) from error
    if found.schema > SCHEMA:
        raise BundleError(
            "the diagnosis was made by a newer edgepipe",
            where=where,
            got=f"schema {found.schema}, this edgepipe knows {SCHEMA}",
            remedy="upgrade edgepipe, or make the bundle again",
        )
    return found


def diagnosis_of(bundle: Bundle) -> Diagnosis | None:
    """The diagnosis that a bundle holds; None for one of a float model, or made before there were any.

    Raises:
        BundleError: It was altered, or is of a newer form.
    """
    if bundle.manifest.diagnosis is None:
        return None
    return decode(bundle.read(DIAGNOSIS), str(bundle.folder / DIAGNOSIS))
