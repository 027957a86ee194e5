"""A bundle: the artifacts of one model for one target, with golden samples and a manifest.

On disk a folder::

    manifest.json
    float32.onnx  int8.onnx  float32.tflite  int8.tflite      the artifacts, as the target needs them
    golden/int8.tflite/0.input0.bin  0.output0.bin  ...       raw little-endian tensors, C order

A bundle is written whole or not at all, and its digest is that of its manifest, which holds the
digest of every other file.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgepipe.model import TensorSpec

ArtifactFormat = Literal["onnx", "tflite"]
Precision = Literal["float32", "float16", "int8"]
SCHEMA = 1


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of an artifact, and how it maps to that of the source model.

    Attributes:
        name: The tensor's name in the artifact.
        dtype: NumPy's name of its type.
        shape: Its dimensions, batch size 1.
        permutation: Axes of the source's tensor in the order of the artifact's:
            ``artifact_tensor = source_tensor.transpose(permutation)``.
        scale: Step of an integer port: ``real = (q - zero_point) * scale``; None for a float port.
        zero_point: The integer that stands for 0.0; 0 for a float port.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """One sample with the outputs that the host's runtime computed for it.

    Attributes:
        inputs: Files below the bundle, one for each input port.
        outputs: Likewise for each output port.
        digests: sha256 of every file named, by file.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    digests: dict[str, str]


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file that one family of runtimes can run.

    Attributes:
        name: Precision and format, unique in the bundle: "int8.tflite". Also the file's name.
        format: "onnx" or "tflite".
        precision: Of its weights and activations.
        digest: sha256 of the file.
        size_bytes: Its size.
        inputs: Input ports in the order of the runtime.
        outputs: Output ports likewise.
        op_counts: How often each op occurs: {"CONV_2D": 27, ...}.
        needs: Least version of each runtime that can run it, by runtime: {"onnxruntime": "1.15"}.
        golden: Samples that every device must reproduce before it is measured.
    """

    name: str
    format: ArtifactFormat
    precision: Precision
    digest: str
    size_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    op_counts: dict[str, int]
    needs: dict[str, str]
    golden: tuple[Golden, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass did.

    Attributes:
        use: The pass's name in the recipe: "quantize.static".
        settings: Its fields, defaults included.
        digest_in: sha256 of the model before.
        digest_out: sha256 of the model after.
        size_in_bytes: Size before.
        size_out_bytes: Size after.
        sqnr_db: SQNR of the outputs after against before, on calibration samples; None where unknown.
        seconds: Wall time.
        cached: True where the result came from the cache.
    """

    use: str
    settings: dict[str, object]
    digest_in: str
    digest_out: str
    size_in_bytes: int
    size_out_bytes: int
    sqnr_db: float | None
    seconds: float
    cached: bool = False


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The data that ranges were taken from."""

    source: str
    digest: str
    samples: int
    random: bool


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a bundle but the bytes of its files.

    Attributes:
        schema: Version of this record's form.
        edgepipe_version: What made it.
        model_name: Name of the source model.
        model_source: Where it came from, as the user named it.
        model_digest: sha256 of the float ONNX model that all artifacts derive from.
        inputs: Inputs of that model: the layout in which users give data.
        outputs: Outputs of that model.
        target: Name of the target.
        recipe: Name of the recipe.
        seed: Seed of everything random.
        calibration: None where the recipe needs no data.
        steps: What each pass did.
        artifacts: In order of precision, then format.
        versions: Version of every package that had a hand in it.
    """

    schema: int = SCHEMA
    edgepipe_version: str
    model_name: str
    model_source: str
    model_digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: str
    recipe: str
    seed: int
    calibration: Calibration | None
    steps: tuple[Step, ...]
    artifacts: tuple[Artifact, ...]
    versions: dict[str, str]
