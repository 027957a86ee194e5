"""Each step against NumPy by hand."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgepipe.preprocess import Preprocessing


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def test_default_is_rgb_in_0_to_1_channels_first(pixels):
    out = Preprocessing().apply(Image.fromarray(pixels))
    assert (out.dtype, out.shape) == (np.float32, (3, 6, 4))
    np.testing.assert_allclose(out, pixels.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_scale_mean_std_for_each_channel(pixels):
    step = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NHWC")
    want = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(step.apply(Image.fromarray(pixels)), want, rtol=1e-5, atol=1e-6)


def test_mobilenet_scaling(pixels):
    step = Preprocessing(scale=1 / 127.5, mean=(1.0,), layout="NHWC")
    out = step.apply(Image.fromarray(pixels))
    np.testing.assert_allclose(out, pixels / 127.5 - 1, rtol=1e-5, atol=1e-6)
    assert out.min() >= -1
    assert out.max() <= 1


def test_bgr_reverses_before_normalizing(pixels):
    out = Preprocessing(color="bgr", scale=1.0, mean=(1.0, 2.0, 3.0), layout="NHWC").apply(
        Image.fromarray(pixels)
    )
    np.testing.assert_array_equal(out, pixels[:, :, ::-1] - np.array([1, 2, 3], np.float32))


def test_gray_is_one_channel(pixels):
    out = Preprocessing(color="gray", scale=1.0).apply(Image.fromarray(pixels))
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow documents for "L"
    assert out.shape == (1, 6, 4)
    assert np.abs(out[0] - luma).max() <= 1


def test_transparency_and_palettes_become_rgb(pixels):
    rgba = np.dstack([pixels, np.full((6, 4), 7, np.uint8)])
    np.testing.assert_array_equal(
        Preprocessing().apply(Image.fromarray(rgba)), Preprocessing().apply(Image.fromarray(pixels))
    )
    assert Preprocessing().apply(Image.new("P", (5, 5))).shape == (3, 5, 5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_crop_is_centred(height, width, crop):
    rows = np.arange(height, dtype=np.uint8)[:, None] + np.zeros((1, width), np.uint8)
    columns = np.arange(width, dtype=np.uint8)[None, :] + np.zeros((height, 1), np.uint8)
    image = Image.fromarray(np.dstack([rows, columns, rows]))
    step = Preprocessing(crop=crop, scale=1.0)
    if crop > min(height, width):
        with pytest.raises(ValueError, match=f"smaller than the crop of {crop}"):
            step.apply(image)
        return
    out = step.apply(image)
    assert out.shape == (3, crop, crop)
    for channel, side in ((0, height), (1, width)):
        before, after = out[channel].min(), side - 1 - out[channel].max()
        assert abs(before - after) <= 1


@pytest.mark.parametrize(("size", "want"), [((40, 20), (20, 10)), ((20, 40), (10, 20)), ((33, 33), (10, 10))])
def test_resize_sets_the_shorter_side(size, want):
    out = Preprocessing(resize=10).apply(Image.new("RGB", size))
    assert out.shape == (3, want[1], want[0])


def test_nearest_upscaling_repeats_pixels(pixels):
    out = Preprocessing(resize=8, interpolation="nearest", scale=1.0, layout="NHWC").apply(
        Image.fromarray(pixels)
    )
    np.testing.assert_array_equal(out, pixels.repeat(2, axis=0).repeat(2, axis=1))


def test_input_image_is_left_alone(pixels):
    image = Image.fromarray(pixels)
    Preprocessing(resize=3, crop=2, color="bgr").apply(image)
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"mean": [0.5, 0.5]}, "1 or 3 numbers"),
        ({"color": "gray", "std": [1.0, 1.0, 1.0]}, "needs 1 numbers for gray, not 3"),
        ({"std": [0.0]}, "above 0"),
        ({"std": []}, "1 or 3 numbers"),
        ({"crop": 0}, ">= 1"),
        ({"color": "rbg"}, "rbg"),
        ({"layout": "HWC"}, "HWC"),
        ({"center_crop": 3}, "center_crop"),
    ],
)
def test_tables_that_make_no_sense(table, word):
    with pytest.raises(msgspec.ValidationError, match=word):
        msgspec.convert(table, Preprocessing)
