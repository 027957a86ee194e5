import html.parser
import re
import stat

import msgspec
import pytest

from edgepipe.errors import OutputError
from edgepipe.measure import latency_of
from edgepipe.report.html import render_report, write_report
from edgepipe.store import Run

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, every <data value>, the text, and whether tags nest."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.values, self.text, self.problems, self._open = [], [], [], [], []
        self.feed(page)
        self.close()
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "data":
            self.values.append(float(dict(attributes)["value"]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text.append(data)


@pytest.fixture
def board(make_run):
    return make_run()


def test_nothing_is_fetched_and_nothing_runs(board, embedded, troubled):
    page = render_report([board, embedded, troubled])
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link|<img|<iframe|javascript:|\bon\w+=", page)
    for _, attributes in Page(page).tags:
        assert not {"src", "srcset", "xlink:href", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")


def test_what_an_artifact_ran_on(board):
    page = Page(render_report([board]))
    assert page.text.count("CPU, threads: 4") == 2  # ONNX Runtime, of two artifacts
    assert page.text.count("XNNPACK, threads: 4") == 2


def test_tags_nest(board, embedded, troubled):
    page = Page(render_report([board, embedded, troubled]))
    assert page.problems == []
    assert [tag for tag, _ in page.tags].count("article") == 3


def test_the_figures_are_those_of_the_record(board):
    values = Page(render_report([board])).values
    for result in board.results:
        latency, comparison = latency_of(result.measurement), result.evaluation.comparison
        for figure in (
            result.artifact.size_bytes,
            latency.median_ns.value,
            latency.p90_ns,
            latency.p99_ns,
            latency.runs,
            result.measurement.load_ns,
            result.measurement.first_ns,
            result.measurement.memory.peak_bytes,
            comparison.accuracy.value,
            comparison.difference.value,
            comparison.agreement.value,
            comparison.lost,
            comparison.gained,
        ):
            assert figure in values
    assert board.reference.comparison.accuracy.value in values
    assert board.data.samples in values


def test_figures_change_with_the_record(board):
    slower = tuple(2 * each for each in board.results[3].measurement.latencies_ns)
    changed = msgspec.structs.replace(board.results[3].measurement, latencies_ns=slower)
    result = msgspec.structs.replace(board.results[3], measurement=changed)
    median_ns = latency_of(changed).median_ns.value
    other = msgspec.structs.replace(board, results=(*board.results[:3], result))
    assert median_ns in Page(render_report([other])).values
    assert median_ns not in Page(render_report([board])).values


def test_what_users_and_devices_say_is_escaped(board):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>&'
    page = render_report(
        [
            msgspec.structs.replace(
                board,
                model_name=evil,
                model_source=evil,
                command=evil,
                device={"board": evil, evil: evil, "list": [{"a": evil}]},
                host=evil,
                versions={evil: evil},
                agreement={evil: next(iter(board.agreement.values()))},
            )
        ]
    )
    assert "<script" not in page
    assert "<img" not in page
    parsed = Page(page)
    assert parsed.problems == []
    assert evil in parsed.text


def test_no_embedded_figure_without_its_mark(embedded, board):
    page = Page(render_report([embedded]))
    assert "it is no board's latency" in page.text
    rows = re.findall(r"<tr><td>.*?</tr>", render_report([embedded]).partition("How they run")[2], re.DOTALL)
    measured = [row for row in rows if re.search(r">\d[\d.]* (ms|µs)<", row)]
    assert len(measured) == 4
    for row in measured:
        figures = re.findall(r'<td><data value="[^"]*">[^<]*</data>(.*?)(?:<small>|</td>)', row, re.DOTALL)
        assert len(figures) >= 5
        assert all('class="mark"' in after for after in figures)
    assert "embedded" not in Page(render_report([board])).text


def test_trouble_is_told(troubled):
    text = Page(render_report([troubled])).text
    for expected in (
        "INVALID",
        "out-of-memory: the kernel killed the child",
        "the device throttled: rpi throttled-now",
        "40 runs; the 90th percentile needs 64",
        "37.4 % slower than the first",
        "0.60 to 1.50 GHz",
        "governor is ondemand",
        "Unfit for accuracy claims: calibrated on random data",
        "off by 97 steps",
        "DIFFERS",
        "Not to be quoted",
        "not measured",
        "too few runs",
    ):
        assert expected in text


def test_a_calm_board_is_clear(board):
    text = Page(render_report([board])).text
    assert "CLEAR" in text
    assert "INVALID" not in text


def test_no_sensor_no_joule(make_run, measure):
    board = make_run()
    results = tuple(msgspec.structs.replace(each, measurement=measure(3e6)) for each in board.results)
    text = Page(render_report([msgspec.structs.replace(board, results=results)])).text
    assert "no power sensor on this device" in text
    assert text.count("energy none: no power sensor was found") == 1
    assert " mJ" not in text


def test_a_bare_run_renders(make_run):
    bare = Run(
        id="r",
        created="2026-11-22T14:38:21+00:00",
        edgepipe_version="0.1.0",
        command="edgepipe bench b",
        model_name="m",
        model_source="m.onnx",
        model_digest="0",
        target="x86",
        recipe="int8",
        seed=0,
        bundle_digest="1",
        host="pi@h",
        kind="board",
    )
    assert "Nothing was measured on pi@h" in Page(render_report([bare])).text
    unevaluated = tuple(msgspec.structs.replace(each, evaluation=None) for each in make_run().results)
    text = Page(
        render_report([msgspec.structs.replace(make_run(), results=unevaluated, reference=None, data=None)])
    ).text
    assert "no data to evaluate on" in text


def test_the_same_runs_give_the_same_bytes(board):
    assert render_report([board]) == render_report([board])


def test_the_file_is_written_whole_or_not_at_all(board, tmp_path, monkeypatch):
    write_report([board], tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text() == render_report([board])
    assert stat.S_ISREG((tmp_path / "new" / "report.html").stat().st_mode)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_report([board], tmp_path / "file" / "report.html")
    assert caught.value.remedy
    from pathlib import Path

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="cannot be written"):
        write_report([board], tmp_path / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]
