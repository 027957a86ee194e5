import io
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from device_agent import protocol
from edgepipe.bundle import Bundle, Manifest
from edgepipe.evaluate import Judged
from edgepipe.measure import Reading
from edgepipe.report import table
from edgepipe.report.layout import LongName, figure_table
from edgepipe.report.view import notes_of, view_of
from edgepipe.store import save_run, summarize
from edgepipe.units import format_bytes


def shown(renderable, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def row(text, name, after=""):
    """The row of an artifact, its second line included, in the table that begins with `after`."""
    lines = text[text.index(after) :].splitlines()
    first = next(index for index, line in enumerate(lines) if line.lstrip().startswith(name))
    return lines[first] + lines[first + 1]


def test_a_run_on_a_board(make_run, tmp_path):
    text = shown(table.deploy_summary(make_run(), tmp_path))
    assert text.startswith("VALID  digits-cnn → raspberrypi4 on Raspberry Pi 4 Model B")
    host = row(text, "int8.tflite", "computed on this host")
    assert all(
        figure in host for figure in ("945 KiB", "98.0 %", "[96.9, 98.7]", "−0.5 pt", "99.2 %", "16.0 dB")
    )
    device = row(text, "int8.tflite", "measured on")
    assert all(figure in device for figure in ("3.10 ms", "3.19 ms", "2.39×", "71.0 MiB", "38.6 mJ", "VALID"))
    assert "int8.onnx = int8.tflite: 99.6 % of samples" in text
    assert "embedded" not in text


def test_what_an_artifact_ran_on_stands_below_its_runtime(make_run, tmp_path):
    device = shown(table.deploy_summary(make_run(), tmp_path)).partition("measured on")[2]
    assert device.count("CPU, threads: 4") == 2  # ONNX Runtime, of two artifacts
    assert device.count("XNNPACK, threads: 4") == 2


def test_a_missing_energy_says_why(make_run, measure, tmp_path):
    run = make_run()
    results = tuple(msgspec.structs.replace(each, measurement=measure(3e6)) for each in run.results)
    text = shown(table.deploy_summary(msgspec.structs.replace(run, results=results), tmp_path))
    assert text.count("energy none: no power sensor was found") == 1


def test_host_and_device_figures_never_share_a_row(make_run, tmp_path):
    lines = shown(table.deploy_summary(make_run(), tmp_path)).splitlines()
    assert not [line for line in lines if " ms" in line and " dB" in line]


def test_every_device_column_of_an_embedded_run_is_marked(embedded, tmp_path):
    text = shown(table.deploy_summary(embedded, tmp_path))
    assert "[embedded: the host's CPU, no board]" in text
    head = next(line for line in text.splitlines() if line.count("embedded") > 1)
    assert head.split() == ["artifact", *["embedded"] * 5, "verdict"]
    assert "use --host to measure a board" in text


def test_trouble_is_told_with_its_artifact_and_its_remedy(troubled, tmp_path):
    text = shown(table.deploy_summary(troubled, tmp_path), width=220)
    assert text.startswith("INVALID")
    for expected in (
        "unfit for accuracy claims: calibrated on random data",
        "float32.onnx: out-of-memory: the kernel killed the child\n  → free memory",
        "int8.onnx: the device throttled: rpi throttled-now\n  → cool it",
        "off by 97 steps",
    ):
        assert expected in "\n".join(line.rstrip() for line in text.splitlines())
    assert "more: see the report" in text  # reasons first: what else was seen would bury them
    notes = notes_of(view_of(troubled))
    assert sum("cpupower" in note.advice for note in notes) == 1  # one remedy for the clock and the governor
    assert "out-of-memory" in row(text, "float32.onnx", "measured on")
    assert "not measured" in row(text, "int8.tflite", "measured on")


def test_few_warnings_are_told_whole(make_run, tmp_path):
    run = with_measurements(make_run(), governors={"policy0": "ondemand"})
    text = shown(table.deploy_summary(run, tmp_path))
    assert text.count("the CPU frequency governor is ondemand") == 1
    assert "cpupower" in text
    assert "more: see the report" not in text


def test_the_report_is_named_only_where_it_is(make_run, tmp_path):
    run = make_run()
    assert "report " not in shown(table.deploy_summary(run, tmp_path))
    folder = save_run(tmp_path, run)
    (folder / "report.html").write_text("")
    text = shown(table.deploy_summary(run, tmp_path), width=300)
    assert str(folder / "report.html") in text
    assert str(folder / "run.json") in text


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_a_terminal(make_run, embedded, tmp_path, width):
    for run in (make_run(), embedded):
        parts = (
            table.deploy_summary(run, tmp_path),
            table.runs_table([summarize(run)]),
            table.comparison_table(table.compare(run, make_run())),
        )
        for part in parts:
            lines = shown(part, width).splitlines()
            assert max(map(len, lines)) <= width
            assert len(lines) < 65
        assert shown(parts[0], width).count("VALID") == 1 + len(run.results)  # nothing is cropped


@pytest.mark.parametrize("width", [60, 76, 80, 100, 120])
def test_no_word_is_broken(make_run, width):
    """Names of operators and packages, with their counts and versions, and figures with their units."""
    operators = {"DequantizeLinear": 162, "GlobalAveragePool": 1, "DEPTHWISE_CONV_2D": 16, "Conv": 9}
    run = make_run()
    artifact = msgspec.structs.replace(run.results[0].artifact, op_counts=operators)
    names = [msgspec.structs.replace(artifact, name=name) for name in ("float32.tflite", "int8.tflite")]
    manifest = Manifest(
        edgepipe_version="0.1.0", model_name="net", model_source="net.onnx", model_digest="0" * 64, inputs=(),
        outputs=(), target="x86", recipe="int8", seed=0, calibration=None, steps=(), artifacts=tuple(names),
        versions={},
    )  # fmt: skip
    bundle = Bundle(folder=Path("bundle"), manifest=manifest, digest="0" * 64)
    text = shown(table.bundle_summary(bundle), width)
    words = text.replace(",", " ").split()
    for name, count in operators.items():
        assert words.count(f"{count}×{name}") == 2
    for name, version in artifact.needs.items():
        assert words.count(f"{name}≥{version}") == 2
    assert max(map(len, text.splitlines())) <= width
    figure = format_bytes(artifact.size_bytes)
    assert len(re.findall(rf"(?m){re.escape(figure)}\b", text)) >= 2


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_lose_whole_parts(width):
    name = "/model/features.14/conv.1/depthwise/Conv"
    grid = figure_table("layer", *(f">figure {number}" for number in range(5)))
    grid.add(LongName(name, "Conv"), *["12.3 dB"] * 5)
    [line] = [line for line in shown(grid, width).splitlines() if "12.3 dB" in line]
    assert line.split()[0] == (name if width == 120 else "…/conv.1/depthwise/Conv")
    assert line.count("12.3 dB") == 5


@pytest.mark.parametrize("width", [50, 64])
def test_a_narrow_terminal_shows_a_figure_a_line(make_run, embedded, tmp_path, width):
    for run in (make_run(), embedded):
        summary = shown(table.deploy_summary(run, tmp_path), width)
        listed = shown(table.runs_table([summarize(run)]), width)
        compared = shown(table.comparison_table(table.compare(run, run)), width)
        assert max(map(len, (summary + listed + compared).splitlines())) <= width
        lines = [line.split() for line in summary.splitlines()]
        assert ["verdict", "VALID"] in lines
        assert any(line[-4:] == ["3.10", "ms", "[3.10,", "3.11]"] for line in lines)
        assert any(line[-4:] == ["98.0", "%", "[96.9,", "98.7]"] for line in lines)
        assert listed.count("verdict  VALID") == len(run.results)
        assert "3.10 ms" in listed
        assert "945 KiB → 945 KiB" in compared


def test_a_bare_run_is_shown(make_run, tmp_path):
    run = msgspec.structs.replace(make_run(), results=(), reference=None, data=None, agreement={}, device={})
    text = shown(table.deploy_summary(run, tmp_path))
    assert "NOT MEASURED" in text
    assert "not evaluated: no data" in text


def test_the_list_of_runs(make_run, embedded):
    text = shown(table.runs_table([summarize(make_run()), summarize(embedded)]), width=200)
    assert text.count("20261122T143821Z") == 2
    assert "3.10 ms (embedded)" in text
    assert text.count("(embedded)") == 4
    assert "no runs yet" in shown(table.runs_table([]))


def test_an_unreadable_run_is_listed():
    from edgepipe.store import RunSummary

    assert "half a file" in shown(
        table.runs_table([RunSummary(id="broken", problem="half a file")]), width=200
    )


def test_comparable_runs_get_ratios(make_run, measure):
    run = make_run()
    slower = tuple(
        msgspec.structs.replace(each, measurement=measure(9e6, runtime="litert", threads=2))
        for each in run.results
    )
    other = msgspec.structs.replace(run, id="other", results=slower, agent_digest="aa" * 32)
    comparison = table.compare(run, other)
    assert comparison.latency_barriers == comparison.accuracy_barriers == ()
    ratio = comparison.artifacts[3].latency_ratio
    assert ratio.low < 9e6 / 3.1e6 < ratio.high
    assert comparison.artifacts[3].differences == ("the threads differ: 4, and 2",)
    text = shown(table.comparison_table(comparison), width=200)
    assert "2.90×" in text
    assert "the threads differ: 4, and 2" in text
    assert "the agents differ" in text
    assert "not comparable" not in text


def test_a_board_and_an_embedded_device_are_not_compared(make_run, embedded):
    comparison = table.compare(make_run(), embedded)
    assert all(each.latency_ratio is None for each in comparison.artifacts)
    assert any("a board" in why for why in comparison.latency_barriers)
    text = shown(table.comparison_table(comparison), width=200)
    assert "latency, memory and energy are not comparable" in text
    assert text.count("(embedded)") == 2 * 4


@pytest.mark.parametrize(
    ("changes", "barrier"),
    [
        ({"device": {"board": "Raspberry Pi 5"}}, "devices differ"),
        ({"kind": "emulated"}, "an emulator"),
    ],
)
def test_barriers_to_latency(make_run, changes, barrier):
    comparison = table.compare(make_run(), make_run(**changes))
    assert any(barrier in why for why in comparison.latency_barriers)
    assert comparison.accuracy_barriers == ()
    assert comparison.artifacts[0].latency_ratio is None


def with_measurements(run, **changes):
    results = tuple(
        msgspec.structs.replace(each, measurement=msgspec.structs.replace(each.measurement, **changes))
        for each in run.results
    )
    return msgspec.structs.replace(run, results=results)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cpu_ns": 1}, "in B other processes left it 0.0 % of a core"),
        (
            {"throttle_after": (Reading(source="rpi", name="throttled-now", value=1, unit="flag"),)},
            "B is INVALID: the device throttled",
        ),
    ],
)
def test_latencies_that_other_load_or_throttling_made_are_not_compared(make_run, changes, why):
    run = make_run()
    comparison = table.compare(run, with_measurements(run, **changes))
    assert all(each.latency_ratio is None for each in comparison.artifacts)
    assert all(why in each.latency_barriers[0] for each in comparison.artifacts)
    text = shown(table.comparison_table(comparison), width=200)
    assert f"int8.tflite is not comparable: {why}" in text
    assert table.compare(run, run).artifacts[0].latency_barriers == ()


