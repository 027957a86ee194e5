"""The record of samples, and how it is digested, made up and split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import msgspec

from edgepipe.errors import DataEmpty, DataTypeMismatch, UsageError
from edgepipe.model import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_BYTES = 1 << 24
"""Arrays are walked through in pieces of about this size, so that a memory-mapped one stays on disk."""

MOST_CALIBRATION_SAMPLES = 128
"""Calibration takes at most this many samples unless told: ranges settle well before."""


class Dataset(msgspec.Struct, frozen=True):
    """Samples in the layout, type and scale of the model's input.

    Attributes:
        x: Samples, one row each: float32 (as a rule) [n, ...].
        y: Class of each sample: int64 [n]; None where no labels were given.
        digest: sha256 (hex) over the contents, the same for the same samples in the same order.
        source: Where they came from, for people.
        random: True where they were made up by `--calibrate-random`: unfit for any accuracy claim.
    """

    x: NDArray[np.generic]
    y: NDArray[np.int64] | None
    digest: str
    source: str
    random: bool = False

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.x)


def make_dataset(
    x: NDArray[np.generic], y: NDArray[np.int64] | None, source: str, *, random: bool = False
) -> Dataset:
    """Samples that have been checked, with their digest."""
    return Dataset(x, y, digest_samples(x, y), source, random)


def rows_per_chunk(x: NDArray[np.generic]) -> int:
    """How many samples make up about `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // max(1, x.nbytes // max(1, len(x))))


def digest_samples(x: NDArray[np.generic], y: NDArray[np.int64] | None) -> str:
    """The sha256, in hex, of type, shape and contents of `x` and `y`."""
    import numpy as np

    digest = hashlib.sha256(f"x {x.dtype.str} {x.shape}\n".encode())
    step = rows_per_chunk(x)
    for start in range(0, len(x), step):
        digest.update(np.ascontiguousarray(x[start : start + step]).data)
    if y is not None:
        digest.update(f"y {y.dtype.str} {y.shape}\n".encode())
        digest.update(np.ascontiguousarray(y).data)
    return digest.hexdigest()


def digest_rows(x: NDArray[np.generic]) -> Iterator[str]:
    """The first 64 bits of the sha256 of each sample, in hex: what tells it again in another data set."""
    import numpy as np

    for row in x:
        yield hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()[:16]


def leave_out(dataset: Dataset, digests: Collection[str]) -> Dataset:
    """The samples that are none of those with these digests; the same record where all are."""
    import numpy as np

    if not digests:
        return dataset
    known = frozenset(digests)
    rows = np.flatnonzero([digest not in known for digest in digest_rows(dataset.x)])
    return dataset if len(rows) == len(dataset) else _part(dataset, rows)


def random_data(spec: TensorSpec, samples: int, seed: int) -> Dataset:
    """Made-up samples for `--calibrate-random`: good for timing, unfit for any claim on accuracy.

    Args:
        spec: The model's input; sizes other than the batch are known.
        samples: How many to make.
        seed: Seed of the generator.

    Returns:
        Standard normal numbers for a float input, the whole range of an 8-bit one.

    Raises:
        DataTypeMismatch: an input type whose range nobody can guess, as that of token numbers.
        UsageError: less than one sample.
    """
    import numpy as np

    if samples < 1:
        raise UsageError("random calibration needs at least one sample", got=str(samples))
    rng = np.random.default_rng(seed)
    shape = (samples, *(size or 1 for size in spec.shape[1:]))
    dtype = np.dtype(spec.dtype)
    source = f"{samples} random samples, seed {seed}"
    if dtype.kind == "f":
        return make_dataset(rng.standard_normal(shape).astype(dtype), None, source, random=True)
    if dtype.name in {"int8", "uint8"}:
        limits = np.iinfo(dtype)
        x = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
        return make_dataset(x, None, source, random=True)
    raise DataTypeMismatch(
        "random samples make no sense for this input type",
        where=f"input {spec}",
        got=spec.dtype,
        remedy="give real samples with --data",
    )


def split(dataset: Dataset, calibration_samples: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """Parts samples into those to calibrate on and those to evaluate on; no sample is in both.

    Args:
        dataset: All samples.
        calibration_samples: How many to calibrate on; None for a quarter, at most 128.
        seed: Seed of the permutation that chooses them. Each part keeps the order of the data.

    Returns:
        The calibration part and the evaluation part.

    Raises:
        DataEmpty: fewer than two samples.
        UsageError: the calibration part would be empty or leave nothing to evaluate on.
    """
    import numpy as np

    total = len(dataset)
    if total < 2:
        raise DataEmpty(
            "one sample cannot both calibrate and evaluate a model",
            where=dataset.source,
            got=f"{total} samples",
            remedy="give at least two samples; about 100 or more make calibration sound",
        )
    if calibration_samples is None:
        calibration_samples = max(1, min(MOST_CALIBRATION_SAMPLES, total // 4))
    if not 0 < calibration_samples < total:
        raise UsageError(
            "that many calibration samples leave nothing to evaluate on"
            if calibration_samples > 0
            else "calibration needs at least one sample",
            where=dataset.source,
            got=f"{calibration_samples} of {total} samples",
            remedy=f"give --calibration-samples between 1 and {total - 1}",
        )
    order = np.random.default_rng(seed).permutation(total)
    chosen, others = np.sort(order[:calibration_samples]), np.sort(order[calibration_samples:])
    return _part(dataset, chosen), _part(dataset, others)


def _part(dataset: Dataset, rows: NDArray[np.intp]) -> Dataset:
    y = None if dataset.y is None else dataset.y[rows]
    return make_dataset(dataset.x[rows], y, dataset.source, random=dataset.random)
