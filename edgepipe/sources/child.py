"""Conversions in a process of their own: their memory, log lines and imports end with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from edgepipe.errors import ModelError, ModelUnreadable, UnsupportedOp

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # converters walk sets: the same model shall give the same bytes
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "",
}
"""What a child process finds set besides the environment of its parent."""

UNSUPPORTED = re.compile(r"(?i)op\b.*not (supported|implemented)|unsupported op|no converter")


def run_child(module: str, arguments: Sequence[str], where: str) -> None:
    """Runs ``python -m module arguments`` to its end.

    The module ends with status 0, or prints one line of JSON, ``{"error": class, "message": text}``.

    Args:
        module: A module of this package.
        arguments: Its command line.
        where: The source, for messages.

    Raises:
        UnsupportedOp: the converter does not know an op.
        ModelUnreadable: the source's own framework cannot load it.
        ModelError: the converter failed, or the process died.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],  # -P: no file of the working folder hides a package
        capture_output=True,
        check=False,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise _explain(done, where)


def _explain(done: subprocess.CompletedProcess[bytes], where: str) -> ModelError:
    try:
        report = json.loads(done.stdout.decode(errors="replace").strip().splitlines()[-1])
        kind, message = str(report["error"]), str(report["message"]).strip()
    except (IndexError, ValueError, KeyError, TypeError):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return ModelError(
            "the converter's process died",
            where=where,
            got=f"exit status {done.returncode}; {lines[-1] if lines else 'no message'}",
            remedy="a negative status is a signal: -9 means out of memory",
        )
    first = message.splitlines()[0] if message else kind
    if kind == "Unreadable":
        return ModelUnreadable(
            "the model cannot be loaded",
            where=where,
            got=first,
            remedy="save it again with its own framework",
        )
    if UNSUPPORTED.search(message):
        return UnsupportedOp(
            "the model has an op that tf2onnx cannot convert",
            where=where,
            got=first,
            remedy="replace the op, or export the model to ONNX with its own framework",
        )
    return ModelError(
        "the model cannot be converted to ONNX",
        where=where,
        got=f"{kind}: {first}",
        remedy="export the model to ONNX with its own framework and give that file",
    )
