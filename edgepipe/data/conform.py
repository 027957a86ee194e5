"""Whether samples and labels fit the model, and what to do where they do not."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

from edgepipe.data.dataset import rows_per_chunk
from edgepipe.errors import (
    DataEmpty,
    DataNotFinite,
    DataShapeMismatch,
    DataTypeMismatch,
    LabelsOutOfRange,
)
from edgepipe.model import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NHWC_TO_NCHW = (0, 3, 1, 2)
NCHW_TO_NHWC = (0, 2, 3, 1)


def conform_samples(x: NDArray[np.generic], spec: TensorSpec, where: str) -> NDArray[np.generic]:
    """The samples in the input's type, once they are known to fit it.

    A memory-mapped array that needs no conversion stays on disk.

    Raises:
        DataEmpty: no sample.
        DataShapeMismatch: another shape than the input's.
        DataTypeMismatch: a type that cannot stand for the input's.
        DataNotFinite: NaN or infinity, also where float64 overflows float32.
    """
    if x.ndim == 0 or len(x) == 0:
        raise DataEmpty(
            "the data holds no sample",
            where=where,
            got=f"x of shape {list(x.shape)}",
            remedy="give samples along the first axis",
        )
    _check_type(x, spec, where)
    _check_shape(x, spec, where)
    if x.dtype.kind != "f":
        return _convert_integers(x, spec, where)
    _check_finite(x, where, "")
    if x.dtype == spec.dtype:
        return x
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        converted = x.astype(spec.dtype)
    _check_finite(converted, where, f" as {spec.dtype}")
    return converted


def conform_labels(
    y: NDArray[np.generic], samples: int, classes: int | None, where: str
) -> NDArray[np.int64]:
    """The labels as int64 [n], once they are known to fit.

    Args:
        y: Labels as they came.
        samples: Number of samples.
        classes: Number of the model's classes; None where it is no classifier.
        where: Their place, for messages.

    Raises:
        DataTypeMismatch: not whole numbers.
        DataShapeMismatch: not one for each sample.
        LabelsOutOfRange: negative, or not below `classes`.
    """
    import numpy as np

    _check_label_form(y, samples, where)
    flat = y.reshape(-1).astype(np.int64)
    outside = flat < 0 if classes is None else (flat < 0) | (flat >= classes)
    if outside.any():
        first = int(np.argmax(outside))
        allowed = "0 or more" if classes is None else f"0 to {classes - 1}, the model's classes"
        raise LabelsOutOfRange(
            "labels are out of range",
            where=where,
            got=f"label {flat[first]} at sample {first}, {int(outside.sum())} such labels in all",
            remedy=f"labels must be {allowed}; check where counting starts and whether the model "
            "has a background class",
        )
    return flat


def _check_label_form(y: NDArray[np.generic], samples: int, where: str) -> None:
    if y.ndim == 2 and len(y) == samples and y.shape[1] > 1:
        raise DataShapeMismatch(
            "labels must be class numbers, one a sample",
            where=where,
            got=f"y of shape {list(y.shape)}, perhaps one-hot",
            remedy="save y.argmax(axis=1)",
        )
    if y.shape not in {(samples,), (samples, 1)}:
        raise DataShapeMismatch(
            "there must be one label for each sample",
            where=where,
            got=f"y of shape {list(y.shape)} for {samples} samples",
            remedy=f"save y of shape [{samples}], in the order of x",
        )
    if y.dtype.kind not in "iu":
        raise DataTypeMismatch(
            "labels must be whole numbers",
            where=where,
            got=f"y of type {y.dtype}",
            remedy="save the class numbers as int64: y.astype(np.int64)",
        )


def _check_type(x: NDArray[np.generic], spec: TensorSpec, where: str) -> None:
    import numpy as np

    want = np.dtype(spec.dtype)
    if x.dtype.kind not in "fiu":
        raise DataTypeMismatch(
            "the samples are not numbers",
            where=where,
            got=f"x of type {x.dtype}",
            remedy=f"save them as {want.name}",
        )
    if want.kind == "f" and x.dtype.kind != "f":
        raise DataTypeMismatch(
            f"the samples are integers, but the model takes {want.name}",
            where=where,
            got=f"x of type {x.dtype}, {x.min()} to {x.max()}",
            remedy="save x as the model was trained on it: scaled and normalized, for instance "
            "(x.astype(np.float32) / 255 - mean) / std, or (q - zero_point) * scale for quantized data",
        )
    if want.kind in "iu" and x.dtype.kind == "f":
        raise DataTypeMismatch(
            f"the samples are floats, but the model takes {want.name}",
            where=where,
            got=f"x of type {x.dtype}",
            remedy=f"save x in the model's own units as {want.name}",
        )


def _check_shape(x: NDArray[np.generic], spec: TensorSpec, where: str) -> None:
    want = spec.shape
    if _fits(x.shape, want):
        return
    raise DataShapeMismatch(
        "the samples do not have the shape of the model's input",
        where=where,
        got=f"x of shape {list(x.shape)}, the model takes {spec}",
        remedy=_shape_remedy(x.shape, want),
    )


def _fits(shape: tuple[int, ...], want: tuple[int | None, ...]) -> bool:
    return len(shape) == len(want) and all(
        size is None or size == have for have, size in zip(shape[1:], want[1:], strict=True)
    )


def _shape_remedy(have: tuple[int, ...], want: tuple[int | None, ...]) -> str:
    rank = len(want)
    if len(have) == rank - 1:
        if _fits((1, *have), want):
            return "this is one sample: save x[np.newaxis], samples along the first axis"
        for axis in range(1, rank):
            if _fits((*have[:axis], 1, *have[axis:]), want):
                return f"an axis of one is missing: save np.expand_dims(x, {axis})"
    if len(have) == rank:
        for axes in (NHWC_TO_NCHW, NCHW_TO_NHWC, *((0, *rest) for rest in permutations(range(1, rank)))):
            if len(axes) == rank and _fits(tuple(have[axis] for axis in axes), want):
                return f"the axes are in another order: save x.transpose{axes}{_layouts(axes)}"
    product = _product(want[1:])
    if product is not None and _product(have[1:]) == product:
        sizes = ", ".join(str(size) for size in want[1:])
        return f"the sizes agree in all: save x.reshape(-1, {sizes}) if the order of values is right"
    return "save x in the layout and size of the model's input, samples along the first axis"


def _layouts(axes: tuple[int, ...]) -> str:
    if axes == NHWC_TO_NCHW:
        return ", NHWC to NCHW"
    return ", NCHW to NHWC" if axes == NCHW_TO_NHWC else ""


def _product(sizes: tuple[int | None, ...]) -> int | None:
    result = 1
    for size in sizes:
        if size is None:
            return None
        result *= size
    return result


def _convert_integers(x: NDArray[np.generic], spec: TensorSpec, where: str) -> NDArray[np.generic]:
    import numpy as np

    if x.dtype == spec.dtype:
        return x
    limits = np.iinfo(spec.dtype)
    low, high = int(x.min()), int(x.max())
    if low < limits.min or high > limits.max:
        raise DataTypeMismatch(
            f"the samples do not fit {spec.dtype}, the type of the model's input",
            where=where,
            got=f"{low} to {high}",
            remedy=f"values must be {limits.min} to {limits.max}",
        )
    return x.astype(spec.dtype)


def _check_finite(x: NDArray[np.generic], where: str, suffix: str) -> None:
    import numpy as np

    step = rows_per_chunk(x)
    for start in range(0, len(x), step):
        chunk = x[start : start + step]
        finite = np.isfinite(chunk.reshape(len(chunk), -1))
        if finite.all():
            continue
        row = int(np.argmin(finite.all(axis=1)))
        value = chunk.reshape(len(chunk), -1)[row, int(np.argmin(finite[row]))]
        raise DataNotFinite(
            f"the samples hold NaN or infinity{suffix}",
            where=f"{where}, sample {start + row}",
            got=f"{value}, {int((~finite[row]).sum())} such values in this sample",
            remedy="drop or repair these samples: one of them is enough to ruin calibration",
        )
