"""Inference runtimes that are installed, found by their files: importing them takes seconds."""

import importlib.util
import os
import re
import subprocess
import sys
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from device_agent.records import RuntimeFacts

_IMPORT_TIMEOUT_S = 120
_IMPORT_POLL_S = 0.1


class _Kind(NamedTuple):
    runtime: str
    module: str
    probe: str
    distributions: Tuple[str, ...]


_KINDS = (
    _Kind(
        "onnxruntime",
        "onnxruntime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime_gpu", "onnxruntime_training", "onnxruntime_openvino"),
    ),
    _Kind(
        "litert", "ai_edge_litert", "ai_edge_litert.interpreter", ("ai_edge_litert", "ai_edge_litert_nightly")
    ),
    _Kind("tflite-runtime", "tflite_runtime", "tflite_runtime.interpreter", ("tflite_runtime",)),
)


def installed_runtimes(import_them: bool, beat: Callable[[], object]) -> Tuple[RuntimeFacts, ...]:
    """Every runtime that this interpreter could import.

    Args:
        import_them: Also try that, each in a process of its own.
        beat: Called several times a second while an import runs; may raise to end it.
    """
    found = []
    for kind in _KINDS:
        if not _is_importable(kind.module):
            continue
        package, version = find_distribution(kind.distributions, sys.path)
        imports, note = _try_import(kind.probe, beat) if import_them else (None, "")
        found.append(RuntimeFacts(kind.runtime, package or kind.module, version, imports, note))
    return tuple(found)


def numpy_version() -> Optional[str]:
    """NumPy's version; None where it is missing, "" where its files do not tell."""
    return find_distribution(("numpy",), sys.path)[1] if _is_importable("numpy") else None


def find_distribution(names: Sequence[str], folders: Sequence[str]) -> Tuple[str, str]:
    """Name and version of the first distribution found, from names such as ``numpy-1.19.5.dist-info``."""
    wanted = {_normal(name): name for name in names}
    for folder in folders:
        for entry in _entries(folder or "."):
            match = re.match(r"^(.+?)-(\d[^-]*)(?:-py[0-9.]+)?\.(?:dist|egg)-info$", entry)
            if match and _normal(match.group(1)) in wanted:
                return wanted[_normal(match.group(1))].replace("_", "-"), match.group(2)
    return "", ""


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _entries(folder: str) -> List[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # a zip file, or a folder of sys.path that does not exist
        return []


def _try_import(module: str, beat: Callable[[], object]) -> Tuple[bool, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import " + module],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        log = _read_to_end(process, beat)
    finally:
        process.kill()
        process.wait()
    if log is None:
        return False, "the import took more than {} s".format(_IMPORT_TIMEOUT_S)
    if process.returncode == 0:
        return True, ""
    lines = log.decode("utf-8", "replace").strip().splitlines()
    return False, lines[-1] if lines else "the import ended with status {}".format(process.returncode)


def _read_to_end(process: "subprocess.Popen[bytes]", beat: Callable[[], object]) -> Optional[bytes]:
    for _ in range(int(_IMPORT_TIMEOUT_S / _IMPORT_POLL_S)):
        try:
            return process.communicate(timeout=_IMPORT_POLL_S)[1]
        except subprocess.TimeoutExpired:
            beat()
    return None
