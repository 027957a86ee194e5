"""The user's own PyTorch code: imported from its folder, called, and given its weights.

Whatever that code raises comes back as one error that names the line of theirs.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgepipe.errors import MissingExtra, ModelNotFound, ModelUnreadable
from edgepipe.sources.graph import first_line
from edgepipe.sources.source import Request

if TYPE_CHECKING:
    from torch import nn

PRIVATE_NAME = "_edgepipe_source"
"""The name that the user's file is imported under, so that it hides no module and none hides it."""

NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the state_dict of a checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""


@contextmanager
def user_code(path: Path) -> Iterator[None]:
    """While this runs, the user's file can import its neighbours; afterwards no trace of them is left."""
    folder = str(path.resolve().parent)
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if name == PRIVATE_NAME or Path(file).parent == Path(folder):
                del sys.modules[name]


@contextmanager
def blaming(path: Path, doing: str, remedy: str = "") -> Iterator[None]:
    """Turns what the user's code raises into ModelUnreadable with the line of their file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ModelUnreadable(
            f"the model's Python code failed {doing}",
            where=_line(error, path),
            got=f"{type(error).__name__}: {first_line(error)}",
            remedy=remedy or "run the file with Python alone to see the whole traceback",
        ) from error


def make_module(request: Request) -> nn.Module:
    """Imports the file, calls the factory and loads the weights; the module is a copy in eval mode.

    Must run inside `user_code`.

    Raises:
        ModelNotFound: the file has no such factory, or the weights are missing.
        ModelUnreadable: the code raised, made no module, or the weights do not fit it.
    """
    import torch

    path = request.path
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)  # a factory without weights shall make the same model each time
        found = _find(_import(path), request)
        if isinstance(found, torch.nn.Module):
            made: Any = found
        else:
            with blaming(path, f"in {request.factory}()", "the factory must be callable without arguments"):
                made = found()
    if not isinstance(made, torch.nn.Module):
        raise ModelUnreadable(
            "the factory made no torch.nn.Module",
            where=f"{path}:{request.factory}",
            got=type(made).__name__,
            remedy="return the module itself, not its state_dict or its outputs",
        )
    module: nn.Module = copy.deepcopy(made)
    if request.weights is not None:
        _load_weights(module, request.weights)
    module.to("cpu").eval()
    return module


def require_one_input(module: nn.Module, request: Request) -> None:
    """Raises ModelUnreadable where `forward` cannot be called with one tensor."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    required = [
        parameter.name
        for parameter in parameters
        if parameter.kind in positional and parameter.default is inspect.Parameter.empty
    ]
    if len(required) > 1:
        raise ModelUnreadable(
            "the module takes more than one input",
            where=f"{request.path}:{request.factory}",
            got=f"forward({', '.join(required)})",
            remedy="export it with torch.export and give the .pt2, which holds the shape of every input",
        )


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(PRIVATE_NAME, path)
    if spec is None or spec.loader is None:
        raise ModelUnreadable("the file is not Python code", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[PRIVATE_NAME] = module
    with blaming(path, "while it was imported"):
        spec.loader.exec_module(module)
    return module


def _find(module: ModuleType, request: Request) -> Any:
    import torch

    found = getattr(module, request.factory, None)
    if callable(found) or isinstance(found, torch.nn.Module):
        return found
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == PRIVATE_NAME
    ]
    near = difflib.get_close_matches(request.factory, own, n=3) or own[:8]
    raise ModelNotFound(
        f"the file has no function or class `{request.factory}`",
        where=str(request.path),
        got="" if found is None else f"{request.factory} is a {type(found).__name__}",
        remedy=f"it has {', '.join(near)}" if near else "it defines no function and no class",
    )


def _load_weights(module: nn.Module, path: Path) -> None:
    state = _plain(_read_checkpoint(path), path)
    own = module.state_dict()
    # Checkpoints from before torch 0.4.1 lack this counter, which inference does not read.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise ModelUnreadable(
            "the weights do not fit the module",
            where=str(path),
            got="; ".join(problems),
            remedy="make the module that these weights were saved from",
        )
    module.load_state_dict(state, strict=False)  # what may be missing was just decided


def _read_checkpoint(path: Path) -> Any:
    import pickle

    import torch

    if not path.is_file():
        raise ModelNotFound("there is no such checkpoint", where=str(path), remedy="check --weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnreadable(
            "the checkpoint holds more than weights, or is no checkpoint",
            where=str(path),
            got=first_line(error),
            remedy="save torch.save(module.state_dict(), path): edgepipe opens no pickled code",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ModelUnreadable(
            "the checkpoint cannot be read; it may be corrupt",
            where=str(path),
            got=first_line(error),
            remedy="copy it again, or save it again with torch.save",
        ) from error


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtra(
            "reading .safetensors needs a package that is not installed",
            where=str(path),
            got="no module safetensors",
            remedy="pip install safetensors",
        ) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelUnreadable(
            "the checkpoint cannot be read; it may be corrupt", where=str(path), got=first_line(error)
        ) from error


def _plain(checkpoint: Any, path: Path) -> dict[str, Any]:
    """The state_dict inside a checkpoint, without the prefixes that wrappers add."""
    import torch

    state = checkpoint
    for key in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = isinstance(state, Mapping) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not tensors or not state:
        raise ModelUnreadable(
            "the checkpoint holds no state_dict",
            where=str(path),
            got=f"keys {', '.join(map(str, list(state)[:6]))}"
            if isinstance(state, Mapping)
            else type(state).__name__,
            remedy="save torch.save(module.state_dict(), path)",
        )
    plain = {str(key): value for key, value in state.items()}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in plain):
            plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    return plain


def _line(error: BaseException, path: Path) -> str:
    """The innermost line of the user's folder that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    folder = path.resolve().parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve().parent == folder
    ]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(path)
