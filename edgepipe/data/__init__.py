"""Samples to calibrate and evaluate on: read, checked against the model's input, digested, split.

Data is an .npz with `x` (in the layout, type and scale of the model's input) and optional `y`, an
.npy of samples alone, or a folder of images with a `Preprocessing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.data.arrays import read_npy, read_npz
from edgepipe.data.conform import conform_labels, conform_samples
from edgepipe.data.dataset import Dataset, digest_rows, leave_out, make_dataset, random_data, split
from edgepipe.data.images import decode_images, list_images
from edgepipe.errors import DataNotFound, DataUnreadable, ProjectError, UsageError
from edgepipe.events import Emit, silent
from edgepipe.model import TensorSpec
from edgepipe.preprocess import Preprocessing

if TYPE_CHECKING:
    from edgepipe.data.arrays import Arrays

__all__ = [
    "Dataset",
    "digest_rows",
    "find_data",
    "leave_out",
    "load_data",
    "make_dataset",
    "random_data",
    "split",
]


def load_data(
    path: str | Path,
    *,
    spec: TensorSpec,
    classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    seed: int = 0,
    emit: Emit = silent,
) -> Dataset:
    """Reads samples and checks that they fit the model.

    Args:
        path: An .npz, an .npy, or a folder of images.
        spec: The model's input.
        classes: Number of its classes, to check labels against; None where it is no classifier.
        preprocessing: How images become the input. Arrays are taken as they are.
        limit: Use at most this many samples, chosen by `seed`, in the order of the data.
        seed: Seed of that choice.
        emit: Where the progress of decoding goes.

    Raises:
        DataNotFound: nothing is there.
        DataUnreadable: no data file, a corrupt one, one without `x`, one of pickled objects.
        DataEmpty: no samples.
        DataShapeMismatch: samples or labels of the wrong shape.
        DataTypeMismatch: samples or labels of the wrong type.
        DataNotFinite: NaN or infinity.
        LabelsOutOfRange: labels that the model has no class for.
        ProjectError: an image folder without preprocessing.
        UsageError: a limit below one.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UsageError("the limit must leave at least one sample", got=str(limit))
    find_data(path)
    if path.is_dir():
        return _load_images(path, spec, classes, preprocessing, limit, seed, emit)
    x, y = _read_arrays(path)
    x = conform_samples(x, spec, str(path))
    labels = None if y is None else conform_labels(y, len(x), classes, str(path))
    rows = _chosen(len(x), limit, seed)
    if rows is not None:
        x, labels = x[rows], None if labels is None else labels[rows]
    return make_dataset(x, labels, path.name)


def _read_arrays(path: Path) -> Arrays:
    suffix = path.suffix.lower()
    if suffix not in {".npz", ".npy"}:
        raise DataUnreadable(
            "edgepipe reads no data of this kind",
            where=str(path),
            got=f"suffix {suffix}" if suffix else "no suffix",
            remedy="give an .npz with `x` and optional `y`, an .npy, or a folder class/*.jpg",
        )
    return read_npz(path) if suffix == ".npz" else read_npy(path)


def find_data(path: Path) -> None:
    """Makes sure that there is something of that name, which costs nothing.

    Raises:
        DataNotFound: nothing is there.
    """
    if not path.exists():
        raise DataNotFound(
            "there is no such data",
            where=str(path),
            remedy="give an .npz with `x` and optional `y`, or a folder class/*.jpg",
        )


def _load_images(
    folder: Path,
    spec: TensorSpec,
    classes: int | None,
    preprocessing: Preprocessing | None,
    limit: int | None,
    seed: int,
    emit: Emit,
) -> Dataset:
    import numpy as np

    if preprocessing is None:
        raise ProjectError(
            "an image folder needs to know how images become the model's input",
            where=str(folder),
            remedy="write [preprocessing] into edgepipe.toml (edgepipe init writes one to fill in)",
        )
    listing = list_images(folder, classes)
    rows = _chosen(len(listing.files), limit, seed)
    if rows is not None:
        listing = listing.take(rows)
    x = decode_images(listing, spec, preprocessing, emit)
    labels = None if listing.labels is None else np.array(listing.labels, np.int64)
    return make_dataset(x, labels, folder.name)


def _chosen(total: int, limit: int | None, seed: int) -> list[int] | None:
    if limit is None or limit >= total:
        return None
    import numpy as np

    rows: list[int] = sorted(np.random.default_rng(seed).permutation(total)[:limit].tolist())
    return rows
