"""How good an artifact is, with intervals: accuracy against labels, fidelity against the float model.

The float model and every artifact see the same samples, in the same order, so differences are paired:
far tighter than two separate intervals. Samples that ranges were calibrated on are never evaluated on;
the record carries both digests so that anyone can check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.bundle import Calibration
from edgepipe.data import Dataset, digest_rows
from edgepipe.errors import DataEmpty, DataShapeMismatch, LabelsOutOfRange

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


class Estimate(msgspec.Struct, frozen=True):
    """A share, or a difference of shares, with its 95 % confidence interval.

    Attributes:
        value: The estimate itself.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """How close one output is to that of the float model, over all samples and elements.

    Attributes:
        sqnr_db: Signal to quantization noise ratio; None where the outputs are equal or not finite.
        mse: Mean squared error; None where an output is not finite.
        max_abs_error: Largest absolute difference of one element; None likewise.
        not_finite: Elements that are NaN or infinite.
    """

    sqnr_db: float | None
    mse: float | None
    max_abs_error: float | None
    not_finite: int = 0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two classifiers on the same samples.

    Attributes:
        agreement: Share of samples for which both name the same class.
        accuracy: Share that the artifact gets right; None without labels.
        reference_accuracy: Share that the float model gets right; None without labels.
        difference: Accuracy of the artifact minus that of the float model, paired; None without labels.
        lost: Samples that only the float model gets right; None without labels.
        gained: Samples that only the artifact gets right; None without labels.
        p_value: Of McNemar's exact test that both are equally accurate; None without labels.
    """

    agreement: Estimate
    accuracy: Estimate | None = None
    reference_accuracy: Estimate | None = None
    difference: Estimate | None = None
    lost: int | None = None
    gained: int | None = None
    p_value: float | None = None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact computes, against the float model and the labels, on the host.

    Attributes:
        samples: How many samples were evaluated.
        data_source: Where they came from.
        data_digest: Digest of the samples.
        calibration_digest: Digest of the samples that ranges were taken from; None where none were.
        unfit: Why no claim about accuracy may be built on this; empty where one may.
        fidelity: One for each output of the model.
        comparison: For classifiers; None for anything else.
    """

    samples: int
    data_source: str
    data_digest: str
    calibration_digest: str | None
    unfit: tuple[str, ...]
    fidelity: tuple[Fidelity, ...]
    comparison: Comparison | None = None

    @property
    def sqnr_db(self) -> float | None:
        """SQNR of the worst output; None where all are equal or one is not finite."""
        if any(output.mse is None for output in self.fidelity):
            return None
        return min((o.sqnr_db for o in self.fidelity if o.sqnr_db is not None), default=None)

    @property
    def exact(self) -> bool:
        """True where every output equals that of the float model."""
        return all(output.mse == 0 for output in self.fidelity)


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """Every artifact of a bundle, or one model, evaluated beside the float model.

    Attributes:
        reference: The float model itself, by name "float": what all are compared with.
        artifacts: By artifact name.
        agreement: Top-1 agreement of the quantized artifacts with one another, by "a = b".
    """

    reference: Evaluation
    artifacts: dict[str, Evaluation]
    agreement: dict[str, Estimate] = {}


def evaluate(
    reference: Sequence[NDArray[Any]],
    outputs: Sequence[NDArray[Any]],
    data: Dataset,
    *,
    calibration: Calibration | None = None,
) -> Evaluation:
    """Compares an artifact's outputs with those of the float model on the same samples.

    For the float model's own row, give its outputs as both.

    Args:
        reference: Outputs of the float model: float32 [n, ...] each.
        outputs: Outputs of the artifact, in the same layout: float32 [n, ...] each.
        data: The samples that both were computed from, with labels if there are any.
        calibration: What the artifact was calibrated on.

    Raises:
        DataEmpty: There is no sample.
        DataShapeMismatch: The outputs, or the labels, do not belong to these samples.
        LabelsOutOfRange: A label is no class of the model.
    """
    _check_shapes(reference, outputs, data)
    comparison = None
    before, after = predictions(reference, reference, data), predictions(reference, outputs, data)
    classes = class_count(data.x.shape[1:], [output.shape[1:] for output in reference])
    if before is not None and after is not None and classes is not None:
        comparison = compare(before, after, _labels(data, classes))
    return Evaluation(
        samples=len(data),
        data_source=data.source,
        data_digest=data.digest,
        calibration_digest=calibration.digest if calibration else None,
        unfit=_unfit(data, calibration),
        fidelity=tuple(map(fidelity, reference, outputs)),
        comparison=comparison,
    )


