"""Samples to calibrate and evaluate on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
