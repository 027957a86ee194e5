"""Folders of images as data."""

import numpy as np
import pytest
from PIL import Image

from edgepipe import errors, events
from edgepipe.data import load_data
from edgepipe.model import TensorSpec
from edgepipe.preprocess import Preprocessing

SPEC = TensorSpec("input", "float32", (None, 3, 8, 8))
PLAIN = Preprocessing(resize=8, crop=8)


def picture(path, seed, size=(10, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(["2/a.png", "2/b.jpg", "10/c.png", "0/d.JPG"]):
        picture(tmp_path / "photos" / name, seed)
    (tmp_path / "photos/2/readme.txt").write_text("not an image")
    (tmp_path / "photos/.cache").mkdir()
    return tmp_path / "photos"


def load(folder, **options):
    return load_data(folder, **{"spec": SPEC, "preprocessing": PLAIN, **options})


def test_folder_numbers_are_classes_and_files_are_in_order(folder):
    data = load(folder, classes=11)
    assert data.y.tolist() == [0, 10, 2, 2]
    assert data.x.shape == (4, 3, 8, 8)
    names = ["0/d.JPG", "10/c.png", "2/a.png", "2/b.jpg"]
    for sample, name in zip(data.x, names, strict=True):
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(sample, PLAIN.apply(image))


def test_named_folders_are_numbered_in_sorted_order(tmp_path):
    for seed, name in enumerate(["dog/1.png", "cat/2.png", "7/3.png"]):
        picture(tmp_path / name, seed)
    assert load(tmp_path).y.tolist() == [0, 1, 2]  # 7, cat, dog


def test_images_without_class_folders_have_no_labels(tmp_path):
    picture(tmp_path / "a.png", 0)
    assert load(tmp_path).y is None


def test_limit_decodes_no_more_than_it_takes(folder):
    (folder / "2/broken.jpg").write_bytes(b"no image")
    seen = []
    for seed in range(6):
        try:
            data = load(folder, limit=2, seed=seed, emit=seen.append)
        except errors.DataUnreadable:
            continue  # this seed chose the broken one
        assert len(data) == 2
        totals = [event.total for event in seen if isinstance(event, events.StageStarted)]
        assert set(totals) == {2}
    assert seen


def test_progress_reaches_its_total(folder):
    seen = []
    load(folder, emit=seen.append)
    assert [event.done for event in seen if isinstance(event, events.StageAdvanced)] == [1, 2, 3, 4]


@pytest.mark.parametrize("contents", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 cut"])
def test_damaged_image(folder, contents):
    (folder / "2/z.png").write_bytes(contents)
    with pytest.raises(errors.DataUnreadable, match=r"z\.png"):
        load(folder)


def test_truncated_image(folder):
    path = folder / "2/b.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(errors.DataUnreadable, match=r"b\.jpg"):
        load(folder)


def test_empty_folder(tmp_path):
    (tmp_path / "class").mkdir()
    with pytest.raises(errors.DataEmpty, match="1 folders"):
        load(tmp_path)


def test_without_preprocessing(folder):
    with pytest.raises(errors.ProjectError, match=r"\[preprocessing\]"):
        load(folder, preprocessing=None)


def test_class_beyond_the_model(folder):
    with pytest.raises(errors.LabelsOutOfRange, match="1 of 3 folders, for a model of 10 classes"):
        load(folder, classes=10)


def test_image_smaller_than_the_crop(folder):
    with pytest.raises(errors.DataShapeMismatch, match="10x9 is smaller than the crop of 16"):
        load(folder, preprocessing=Preprocessing(crop=16))


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(resize=8, crop=8, layout="NHWC"), Preprocessing(), Preprocessing(crop=8, color="gray")],
)
def test_preprocessing_that_does_not_fit_the_model(folder, preprocessing):
    with pytest.raises(errors.DataShapeMismatch, match=r"the model takes input float32 \[\?, 3, 8, 8\]"):
        load(folder, preprocessing=preprocessing)


def test_images_for_an_integer_input(folder):
    with pytest.raises(errors.DataTypeMismatch):
        load(folder, spec=TensorSpec("input", "uint8", (None, 3, 8, 8)))


def test_more_images_than_memory(folder, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    with pytest.raises(errors.DataError, match="--limit 1"):
        load(folder)
