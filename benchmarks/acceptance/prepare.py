"""The four reference models with their data as .npz, in each model's own input layout and scale."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Case(NamedTuple):
    """One model of the acceptance run.

    Attributes:
        name: For the table.
        arguments: What `edgepipe deploy` gets besides target and data.
        data: Makes x and y.
        accuracy_drop: Points of accuracy that INT8 may lose.
        agreement: Least top-1 agreement of INT8 with float.
        agreement_of_artifacts: Least top-1 agreement of the TFLite with the ONNX artifact.
    """

    name: str
    arguments: list[str]
    data: Callable[[], tuple[NDArray[np.float32], NDArray[np.int64]]]
    accuracy_drop: float = 1.0
    agreement: float = 0.97
    agreement_of_artifacts: float = 0.99


def cases(root: Path) -> list[Case]:
    """The cases that `root`, laid out as the README beside this file says, holds the files for."""
    here = Path(__file__).parent
    return [
        Case(
            "DS-CNN keyword spotting", [str(root / "kws_ref_model_float32.tflite")], lambda: _keywords(root)
        ),
        Case(
            "MobileNetV1-0.25", [str(root / "mobilenet_v1_0.25_224_float.tflite")],
            lambda: _photos(root, lambda x: x / 127.5 - 1, channels_first=False, background=1),
            accuracy_drop=2.0, agreement=0.85, agreement_of_artifacts=0.96,
        ),
        Case(
            "EfficientNet-Lite0", [str(root / "efficientnet_lite0_fp32.onnx")],
            lambda: _photos(root, lambda x: (x / 255 - 0.498) / 0.502, channels_first=True, background=0),
        ),
        Case(
            "ResNet-20", [f"{here / 'resnet20.py'}:build", "--weights", str(root / "resnet20-12fca82f.th")],
            lambda: _cifar(root),
        ),
    ]  # fmt: skip


def _keywords(root: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    stored = np.load(root / "mlperf_kws01_1000.npz")
    x = (stored["x_int8"].astype(np.float32) - stored["zero_point"]) * np.float32(stored["scale"])
    return x.reshape(len(x), 49, 10, 1).astype(np.float32), stored["y"].astype(np.int64)


def _photos(
    root: Path,
    scale: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    channels_first: bool,
    background: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    paths = sorted((root / "imagenet500").glob("*/*.jpg"))
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        images.append(scale(pixels).astype(np.float32))
    x = np.stack(images)
    y = np.array([int(path.parent.name) + background for path in paths], np.int64)
    return (x.transpose(0, 3, 1, 2) if channels_first else x), y


def _cifar(root: Path, samples: int = 2500) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    stored = np.load(root / "cifar10_test_jpeg_10k.npz")
    jpeg, offsets = stored["jpeg"], stored["offsets"]
    raw = [
        np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
        for i in range(samples)
    ]
    x = np.stack(raw).astype(np.float32) / 255
    x = (x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return x.transpose(0, 3, 1, 2).astype(np.float32), stored["y"][:samples].astype(np.int64)
