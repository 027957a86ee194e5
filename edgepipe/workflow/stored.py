"""Models that a bundle holds, read back."""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError

from edgepipe.bundle import Artifact, Bundle
from edgepipe.errors import BundleError, UsageError
from edgepipe.model import Model, onnx_model

FLOAT = "float32.onnx"


def stored_model(bundle: Bundle, artifact: Artifact) -> Model:
    """An ONNX artifact as a model.

    Raises:
        BundleError: It was altered, or is corrupt.
    """
    try:
        proto = onnx.load_from_string(bundle.read(artifact.name))
    except DecodeError as error:
        raise BundleError(
            "an artifact of the bundle is corrupt",
            where=str(bundle.folder / artifact.name),
            got=str(error),
            remedy="make the bundle again",
        ) from error
    return onnx_model(proto, bundle.manifest.model_name)


def float_reference(bundle: Bundle) -> Model:
    """The bundle's own float ONNX artifact.

    Raises:
        UsageError: It holds none.
        BundleError: It was altered, or is corrupt.
    """
    for artifact in bundle.manifest.artifacts:
        if artifact.name == FLOAT:
            return stored_model(bundle, artifact)
    raise UsageError(
        "the bundle holds no float ONNX artifact to compare with",
        where=str(bundle.folder),
        remedy="name the float model: --against MODEL",
    )
