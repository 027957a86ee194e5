"""The check that a conversion computes what its source computes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe import errors
from edgepipe.model import TensorSpec, onnx_model
from edgepipe.sources.fidelity import RELATIVE_BOUND, Trial, run_onnx
from edgepipe.sources.source import Request


@pytest.fixture
def model(cnn):
    return onnx_model(cnn(), "cnn")


@pytest.fixture
def trial(model):
    return Trial(model.inputs, Request(path=Path("x"), origin="x", seed=1))


def test_equal_outputs(model, trial):
    fidelity = trial.judge(run_onnx(model.payload, trial.feeds), model.payload, by="itself")
    assert (fidelity.max_abs_error, fidelity.sqnr_db, fidelity.samples) == (0, None, 8)
    assert str(fidelity) == "equal to itself bit for bit on 8 random samples"


def test_figures_are_those_of_their_definitions(model, trial):
    outputs = run_onnx(model.payload, trial.feeds)
    noise = np.random.default_rng(0).standard_normal((len(outputs), 1, 5)).astype(np.float32) * 1e-5
    reference = [[output + added for output in run] for run, added in zip(outputs, noise, strict=True)]
    fidelity = trial.judge(reference, model.payload, by="noise")
    signal = np.array(reference, np.float64)[:, 0]
    error = np.array(outputs, np.float64)[:, 0] - signal
    assert fidelity.max_abs_error == pytest.approx(np.abs(error).max())
    assert fidelity.peak == pytest.approx(np.abs(signal).max())
    assert fidelity.sqnr_db == pytest.approx(10 * np.log10((signal**2).sum() / (error**2).sum()))


@pytest.mark.parametrize(("share", "fine"), [(0.9, True), (1.1, False)])
def test_bound_is_relative_to_the_largest_output(model, trial, share, fine):
    reference = run_onnx(model.payload, trial.feeds)
    peak = max(np.abs(output).max() for run in reference for output in run)
    reference[-1][0][0, 2] += share * RELATIVE_BOUND * peak
    if fine:
        assert trial.judge(reference, model.payload, by="x").max_abs_error > 0
    else:
        with pytest.raises(errors.FidelityError, match="does not compute what x computes"):
            trial.judge(reference, model.payload, by="x")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite(model, trial, value):
    reference = run_onnx(model.payload, trial.feeds)
    reference[3][0][0, 0] = value
    with pytest.raises(errors.FidelityError, match="in the source: True; in the ONNX graph: False"):
        trial.judge(reference, model.payload, by="x")


def test_another_shape_and_another_count(model, trial):
    reference = run_onnx(model.payload, trial.feeds)
    with pytest.raises(errors.FidelityError, match="shape"):
        trial.judge([[run[0][:, :4]] for run in reference], model.payload, by="x")
    with pytest.raises(errors.FidelityError, match="number of outputs"):
        trial.judge([[run[0], run[0]] for run in reference], model.payload, by="x")


def test_axes_of_one_may_come_and_go(model, trial):
    reference = [[run[0][:, None, :]] for run in run_onnx(model.payload, trial.feeds)]
    assert trial.judge(reference, model.payload, by="x").sqnr_db is None


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_feeds_have_the_batch_of_the_model(count, batch, seed):
    spec = TensorSpec("x", "float32", (batch, 2))
    sample = np.random.default_rng(seed).standard_normal((count, 2))
    request = Request(path=Path("x"), origin="x", sample=sample)
    if count < batch:
        with pytest.raises(errors.DataShapeMismatch):
            Trial([spec], request)
        return
    trial = Trial([spec], request)
    assert {feed[0].shape for feed in trial.feeds} == {(batch, 2)}
    used = np.concatenate([feed[0] for feed in trial.feeds])
    np.testing.assert_array_equal(used, sample[: len(used)].astype(np.float32))
    assert trial.samples == len(used)


def test_text_inputs_are_refused():
    with pytest.raises(errors.ModelError, match="type"):
        Trial([TensorSpec("x", "object", (None, 2))], Request(path=Path("x"), origin="x"))


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        (np.full((2, 3, 8, 8), np.nan, np.float32), errors.DataNotFinite),
        (np.zeros((2, 3, 8, 8), np.uint8), errors.DataTypeMismatch),
        (np.zeros((2, 8, 8, 3), np.float32), errors.DataShapeMismatch),
    ],
)
def test_bad_samples_are_named_as_such(model, sample, error):
    with pytest.raises(error) as caught:
        Trial(model.inputs, Request(path=Path("x"), origin="x", sample=sample))
    assert caught.value.remedy