def test_an_accelerators_process_may_wait(make_run):
    run = with_measurements(make_run(), cpu_ns=1, providers=("TensorrtExecutionProvider",))
    assert table.compare(run, run).artifacts[0].latency_ratio


def test_a_comparison_says_what_weakens_it(make_run):
    run, loud = make_run(), with_measurements(make_run(), governors={"policy0": "ondemand"})
    lines = shown(table.comparison_table(table.compare(loud, loud)), width=300).splitlines()
    governor = [line for line in lines if "governor is ondemand" in line]
    assert [line.strip() for line in governor] == [
        "the CPU frequency governor is ondemand, not performance"  # once, as all have it
    ]
    text = shown(table.comparison_table(table.compare(run, loud)), width=300)
    assert "int8.tflite in B: the CPU frequency governor is ondemand" in text
    assert "within each run alone" in text
    assert msgspec.json.encode(table.compare(run, loud))


def test_many_caveats_are_cut_short(make_run):
    run = make_run()
    results = tuple(
        msgspec.structs.replace(
            each,
            measurement=msgspec.structs.replace(
                each.measurement,
                governors={"policy0": f"governor{n}"},
                load_average=10.0 + n,
                involuntary_switches=10**6 * (n + 1),
            ),
        )
        for n, each in enumerate(run.results)
    )
    text = shown(
        table.comparison_table(table.compare(run, msgspec.structs.replace(run, results=results))), 300
    )
    assert "and 4 more: see `edgepipe runs show`" in text


