"""What is shown of an emulated device: everything that it can tell, and no time."""

import io
import re

import msgspec
import pytest
from rich.console import Console

from edgepipe.measure import verdict_of
from edgepipe.report import table
from edgepipe.report.html import render_report

TIME = re.compile(r"\d\s*(ns|µs|ms|s)\b")
HOW_LONG = "how long it takes is not"


@pytest.fixture
def emulated(make_run):
    """A run on an emulated board with a power sensor."""
    run = make_run(kind="emulated")
    results = tuple(
        msgspec.structs.replace(
            each,
            measurement=msgspec.structs.replace(
                each.measurement, kind="emulated", emulation="an emulated device", load_ns=7_654_321
            ),
        )
        for each in run.results
    )
    return msgspec.structs.replace(run, results=results)


def shown(renderable):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_table_has_energy_and_memory_branded_and_no_time(emulated, tmp_path):
    text = shown(table.deploy_summary(emulated, tmp_path))
    measured = text[text.index("measured on") : text.index("in brackets")]
    assert not TIME.search(measured)
    assert "MiB" in measured
    assert measured.count("emulated") >= 5
    assert "an emulator's time says nothing" in measured


def test_the_report_has_no_time_and_no_curve(make_run, emulated):
    page = render_report([emulated])
    device = page[page.index("How they run") : page.index("What to know")]
    assert not TIME.search(re.sub(r"<[^>]+>", " ", device))
    assert "<svg" not in device
    assert HOW_LONG in page
    on_a_board = render_report([make_run()])
    assert "<svg" in on_a_board[on_a_board.index("How they run") : on_a_board.index("What to know")]
    assert HOW_LONG not in on_a_board


def test_two_emulated_runs_compare_without_times(emulated):
    comparison = table.compare(emulated, emulated)
    assert all(each.latency == (None, None) for each in comparison.artifacts)
    assert all(each.latency_ratio is None for each in comparison.artifacts)


def test_few_runs_are_no_reproach_to_an_emulator(measure):
    few = measure(1e6, runs=11, kind="emulated", emulation="QEMU")
    assert [finding.text for finding in verdict_of(few).reasons] == ["emulated: QEMU"]
    assert verdict_of(few).warnings == ()
