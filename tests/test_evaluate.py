import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from edgepipe.bundle import Calibration
from edgepipe.data import Dataset
from edgepipe.errors import DataEmpty, DataShapeMismatch, LabelsOutOfRange
from edgepipe.evaluate import (
    class_count,
    compare,
    evaluate,
    mcnemar,
    paired_difference,
    predictions,
    sqnr_db,
    wilson,
)

RNG = np.random.default_rng(0)


def dataset(n=40, classes=None, **changes):
    fields = {
        "x": RNG.normal(size=(n, 6)).astype(np.float32),
        "y": None if classes is None else RNG.integers(0, classes, n),
        "digest": "d" * 64,
        "source": "val.npz",
    }
    return Dataset(**{**fields, **changes})


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts):
    k, n = counts
    found = wilson(k, n)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert found.value == k / n
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_samples():
    assert mcnemar(20_000, 20_600) == pytest.approx(stats.binomtest(20_000, 40_600).pvalue, rel=1e-8)


tables = st.tuples(*[st.integers(0, 60)] * 4).filter(sum)


@given(tables)
def test_the_paired_interval_obeys_its_laws(table):
    both, first, second, neither = table
    n = sum(table)
    there, back = paired_difference(both, first, second, n), paired_difference(both, second, first, n)
    assert there.value == pytest.approx((first - second) / n)
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    # Calling every success a failure changes the sign alone.
    flipped = paired_difference(neither, second, first, n)
    assert (flipped.low, flipped.high) == (pytest.approx(-there.high), pytest.approx(-there.low))


def test_the_paired_interval_covers_the_truth_at_its_level():
    shares = np.array([0.80, 0.03, 0.06, 0.11])
    draws = np.random.default_rng(5).multinomial(300, shares, size=3000)
    intervals = [paired_difference(both, first, second, 300) for both, first, second, _ in draws]
    covered = np.mean([i.low <= -0.03 <= i.high for i in intervals])
    assert 0.94 <= covered <= 0.99


def test_pairing_is_tighter_than_two_intervals():
    paired = paired_difference(850, 10, 20, 1000)
    apart = (wilson(860, 1000).high - wilson(860, 1000).low) + (
        wilson(870, 1000).high - wilson(870, 1000).low
    )
    assert paired.high - paired.low < 0.6 * apart


def test_no_difference_seen_is_not_no_difference():
    same = paired_difference(90, 0, 0, 100)
    assert same.value == 0
    assert same.low < 0 < same.high


def test_a_classifier_with_labels():
    data = dataset(200, classes=5)
    reference = RNG.normal(size=(200, 5)).astype(np.float32)
    reference[np.arange(150), data.y[:150]] += 20
    quantized = reference + RNG.normal(scale=0.6, size=reference.shape).astype(np.float32)
    found = evaluate([reference], [quantized], data).comparison
    before, after = reference.argmax(1) == data.y, quantized.argmax(1) == data.y
    assert found.accuracy.value == pytest.approx(after.mean())
    assert found.reference_accuracy.value == pytest.approx(before.mean())
    assert found.difference.value == pytest.approx(after.mean() - before.mean())
    assert found.agreement.value == pytest.approx((reference.argmax(1) == quantized.argmax(1)).mean())
    assert (found.lost, found.gained) == ((before & ~after).sum(), (after & ~before).sum())


def test_without_labels_only_agreement():
    data = dataset(30)
    found = evaluate([np.eye(30, 5, dtype=np.float32)], [np.eye(30, 5, dtype=np.float32)], data)
    assert found.comparison.agreement.value == 1
    assert found.comparison.accuracy is found.comparison.difference is found.comparison.p_value is None
    assert found.exact
    assert found.sqnr_db is None


@pytest.mark.parametrize("shapes", [[(40, 6)], [(40, 1)], [(40,)], [(40, 3, 3)], [(40, 5), (40, 4)]])
def test_what_is_no_classifier_gets_fidelity_alone(shapes):
    outputs = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]
    found = evaluate(outputs, [output + np.float32(0.5) for output in outputs], dataset(40))
    assert found.comparison is None
    assert len(found.fidelity) == len(shapes)
    assert found.fidelity[0].mse == pytest.approx(0.25, rel=1e-4)
    assert found.fidelity[0].max_abs_error == pytest.approx(0.5, rel=1e-4)


def test_axes_of_one_do_not_hide_a_classifier():
    scores = RNG.normal(size=(40, 5, 1, 1)).astype(np.float32)
    assert evaluate([scores], [scores], dataset(40)).comparison.agreement.value == 1


arrays = hnp.arrays(np.float32, (4, 5), elements=st.floats(-100, 100, width=32))


@given(arrays, arrays)
def test_sqnr_is_its_equation_and_knows_no_scale(reference, output):
    found = sqnr_db(reference, output)
    signal = np.linalg.norm(reference.astype(np.float64).ravel())
    noise = np.linalg.norm((output.astype(np.float64) - reference).ravel())
    if not signal or not noise:
        assert found is None
        return
    assert found == pytest.approx(20 * np.log10(signal / noise), abs=1e-6)
    assert sqnr_db(reference * 4, output * 4) == pytest.approx(found, abs=1e-6)