def test_two_emulated_runs_are_not_compared(make_run):
    run = make_run(kind="emulated")
    assert "both were emulated" in table.compare(run, run).latency_barriers[0]


def test_other_data_forbids_comparing_accuracy(make_run):
    run = make_run()
    other = make_run(data=msgspec.structs.replace(run.data, digest="ff" * 32))
    assert "other evaluation data" in table.compare(run, other).accuracy_barriers[0]
    assert table.compare(run, make_run(data=None)).accuracy_barriers
    text = shown(table.comparison_table(table.compare(run, other)), width=200)
    assert "accuracy is not comparable" in text


def test_what_only_one_run_has_is_named(make_run):
    run = make_run()
    comparison = table.compare(run, msgspec.structs.replace(run, results=run.results[:2]))
    assert comparison.only_first == ("int8.onnx", "int8.tflite")
    assert msgspec.json.encode(comparison)


def test_an_evaluation(make_run):
    run = make_run()
    judged = Judged(
        reference=run.reference,
        artifacts={each.artifact.name: each.evaluation for each in run.results},
        agreement=run.agreement,
    )
    text = shown(table.evaluation_table(judged))
    assert "98.0 %" in row(text, "int8.tflite")
    assert "1000 samples of val.npz" in text


def test_markup_in_names_is_not_interpreted(make_run, tmp_path):
    run = make_run(model_name="[red]net[/red]", host="[bold]h")
    assert "[red]net[/red]" in shown(table.deploy_summary(run, tmp_path))
    assert "[bold]h" in shown(table.runs_table([summarize(run)]), width=200)


