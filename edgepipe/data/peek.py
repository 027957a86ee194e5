"""A first look at samples, before the model that they are for is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.data.arrays import read_npy, read_npz
from edgepipe.data.images import decode_image, list_images
from edgepipe.preprocess import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def peek(path: Path, count: int, *, preprocessing: Preprocessing | None = None) -> NDArray[np.generic] | None:
    """The first samples, unchecked: enough to tell a torch module's input shape and to try it out.

    Args:
        path: An .npz, an .npy, or a folder of images.
        count: At most so many samples.
        preprocessing: How images become the input.

    Returns:
        Samples [count, ...], or None where there is nothing to look at; `load_data` says why.

    Raises:
        DataError: The file or an image cannot be read.
    """
    import numpy as np

    if path.is_dir():
        if preprocessing is None:
            return None
        decoded = [decode_image(file, preprocessing) for file in list_images(path, None).files[:count]]
        return np.stack(decoded) if len({sample.shape for sample in decoded}) == 1 else None
    if not path.is_file() or path.suffix.lower() not in {".npz", ".npy"}:
        return None
    x, _ = read_npz(path) if path.suffix.lower() == ".npz" else read_npy(path)
    return x[:count] if x.ndim else None
