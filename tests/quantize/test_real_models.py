"""A trained network on photographs: what random weights cannot show."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgepipe.convert import ort, tflite
from edgepipe.graph.simplify import Simplify
from edgepipe.model import onnx_model
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

DATA = Path(os.environ.get("EDGEPIPE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def photos():
    files = sorted((DATA / "imagenet500").glob("*/*.jpg"))[::9]
    if not files:
        pytest.skip(f"needs the photographs of {DATA}/imagenet500")
    crops = [np.asarray(Image.open(file).convert("RGB").crop((16, 16, 240, 240))) for file in files]
    return ((np.stack(crops) / 255 - 0.498) / 0.502).astype(np.float32).transpose(0, 3, 1, 2)


@pytest.fixture
def network():
    path = DATA / "efficientnet_lite0_fp32.onnx"
    if not path.exists():
        pytest.skip(f"needs {path}")
    return onnx_model(onnx.load(path), path.stem)


def classify(emission, x):
    session = open_session(emission.payload, emission.format)
    return infer(session, emission.inputs, emission.outputs, x)[0]


def test_efficientnet_lite0_keeps_its_answers(network, photos, make_context):
    calibration, evaluation = photos[::3], np.delete(photos, np.s_[::3], axis=0)
    context = make_context(calibration)
    simple = Simplify().apply(network, context)
    quantized = QuantizeStatic().apply(simple, context)
    exact = classify(ort.emit(simple, activation="uint8"), evaluation)
    found = classify(ort.emit(quantized, activation="uint8"), evaluation)
    lite = classify(tflite.emit(quantized), evaluation)
    assert (exact.argmax(1) == found.argmax(1)).mean() >= 0.97
    assert (lite.argmax(1) == found.argmax(1)).mean() >= 0.97
    assert 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()) > 20
    assert 4 * len(quantized.payload) < 1.15 * len(network.payload)
