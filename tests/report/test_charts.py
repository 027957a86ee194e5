import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.evaluate import Estimate
from edgepipe.measure import latency_of
from edgepipe.report import charts
from edgepipe.report.view import view_of


def path_points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_a_histogram_holds_every_run_that_its_axis_shows(make_run):
    run = make_run()
    drawn = charts.histograms(view_of(run).results)
    assert not drawn.logarithmic
    for row, result in zip(drawn.rows, run.results, strict=True):
        latency = latency_of(result.measurement)
        assert charts.LEFT <= row.median <= row.p90 <= charts.WIDTH - charts.RIGHT
        assert row.label == charts.format_ns(latency.median_ns.value)
        # The tallest bin reaches the same height in every row, and stands near the median.
        tallest = min(y for _, y in path_points(row.area))
        assert row.base - tallest == pytest.approx(charts.ROW - 14)
        peaks = [x for x, y in path_points(row.area) if y == tallest]
        assert abs(np.mean(peaks) - row.median) < 25


def test_medians_stand_in_order_on_the_axis(make_run):
    rows = charts.histograms(view_of(make_run()).results).rows
    assert rows[3].median < rows[2].median < rows[1].median < rows[0].median


def test_far_medians_make_the_axis_logarithmic(make_run, measure):
    run = make_run()
    medians = (1e5, 1e6, 1e7, 1e8)
    results = tuple(
        msgspec.structs.replace(each, measurement=measure(ns))
        for each, ns in zip(run.results, medians, strict=True)
    )
    drawn = charts.histograms(view_of(msgspec.structs.replace(run, results=results)).results)
    assert drawn.logarithmic
    gaps = np.diff([row.median for row in drawn.rows])
    assert gaps == pytest.approx([gaps[0]] * 3, rel=0.02)


def test_a_trace_rises_with_the_latencies(troubled):
    drawn = {each.name: each for each in charts.traces(view_of(troubled).results)}
    heights = [y for _, y in path_points(drawn["int8.onnx"].line)]
    assert heights[0] - heights[-1] > 30
    assert set(drawn) == {"float32.tflite", "int8.onnx"}


def test_nothing_measured_nothing_drawn(make_run):
    run = make_run()
    bare = tuple(msgspec.structs.replace(each, measurement=None) for each in run.results)
    views = view_of(msgspec.structs.replace(run, results=bare)).results
    assert charts.histograms(views) is None
    assert charts.traces(views) == ()
    assert charts.forest([]) is None


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3).map(sorted), min_size=1, max_size=5))
def test_a_forest_keeps_order_and_stays_on_the_page(triples):
    drawn = charts.forest([("a", Estimate(value, low, high)) for low, value, high in triples])
    for row, (_, value, _) in zip(drawn.rows, triples, strict=True):
        assert charts.LEFT - 0.01 <= row.low <= row.value <= row.high <= charts.WIDTH - charts.RIGHT + 0.01
        assert (row.value <= drawn.zero) if value <= 0 else (row.value >= drawn.zero)
    assert any(tick.label == "0" and tick.at == drawn.zero for tick in drawn.ticks)


@pytest.mark.parametrize("runs", [11, 64, 5000])
def test_equal_latencies_can_be_drawn(make_run, measure, runs):
    run = make_run()
    flat = msgspec.structs.replace(measure(1e6), latencies_ns=(1_000_000,) * runs)
    results = (msgspec.structs.replace(run.results[0], measurement=flat),)
    views = view_of(msgspec.structs.replace(run, results=results)).results
    assert charts.histograms(views).rows[0].beyond == 0
    assert "nan" not in charts.traces(views)[0].line