def test_the_worst_output_speaks():
    outputs = [np.ones((40, 5), np.float32), np.ones((40, 4), np.float32)]
    noisy = [outputs[0] + np.float32(0.01), outputs[1] + np.float32(0.1)]
    assert evaluate(outputs, noisy, dataset(40)).sqnr_db == pytest.approx(20, abs=0.01)


def test_nan_outputs_are_counted_and_never_right():
    data = dataset(40, classes=5)
    scores = np.eye(5, dtype=np.float32)[data.y]
    broken = scores.copy()
    broken[:10, 0] = np.nan
    found = evaluate([scores], [broken], data)
    assert found.fidelity[0].not_finite == 10
    assert found.fidelity[0].mse is found.sqnr_db is None
    assert not found.exact
    assert found.comparison.accuracy.value == pytest.approx(30 / 40)


def calibration(**changes):
    return Calibration(**{"source": "c", "digest": "c" * 64, "samples": 9, "random": False, **changes})


@pytest.mark.parametrize(
    ("data", "calibrated", "expected"),
    [
        (dataset(), None, ()),
        (dataset(), calibration(), ()),
        (dataset(random=True), calibration(), ("evaluated on random data",)),
        (dataset(), calibration(random=True), ("calibrated on random data",)),
        (dataset(), calibration(digest="d" * 64), ("evaluated on the calibration samples",)),
    ],
)
def test_what_is_unfit_for_claims_says_so(data, calibrated, expected):
    scores = np.ones((40, 3), np.float32)
    found = evaluate([scores], [scores], data, calibration=calibrated)
    assert found.unfit == expected
    assert found.calibration_digest == (calibrated.digest if calibrated else None)
    assert (found.samples, found.data_digest) == (40, "d" * 64)


def test_bad_input_is_refused():
    scores = np.ones((40, 3), np.float32)
    with pytest.raises(DataEmpty):
        evaluate([scores[:0]], [scores[:0]], dataset(0))
    with pytest.raises(DataEmpty):
        wilson(0, 0)
    with pytest.raises(DataShapeMismatch, match="float model's"):
        evaluate([scores], [scores[:, :2]], dataset())
    with pytest.raises(DataShapeMismatch, match="do not belong"):
        evaluate([scores], [scores], dataset(39))
    with pytest.raises(DataShapeMismatch, match="one label"):
        evaluate([scores], [scores], dataset(y=np.zeros((40, 1), np.int64)))
    for label in (-1, 3):
        with pytest.raises(LabelsOutOfRange) as caught:
            evaluate([scores], [scores], dataset(y=np.full(40, label)))
        assert "3 classes" in caught.value.got


@given(hnp.arrays(np.int64, (3, 20), elements=st.integers(0, 3)))
def test_swapping_the_models_turns_the_difference(classes):
    reference, found, labels = classes
    there, back = compare(reference, found, labels), compare(found, reference, labels)
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert (there.lost, there.gained, there.p_value) == (back.gained, back.lost, back.p_value)
    assert there.agreement == back.agreement


def test_a_reconstruction_is_never_a_classifier():
    data = dataset(40, classes=2)
    outputs = [data.x + np.float32(0.1)]
    assert evaluate(outputs, outputs, data).comparison is None
    assert class_count((1, 8, 8), [(64,)]) is None


@pytest.mark.parametrize(
    ("outputs", "classes"),
    [
        ([(5,)], 5),
        ([(5, 1, 1)], 5),
        ([(1,)], 2),
        ([()], 2),
        ([(3, 3)], None),
        ([(5,), (4,)], None),
        ([(None,)], None),
    ],
)
def test_classes_follow_from_the_shapes(outputs, classes):
    assert class_count((6,), outputs) == classes


@pytest.mark.parametrize(("values", "threshold"), [((0.1, 0.4, 0.6, 0.9), 0.5), ((-2.0, -0.1, 0.3, 3.0), 0)])
def test_one_number_tells_two_classes_apart_where_there_are_labels(values, threshold):
    reference = np.array(values, np.float32).reshape(4, 1)
    found = reference.copy()
    found[1] = threshold + np.float32(0.05)
    data = dataset(4, y=np.array([0, 0, 1, 0]))
    comparison = evaluate([reference], [found], data).comparison
    assert comparison.reference_accuracy.value == 0.75
    assert comparison.accuracy.value == 0.5
    assert comparison.agreement.value == 0.75
    assert predictions([reference], [reference], data).tolist() == [0, 0, 1, 1]
    broken = found.copy()
    broken[0] = np.nan
    assert predictions([reference], [broken], data)[0] == -1
    with pytest.raises(LabelsOutOfRange):
        evaluate([reference], [reference], dataset(4, y=np.full(4, 2)))