def test_facts():
    policy = protocol.CpuPolicy("policy0", "0-3", "ondemand", 600_000, 600_000, 1_800_000)
    told = {
        "board": "Raspberry Pi 4 Model B",
        "cpu": protocol.CpuFacts("Cortex-A72", "aarch64", ("neon",), 3, 4, (policy,)),
        "memory": protocol.MemoryFacts(4 << 30, 2 << 30, 0, 0, None),
        "system": protocol.SystemFacts("Debian 12", "6.6", "glibc 2.36"),
        "python": protocol.PythonFacts("3.11.2", "CPython", "/usr/bin/python3", 64),
        "runtimes": (protocol.RuntimeFacts("litert", "ai-edge-litert", "2.3.0", None, ""),),
        "sensors": (protocol.SensorFacts("rapl", False, "soc", (), ""),),
        "throttle": (protocol.Reading("rpi", "throttled-now", 0, "flag"),),
        "temperatures": (protocol.Reading("thermal", "cpu-thermal", 51_200, "mc"),),
        "load_average": 0.25,
        "disk_free_bytes": 8 << 30,
        "emulated": False,
    }
    text = shown(table.facts_table(protocol.Facts(**{**dict.fromkeys(protocol.Facts._fields, ""), **told})))
    for expected in (
        "Cortex-A72, aarch64, 3 of 4 cores",
        "ondemand 0.60 to 1.80 GHz",
        "4.00 GiB",
        "51 °C",
        "litert 2.3.0",
    ):
        assert expected in text
    assert any(line.split() == ["power", "sensors", "none"] for line in text.splitlines())
