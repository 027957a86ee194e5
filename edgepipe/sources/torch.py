"""PyTorch: a factory in a Python file with optional weights, or a .pt2 of torch.export."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from edgepipe.errors import MissingExtra, ModelError, ModelUnreadable, UnsupportedOp
from edgepipe.events import Emit, Warned, stage
from edgepipe.sources.batch import settle_batch
from edgepipe.sources.factory import blaming, make_module, require_one_input, user_code
from edgepipe.sources.fidelity import Trial
from edgepipe.sources.graph import OPSET, first_line, freeze, tidy_converted
from edgepipe.sources.naming import name_after_modules
from edgepipe.sources.source import Kind, Request, Source

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch
    from numpy.typing import NDArray

    Run = Callable[..., Any]


def load_factory(request: Request) -> Source:
    """Loads ``file.py:factory``, which is executed, with the weights given.

    Raises:
        MissingExtra: torch is not installed.
        ModelNotFound: no such factory, or no such weights.
        ModelUnreadable: the code raised, or the weights do not fit.
        ModelError: no input shape is known, or the exporter failed.
        UnsupportedOp: an operator that has no ONNX form.
        FidelityError: the ONNX graph computes something else than the module.
    """
    require_torch()
    import torch

    with stage(request.emit, "export torch to ONNX") as running, user_code(request.path), _quiet():
        module = make_module(request)
        require_one_input(module, request)
        example = _example(request)
        remedy = (
            f"the module was called with {list(example[:1].shape)}; "
            "set --input-shape, or the data, to what it takes"
        )
        with torch.no_grad(), blaming(request.path, "in forward()", remedy):
            outputs = _tensors(module(example[:1]))
        proto = _export_module(module, example, len(outputs), request.emit)
        source = _finish(proto, module, request, "torch")
        running.detail = str(source.fidelity)
    return source


def load_exported(request: Request) -> Source:
    """Loads a .pt2 that torch.export.save wrote.

    Raises:
        MissingExtra: torch is not installed.
        ModelUnreadable: not such a file, or a corrupt one.
        ModelError: the exporter failed.
        UnsupportedOp: an operator that has no ONNX form.
        FidelityError: the ONNX graph computes something else than the program.
    """
    require_torch()
    import torch

    with stage(request.emit, "convert .pt2 to ONNX") as running, _quiet():
        try:
            program = torch.export.load(request.path)
        except Exception as error:  # torch raises whatever its unpickler stumbles on
            raise ModelUnreadable(
                "the file is not a program of torch.export, or a corrupt one",
                where=str(request.path),
                got=f"{type(error).__name__}: {first_line(error)}",
                remedy="save it with torch.export.save(torch.export.export(module, (example,)), path), "
                f"in a torch no newer than {torch.__version__}",
            ) from error
        proto = _export(program, (), {})
        source = _finish(proto, program.module(), request, "torch-export")
        running.detail = str(source.fidelity)
    return source


def require_torch() -> None:
    """Raises MissingExtra, with the command that installs it, where torch is absent."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra(
            "reading a PyTorch model needs torch",
            got="torch is not installed",
            remedy="pip install 'edgepipe[torch]'",
        )


def _example(request: Request) -> torch.Tensor:
    """Two samples, since an example of one makes torch.export fix the batch at one."""
    import torch

    shape = request.input_shape
    if shape is None and request.sample is not None:
        shape = request.sample.shape
    if shape is None:
        raise ModelError(
            "the shape of the model's input is not known",
            where=request.origin,
            got="torch code does not say what it takes",
            remedy="give it, batch first: --input-shape 1,3,224,224; or give --data",
        )
    generator = torch.Generator().manual_seed(request.seed)
    return torch.randn((2, *shape[1:]), generator=generator)


def _export_module(
    module: torch.nn.Module, example: torch.Tensor, outputs: int, emit: Emit
) -> onnx.ModelProto:
    import torch
    from torch.onnx import OnnxExporterError

    names = ["output"] if outputs == 1 else [f"output{number}" for number in range(outputs)]
    free = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "output_names": names}
    try:
        return _export(module, (example,), free)
    except ModelError as error:
        # Only the tracing of the module can depend on the batch, and a failure there is of this class
        if not isinstance(error.__cause__, OnnxExporterError) or "step 1/3" not in str(error.__cause__):
            raise
    proto = _export(module, (example[:1],), {"output_names": names})
    emit(Warned("the module takes one sample at a time only: its code fixes the batch size"))
    return proto


def _export(model: Any, example: tuple[torch.Tensor, ...], options: dict[str, Any]) -> onnx.ModelProto:
    import torch

    try:
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            **options,
        )
    except Exception as error:  # tracing runs the user's code, which may raise anything
        raise _explain(error) from error
    if program is None:
        raise ModelError("torch's ONNX exporter gave no graph")
    proto = program.model_proto
    name_after_modules(proto)
    return tidy_converted(proto)


def _explain(error: Exception) -> ModelError:
    """The exporter's reason without its advice to PyTorch's own developers."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    root = causes[-1]
    if any("No ONNX function found" in str(cause) for cause in causes):
        return UnsupportedOp(
            "an operator of the module has no ONNX form",
            got=first_line(root),
            remedy="replace it in the module by operators that ONNX has",
        )
    return ModelError(
        "torch cannot export the module to ONNX",
        got=f"{type(root).__name__}: {first_line(root)}",
        remedy="see that torch.export.export(module, (example,)) works, then give that as a .pt2",
    )


def _finish(proto: onnx.ModelProto, run: Run, request: Request, kind: Kind) -> Source:
    import torch

    shape = request.input_shape if kind == "torch-export" else None
    model, session = freeze(proto, request.path.stem, shape, request.origin)
    model, session = settle_batch(model, session, request.emit)
    trial = Trial(model.inputs, request)
    with torch.no_grad():
        reference = [_arrays(run(*map(torch.from_numpy, feed))) for feed in trial.feeds]
    fidelity = trial.judge(reference, session, by=f"torch {torch.__version__}")
    return Source(model=model, origin=request.origin, kind=kind, fidelity=fidelity)


def _tensors(result: Any) -> Sequence[torch.Tensor]:
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _arrays(result: Any) -> list[NDArray[np.generic]]:
    return [tensor.detach().cpu().numpy() for tensor in _tensors(result)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress, logs and warnings off the terminal; errors come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