def class_count(sample: Sequence[int | None], outputs: Sequence[Sequence[int | None]]) -> int | None:
    """How many classes a model tells apart; None where it is no classifier.

    A classifier has one output, with one axis of more than one element: a score for each class. A
    single number tells two classes apart, where there are labels; without it is any quantity. An
    output as large as the input is a reconstruction.

    Args:
        sample: Shape of the input without the batch.
        outputs: Shape of each output without the batch.
    """
    if len(outputs) != 1:
        return None
    sizes = [size for size in outputs[0] if size != 1]
    if not sizes:
        return 2
    size = sizes[0]
    if len(sizes) > 1 or size is None:
        return None
    return None if None not in sample and math.prod(each or 1 for each in sample) == size else size


def predictions(
    reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]], data: Dataset
) -> NDArray[np.int64] | None:
    """The class that is named for each sample: int64 [n]; None where the model is no classifier.

    The class with the highest score; where the model gives one number, class 1 above a half if the
    float model's numbers are probabilities, else above zero, as for logits. -1, which is no class,
    where a score is NaN.

    Args:
        reference: Outputs of the float model: float32 [n, ...] each. They say where to decide.
        outputs: Outputs of what names the classes, in the same shapes.
        data: The samples.
    """
    if class_count(data.x.shape[1:], [output.shape[1:] for output in reference]) is None:
        return None
    scores = outputs[0].reshape(len(data), -1)
    if scores.shape[1] == 1:
        if data.y is None:
            return None
        probable = bool(np.all((reference[0] >= 0) & (reference[0] <= 1)))
        scores = np.concatenate([np.full_like(scores, 0.5 if probable else 0.0), scores], axis=1)
    classes: NDArray[np.int64] = np.where(np.isnan(scores).any(1), -1, scores.argmax(1))
    return classes


def fidelity(reference: NDArray[Any], output: NDArray[Any]) -> Fidelity:
    """Error of one output against the float model's.

    Args:
        reference: float32 [n, ...].
        output: float32 [n, ...].
    """
    not_finite = int(np.count_nonzero(~np.isfinite(output)) + np.count_nonzero(~np.isfinite(reference)))
    if not_finite:
        return Fidelity(sqnr_db=None, mse=None, max_abs_error=None, not_finite=not_finite)
    error = output.astype(np.float64) - reference
    return Fidelity(
        sqnr_db=sqnr_db(reference, output),
        mse=float(np.mean(np.square(error))),
        max_abs_error=float(np.max(np.abs(error), initial=0.0)),
    )


def sqnr_db(reference: NDArray[Any], output: NDArray[Any]) -> float | None:
    """Signal to quantization noise ratio in dB.

    ``SQNR = 10 log10(sum(r^2) / sum((r - o)^2))`` over all samples and elements, as in Nagel et al.,
    "A White Paper on Neural Network Quantization" (arXiv 2106.08295), section 4. None where the noise
    is zero (the ratio is infinite) or the signal is (it is undefined).

    Args:
        reference: r, any shape.
        output: o, the same shape.
    """
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(output.astype(np.float64) - reference)))
    if not signal or not noise:
        return None
    return 10 * math.log10(signal / noise)


def compare(
    reference: NDArray[np.int64], found: NDArray[np.int64], labels: NDArray[np.int64] | None
) -> Comparison:
    """Agreement and, with labels, accuracies and their paired difference.

    Args:
        reference: Classes that the float model names: int64 [n].
        found: Classes that the artifact names: int64 [n].
        labels: True classes: int64 [n], or None.
    """
    n = len(reference)
    agreement = wilson(int(np.count_nonzero(reference == found)), n)
    if labels is None:
        return Comparison(agreement=agreement)
    before, after = reference == labels, found == labels
    both = int(np.count_nonzero(before & after))
    lost, gained = int(np.count_nonzero(before & ~after)), int(np.count_nonzero(after & ~before))
    return Comparison(
        agreement=agreement,
        accuracy=wilson(both + gained, n),
        reference_accuracy=wilson(both + lost, n),
        difference=paired_difference(both, gained, lost, n),
        lost=lost,
        gained=gained,
        p_value=mcnemar(lost, gained),
    )


