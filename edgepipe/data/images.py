"""Samples from a folder of images: `class/*.jpg`, or images alone where there are no labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgepipe.errors import (
    DataEmpty,
    DataError,
    DataShapeMismatch,
    DataTypeMismatch,
    DataUnreadable,
    LabelsOutOfRange,
)
from edgepipe.events import Emit, stage
from edgepipe.model import TensorSpec
from edgepipe.preprocess import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class Listing(msgspec.Struct, frozen=True):
    """The image files of a folder in a fixed order.

    Attributes:
        files: Every image.
        labels: Its class, from its folder's name; None where the folder has no class folders.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None

    def take(self, rows: list[int]) -> Listing:
        """The images at `rows`."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        return Listing(tuple(self.files[row] for row in rows), labels)


def list_images(folder: Path, classes: int | None) -> Listing:
    """Lists images with their classes.

    Where every class folder's name is a number, that is the class; else classes are numbered in the
    sorted order of the names, as most training code does.

    Raises:
        DataEmpty: no image.
        LabelsOutOfRange: a folder's number, or the count of folders, exceeds the model's classes.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not names:
        listing = Listing(_images(folder), None)
    else:
        numbered = all(name.isascii() and name.isdigit() for name in names)
        numbers = {name: int(name) if numbered else order for order, name in enumerate(names)}
        pairs = [(file, numbers[name]) for name in names for file in _images(folder / name)]
        _check_classes({name: numbers[name] for name in names}, classes, folder)
        listing = Listing(tuple(file for file, _ in pairs), tuple(label for _, label in pairs))
    if not listing.files:
        raise DataEmpty(
            "the folder holds no image",
            where=str(folder),
            got=f"{len(names)} folders, none with {', '.join(sorted(SUFFIXES))}",
            remedy="put images into one folder a class: class/name.jpg",
        )
    return listing


def decode_images(
    listing: Listing, spec: TensorSpec, preprocessing: Preprocessing, emit: Emit
) -> NDArray[np.float32]:
    """Decodes and preprocesses every image: float32 [n, ...].

    Raises:
        DataUnreadable: a file that is no image, or a damaged one.
        DataShapeMismatch: the preprocessing makes another shape than the model's input.
        DataTypeMismatch: the model's input is not float32.
        DataError: all of them do not fit into memory.
    """
    import numpy as np

    if spec.dtype != "float32":
        raise DataTypeMismatch(
            "images become float32, but the model takes another type",
            where=f"input {spec}",
            remedy="prepare the data as an .npz in the input's own type",
        )
    first = decode_image(listing.files[0], preprocessing)
    _check_shape(first, spec, listing.files[0])
    _check_memory(first.nbytes * len(listing.files), len(listing.files))
    x = np.empty((len(listing.files), *first.shape), np.float32)
    with stage(emit, "decode images", total=len(x)) as running:
        for row, file in enumerate(listing.files):
            sample = first if row == 0 else decode_image(file, preprocessing)
            _check_shape(sample, spec, file)
            x[row] = sample
            running.advance(row + 1)
    return x


def decode_image(file: Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """One image, decoded and preprocessed: float32 [...].

    Raises:
        DataUnreadable: a file that is no image, or a damaged one.
        DataShapeMismatch: an image smaller than the crop.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            return preprocessing.apply(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataUnreadable(
            "the file is not an image, or a damaged one",
            where=str(file),
            got=str(error).splitlines()[0],
            remedy="remove it, or copy it again",
        ) from error
    except ValueError as error:
        raise DataShapeMismatch(
            "the image does not suit the preprocessing",
            where=str(file),
            got=str(error),
            remedy="set `resize` in [preprocessing] to at least `crop`",
        ) from error


def _images(folder: Path) -> tuple[Path, ...]:
    return tuple(
        sorted(
            entry
            for entry in folder.iterdir()
            if entry.suffix.lower() in SUFFIXES and entry.name[0] != "." and entry.is_file()
        )
    )


def _check_shape(sample: NDArray[np.float32], spec: TensorSpec, file: Path) -> None:
    want = spec.shape[1:]
    if sample.ndim == len(want) and all(
        size is None or size == have for have, size in zip(sample.shape, want, strict=True)
    ):
        return
    raise DataShapeMismatch(
        "the preprocessing makes another shape than the model's input",
        where=str(file),
        got=f"{list(sample.shape)}, the model takes {spec}",
        remedy="set `resize`, `crop`, `color` and `layout` in [preprocessing] of edgepipe.toml",
    )


def _check_classes(numbers: dict[str, int], classes: int | None, folder: Path) -> None:
    if classes is None:
        return
    outside = [name for name, number in numbers.items() if number >= classes]
    if outside:
        raise LabelsOutOfRange(
            "class folders are out of the model's range",
            where=str(folder / outside[0]),
            got=f"{len(outside)} of {len(numbers)} folders, for a model of {classes} classes",
            remedy=f"name the folders by class number, 0 to {classes - 1}, or remove those that the "
            "model does not know",
        )


def _check_memory(needed_bytes: int, samples: int) -> None:
    available_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_bytes > available_bytes:
        fitting = samples * available_bytes // needed_bytes // 2
        raise DataError(
            "the decoded images do not fit into memory",
            got=f"{needed_bytes >> 20} MiB for {samples} images, {available_bytes >> 20} MiB are free",
            remedy=f"use fewer: --limit {max(1, fitting)}",
        )
