"""ONNX files: read with their external data, upgraded where old, float32 whatever the precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.errors import ModelUnreadable
from edgepipe.events import stage
from edgepipe.graph.edit import quantizes_activations
from edgepipe.graph.opset import standard_opset
from edgepipe.model import Model
from edgepipe.sources.batch import settle_batch
from edgepipe.sources.fidelity import Trial, run_onnx
from edgepipe.sources.graph import OPSET, check_valid, first_line, freeze
from edgepipe.sources.precision import compare_original, to_float32
from edgepipe.sources.source import Fidelity, Request, Source

if TYPE_CHECKING:
    import onnx

    from edgepipe.runtime import Session

LARGEST_BYTES = 2**31 - 1
"""Protocol buffers end here."""


def load_onnx(request: Request) -> Source:
    """Loads an .onnx file, float or QDQ.

    Raises:
        ModelUnreadable: not an ONNX model, a corrupt one, or external data that is missing.
        ModelError: unknown input sizes, or an opset that cannot be upgraded.
        FidelityError: upgrading the opset, or taking float32 throughout, changed what the model computes.
    """
    where = str(request.path)
    with stage(request.emit, "load ONNX") as running:
        proto = _read(request)
        check_valid(proto, where)
        opset = standard_opset(proto)
        single = _copy(proto)
        precision = to_float32(single)
        model, session = freeze(single, request.path.stem, request.input_shape, where, checked=not precision)
        upgraded = standard_opset(model.to_onnx()) != opset
        fidelity = None
        if precision:
            fidelity = compare_original(proto, model, session, request)
        elif upgraded:
            fidelity = _compare_upgrade(proto, model, session, request)
        model, _ = settle_batch(model, session, request.emit)
        parts = ["QDQ model, taken as it is" if quantizes_activations(proto.graph) else f"opset {opset}"]
        if upgraded:
            parts.append(f"upgraded to {OPSET}")
        if precision:
            parts.append(f"{precision} made float32")
        running.detail = "; ".join(filter(None, [", ".join(parts), str(fidelity or "")]))
    return Source(model=model, origin=request.origin, kind="onnx", fidelity=fidelity)


def _read(request: Request) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(request.path)
    except DecodeError as error:
        raise ModelUnreadable(
            "the file is not an ONNX model, or a corrupt one",
            where=str(request.path),
            got=f"{request.path.stat().st_size} bytes that are no protocol buffer",
            remedy="export the model again, or copy it again and compare the sizes",
        ) from error
    except (FileNotFoundError, onnx.checker.ValidationError, ValueError) as error:
        raise ModelUnreadable(
            "the model's external data cannot be read",
            where=str(request.path),
            got=first_line(error),
            remedy="put the .data file that was exported with the model beside it",
        ) from error
    except OSError as error:
        raise ModelUnreadable(
            "the file cannot be read", where=str(request.path), got=first_line(error)
        ) from error
    if proto.ByteSize() > LARGEST_BYTES:
        raise ModelUnreadable(
            "the model is too large for an ONNX file without external data",
            where=str(request.path),
            got=f"{proto.ByteSize()} bytes",
            remedy="edgepipe handles models up to 2 GiB",
        )
    for tensor in proto.graph.initializer:
        tensor.ClearField("data_location")  # where its data lay before is no part of the model
    return proto


def _compare_upgrade(proto: onnx.ModelProto, model: Model, session: Session, request: Request) -> Fidelity:
    import onnxruntime

    trial = Trial(model.inputs, request)
    reference = run_onnx(proto.SerializeToString(), trial.feeds)
    by = f"ONNX Runtime {onnxruntime.__version__} at opset {standard_opset(proto)}"
    return trial.judge(reference, session, by=by)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = proto.__class__()
    copy.CopyFrom(proto)
    return copy