def wilson(successes: int, n: int) -> Estimate:
    """A share with its 95 % score interval: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.

    Raises:
        DataEmpty: `n` is zero.
    """
    if n == 0:
        raise DataEmpty("no share of zero samples can be estimated")
    share = successes / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(share, min(low, share), max(high, share))


def paired_difference(both: int, first_only: int, second_only: int, n: int) -> Estimate:
    """Difference (first minus second) of two shares of the same samples, with its 95 % interval.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17, 2635-2650, method 10: score intervals of each share,
    joined with the correlation (continuity-corrected) of the pairs. Unlike a Wald interval it has a
    width even where the two never differ.

    Args:
        both: Samples that both get right.
        first_only: Samples that only the first gets right.
        second_only: Samples that only the second gets right.
        n: All samples.

    Raises:
        DataEmpty: `n` is zero.
    """
    neither = n - both - first_only - second_only
    first, second = wilson(both + first_only, n), wilson(both + second_only, n)
    phi = _correlation(both, first_only, second_only, neither)
    below, above = first.value - first.low, second.high - second.value
    low = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    above, below = first.high - first.value, second.value - second.low
    high = math.sqrt(max(0.0, above**2 - 2 * phi * above * below + below**2))
    difference = (first_only - second_only) / n
    return Estimate(difference, max(-1.0, difference - low), min(1.0, difference + high))


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    """Newcombe's phi of a 2x2 table, with his continuity correction."""
    sides = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    if not sides:
        return 0.0
    n = both + first_only + second_only + neither
    product = both * neither - first_only * second_only
    corrected = product if product < 0 else max(0.0, product - n / 2)
    return corrected / math.sqrt(sides)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p value of McNemar's exact test: the samples that differ are coin tosses if both are equal.

    McNemar 1947, Psychometrika 12, 153-157, with the exact binomial distribution.
    """
    n = lost + gained
    ways = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(lost, gained) + 1)
    )
    # As logarithms: neither binomial coefficients nor 2**n of many samples fit a float.
    return min(1.0, 2 * math.fsum(math.exp(log_ways - n * math.log(2)) for log_ways in ways))


def _check_shapes(reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]], data: Dataset) -> None:
    if not len(data):
        raise DataEmpty("there is no sample to evaluate on", where=data.source)
    shapes = [r.shape for r in reference], [o.shape for o in outputs]
    if shapes[0] != shapes[1]:
        raise DataShapeMismatch(
            "the artifact's outputs do not have the shape of the float model's",
            got=f"{shapes[1]}, the float model gives {shapes[0]}",
        )
    if any(not shape or shape[0] != len(data) for shape in shapes[0]):
        raise DataShapeMismatch(
            "the outputs do not belong to these samples",
            where=data.source,
            got=f"{shapes[0]} for {len(data)} samples",
        )


def _labels(data: Dataset, classes: int) -> NDArray[np.int64] | None:
    if data.y is None:
        return None
    if data.y.shape != (len(data),):
        raise DataShapeMismatch(
            "there must be one label for each sample",
            where=data.source,
            got=f"labels of shape {list(data.y.shape)} for {len(data)} samples",
        )
    low, high = int(data.y.min()), int(data.y.max())
    if low < 0 or high >= classes:
        raise LabelsOutOfRange(
            "a label is no class of the model",
            where=data.source,
            got=f"labels from {low} to {high}, the model has {classes} classes (0 to {classes - 1})",
            remedy="count classes from 0 in the order of the model's output",
        )
    return data.y


def _unfit(data: Dataset, calibration: Calibration | None) -> tuple[str, ...]:
    reasons = []
    if data.random:
        reasons.append("evaluated on random data")
    if calibration is not None and calibration.random:
        reasons.append("calibrated on random data")
    if calibration is not None and _calibrated_on(data, calibration):
        reasons.append("evaluated on the calibration samples")
    return tuple(reasons)


def _calibrated_on(data: Dataset, calibration: Calibration) -> bool:
    """Whether every sample is one of those that ranges were taken from."""
    known = frozenset(calibration.sample_digests)
    return calibration.digest == data.digest or all(digest in known for digest in digest_rows(data.x))
