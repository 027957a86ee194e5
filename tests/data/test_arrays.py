"""Reading .npz and .npy: what is accepted, and one clear error for every way to get it wrong."""

import numpy as np
import pytest

from edgepipe import errors
from edgepipe.data import load_data
from edgepipe.model import TensorSpec

NCHW = TensorSpec("input", "float32", (None, 3, 4, 5))


@pytest.fixture
def samples():
    return np.random.default_rng(0).standard_normal((6, 3, 4, 5)).astype(np.float32)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        path = tmp_path / "val.npz"
        np.savez(path, **arrays)
        return path

    return save


def test_reads_samples_and_labels(samples, save):
    data = load_data(save(x=samples, y=np.arange(6, dtype=np.uint8)), spec=NCHW, classes=6)
    np.testing.assert_array_equal(data.x, samples)
    assert data.y.dtype == np.int64
    assert data.y.tolist() == list(range(6))
    assert (len(data), data.source, data.random) == (6, "val.npz", False)


def test_labels_are_optional_and_columns_are_flattened(samples, save):
    assert load_data(save(x=samples), spec=NCHW).y is None
    assert load_data(save(x=samples, y=np.ones((6, 1), int)), spec=NCHW).y.shape == (6,)


def test_digest_depends_on_contents_alone(samples, tmp_path):
    np.savez(tmp_path / "a.npz", x=samples)
    np.savez_compressed(tmp_path / "b.npz", x=samples, other=np.zeros(3))
    np.save(tmp_path / "c.npy", samples)
    np.savez(tmp_path / "d.npz", x=samples[::-1])
    np.savez(tmp_path / "e.npz", x=samples, y=np.zeros(6, int))
    digests = [load_data(tmp_path / name, spec=NCHW).digest for name in ("a.npz", "b.npz", "c.npy")]
    assert len(set(digests)) == 1
    others = [load_data(tmp_path / name, spec=NCHW).digest for name in ("d.npz", "e.npz")]
    assert len({*digests, *others}) == 3


def test_npy_stays_on_disk(samples, tmp_path):
    np.save(tmp_path / "x.npy", samples)
    assert isinstance(load_data(tmp_path / "x.npy", spec=NCHW).x, np.memmap)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_converted(samples, save, dtype):
    data = load_data(save(x=samples.astype(dtype)), spec=NCHW)
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, samples.astype(dtype).astype(np.float32))


def test_integers_are_converted_for_an_integer_input(save):
    spec = TensorSpec("tokens", "int64", (None, 4))
    data = load_data(save(x=np.arange(8, dtype=np.uint16).reshape(2, 4)), spec=spec)
    assert data.x.dtype == np.int64


def test_limit_takes_a_seeded_choice_in_order(samples, save):
    path = save(x=samples, y=np.arange(6))
    data = load_data(path, spec=NCHW, limit=3, seed=1)
    assert data.y.tolist() == sorted(data.y.tolist())
    assert len(data) == 3
    np.testing.assert_array_equal(data.x, samples[data.y])
    assert load_data(path, spec=NCHW, limit=3, seed=1).digest == data.digest
    assert load_data(path, spec=NCHW, limit=99).digest == load_data(path, spec=NCHW).digest


def refused(error, path, *words, **options):
    with pytest.raises(error) as caught:
        load_data(path, **{"spec": NCHW, **options})
    assert type(caught.value) is error
    assert caught.value.remedy
    text = str(caught.value)
    for word in words:
        assert word in text
    return text


def test_missing_file(tmp_path):
    refused(errors.DataNotFound, tmp_path / "none.npz", "none.npz")


def test_unknown_kind(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    refused(errors.DataUnreadable, tmp_path / "x.csv", ".csv")


@pytest.mark.parametrize("contents", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_not_a_data_file(tmp_path, contents, name):
    (tmp_path / name).write_bytes(contents)
    refused(errors.DataUnreadable, tmp_path / name, name)


def test_truncated_npz(samples, save, tmp_path):
    path = save(x=samples)
    path.write_bytes(path.read_bytes()[:-200])
    refused(errors.DataUnreadable, path)


def test_flipped_byte_in_npz(samples, save):
    path = save(x=samples)
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    path.write_bytes(contents)
    refused(errors.DataUnreadable, path, "CRC")


def test_truncated_npy(samples, tmp_path):
    np.save(tmp_path / "x.npy", samples)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    refused(errors.DataUnreadable, tmp_path / "x.npy")


def test_npy_named_npz(samples, tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, samples)
    refused(errors.DataUnreadable, tmp_path / "x.npz", ".npy")


def test_no_x(samples, save):
    refused(errors.DataUnreadable, save(images=samples, y=np.zeros(6)), "images, y", "x=samples")


@pytest.mark.parametrize("name", ["x", "y"])
def test_pickled_objects_are_refused(samples, tmp_path, name):
    path = tmp_path / "val.npz"
    arrays = {"x": samples, name: np.array([{}] * 6, dtype=object)}
    np.savez(path, **arrays)
    refused(errors.DataUnreadable, path, "pickled")


def test_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    refused(errors.DataUnreadable, tmp_path / "x.npy", "pickled")


@pytest.mark.parametrize("shape", [(), (0, 3, 4, 5)])
def test_empty(save, shape):
    refused(errors.DataEmpty, save(x=np.zeros(shape, np.float32)), str(list(shape)))


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((6, 4, 5, 3), "x.transpose(0, 3, 1, 2), NHWC to NCHW"),
        ((6, 3, 5, 4), "x.transpose(0, 1, 3, 2)"),
        ((3, 4, 5), "x[np.newaxis]"),
        ((6, 60), "x.reshape(-1, 3, 4, 5)"),
        ((6, 3, 8, 8), "layout and size"),
        ((6, 2), "layout and size"),
    ],
)
def test_wrong_shape(save, shape, hint):
    refused(errors.DataShapeMismatch, save(x=np.zeros(shape, np.float32)), str(list(shape)), hint)


