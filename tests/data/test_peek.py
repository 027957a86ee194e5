"""A first look at samples."""

import numpy as np
import pytest
from PIL import Image

from edgepipe import errors
from edgepipe.data.peek import peek
from edgepipe.preprocess import Preprocessing


def test_arrays(tmp_path):
    x = np.arange(20).reshape(10, 2)
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    for name in ("x.npz", "x.npy"):
        np.testing.assert_array_equal(peek(tmp_path / name, 3), x[:3])


def test_images(tmp_path):
    for name, size in (("a.png", (6, 4)), ("b.png", (6, 4)), ("c.png", (5, 5))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    assert peek(tmp_path, 2, preprocessing=Preprocessing()).shape == (2, 3, 4, 6)
    assert peek(tmp_path, 3, preprocessing=Preprocessing(crop=4)).shape == (3, 3, 4, 4)
    assert peek(tmp_path, 3, preprocessing=Preprocessing()) is None  # of different sizes
    assert peek(tmp_path, 3) is None


def test_nothing_to_look_at(tmp_path):
    (tmp_path / "x.csv").write_text("")
    for name in ("x.csv", "none.npz"):
        assert peek(tmp_path / name, 3) is None


def test_damaged_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(errors.DataUnreadable, match=r"a\.png"):
        peek(tmp_path, 3, preprocessing=Preprocessing())
