"""A trained network on photographs: what random weights cannot show."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from edgepipe.convert import ort, tflite
from edgepipe.graph.simplify import Simplify
from edgepipe.model import onnx_model
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session
from edgepipe.sources import load

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


def test_layerwise_rounding_keeps_a_keyword_network_at_four_bits(make_context):
    model, data = DATA / "kws_ref_model_float32.tflite", DATA / "mlperf_kws01_1000.npz"
    if not (model.exists() and data.exists()):
        pytest.skip(f"needs {model} and {data}")
    stored = np.load(data)
    x = (stored["x_int8"].astype(np.float32) - stored["zero_point"]) * np.float32(stored["scale"])
    keywords = x.reshape(len(x), 49, 10, 1).astype(np.float32)
    calibration, evaluation = keywords[::15][:64], keywords[7::15]
    context = make_context(calibration)
    simple = Simplify().apply(load(str(model)).model, context)
    exact = classify(ort.emit(simple, activation="uint8"), evaluation)
    sqnr_db = []
    for rounding in ("nearest", "gptq"):
        quantized = QuantizeStatic(weight_bits=4, rounding=rounding).apply(simple, context)
        found = infer_reference(quantized, evaluation)
        sqnr_db.append(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()))
    assert sqnr_db[1] > max(18, sqnr_db[0] + 6)
    assert (exact.argmax(1) == found.argmax(1)).mean() >= 0.94


def infer_reference(model, x):
    """What the QDQ graph says, without any integer kernel; one sample a call."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.payload, options)
    return np.concatenate([session.run(None, {model.inputs[0].name: one[None]})[0] for one in x])