def test_wrong_shape_for_channels_last(save):
    spec = TensorSpec("input", "float32", (None, 4, 5, 3))
    refused(errors.DataShapeMismatch, save(x=np.zeros((6, 3, 4, 5), np.float32)), "NCHW to NHWC", spec=spec)


def test_missing_channel_axis(save):
    spec = TensorSpec("input", "float32", (None, 1, 8, 8))
    path = save(x=np.zeros((6, 8, 8), np.float32))
    refused(errors.DataShapeMismatch, path, "np.expand_dims(x, 1)", spec=spec)


def test_integer_samples_for_a_float_input(save):
    path = save(x=np.full((6, 3, 4, 5), 255, np.uint8))
    refused(errors.DataTypeMismatch, path, "uint8", "255", "/ 255")


def test_float_samples_for_an_integer_input(samples, save):
    spec = TensorSpec("input", "int8", (None, 3, 4, 5))
    refused(errors.DataTypeMismatch, save(x=samples), "int8", spec=spec)


def test_integers_that_do_not_fit(save):
    spec = TensorSpec("input", "uint8", (None, 2))
    refused(errors.DataTypeMismatch, save(x=np.array([[0, 300]])), "300", "0 to 255", spec=spec)


@pytest.mark.parametrize("dtype", ["<U3", np.bool_, np.complex64])
def test_not_numbers(save, dtype):
    refused(errors.DataTypeMismatch, save(x=np.zeros((6, 3, 4, 5), dtype)), "not numbers")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_not_finite(samples, save, value, dtype):
    x = samples.astype(dtype)
    x[4, 1, 2, 3] = value
    refused(errors.DataNotFinite, save(x=x), "sample 4", str(value))


def test_float64_that_overflows(samples, save):
    x = samples.astype(np.float64)
    x[2, 0, 0, 0] = 1e300
    refused(errors.DataNotFinite, save(x=x), "sample 2", "as float32")


def test_not_finite_far_into_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr("edgepipe.data.dataset.CHUNK_BYTES", 1000)
    x = np.zeros((100, 3, 4, 5), np.float32)
    x[97, 2, 3, 4] = np.nan
    np.save(tmp_path / "x.npy", x)
    refused(errors.DataNotFinite, tmp_path / "x.npy", "sample 97")


@pytest.mark.parametrize(
    ("labels", "error", "word"),
    [
        (np.arange(5), errors.DataShapeMismatch, "[5] for 6 samples"),
        (np.zeros((6, 2), int), errors.DataShapeMismatch, "argmax"),
        (np.zeros((6, 1, 1), int), errors.DataShapeMismatch, "one label"),
        (np.array(3), errors.DataShapeMismatch, "one label"),
        (np.zeros(6, np.float32), errors.DataTypeMismatch, "float32"),
        (np.zeros(6, bool), errors.DataTypeMismatch, "bool"),
        (np.array(list("abcdef")), errors.DataTypeMismatch, "<U1"),
        (np.array([0, 1, 2, -1, 0, 0]), errors.LabelsOutOfRange, "label -1 at sample 3"),
        (np.array([0, 1, 2, 9, 10, 11]), errors.LabelsOutOfRange, "label 10 at sample 4, 2 such"),
    ],
)
def test_bad_labels(samples, save, labels, error, word):
    refused(error, save(x=samples, y=labels), word, classes=10)


def test_negative_labels_are_refused_without_classes(samples, save):
    refused(errors.LabelsOutOfRange, save(x=samples, y=np.full(6, -1)), "0 or more")


def test_limit_below_one(samples, save):
    with pytest.raises(errors.UsageError):
        load_data(save(x=samples), spec=NCHW, limit=0)
