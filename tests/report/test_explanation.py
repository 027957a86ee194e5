"""Explanations as people see them: the picture's geometry, the page, and the table to the letter."""

import html.parser
import io
import itertools
import re

import msgspec
import pytest
from rich.console import Console

from edgepipe.quantize.explain.diagnosis import (
    ActivationDiagnosis,
    Diagnosis,
    LayerDiagnosis,
    WeightDiagnosis,
)
from edgepipe.quantize.explain.explanation import Explanation, Gain, LayerExplanation, RecoveryStep, Remedy
from edgepipe.quantize.explain.summary import summarize
from edgepipe.report.explanation import explanation_summary
from edgepipe.report.html import render_explanation, render_report
from edgepipe.report.layout import short
from edgepipe.report.profile import APART, GROUND, NAMED, TOP, profile


class Page(html.parser.HTMLParser):
    """A page's text, and whether its tags nest."""

    def __init__(self, page):
        super().__init__()
        self.words, self.problems, self._open = [], [], []
        self.feed(page)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        if tag not in {"meta", "br"}:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Opens nothing."""

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)


def a_layer(position, *, sqnr=30.0, own=35.0, clipped=0.0, name=None, high=3.0):
    return LayerDiagnosis(
        name=name or f"/block.{position}/Conv",
        op="Conv",
        tensor=f"t{position}",
        readers=(f"/block.{position + 1}/Conv",),
        position=position,
        weight=WeightDiagnosis(bits=8, scales=8, low=-1, high=1, channel_spread=2.0, sqnr_db=44.0),
        activation=ActivationDiagnosis(
            bits=8, low=-1.0, high=high, grid_low=-1.0, grid_high=3.0, clipped=clipped
        ),
        sqnr_db=sqnr,
        local_sqnr_db=own,
        channel_sqnr_db=own,
    )


def a_cost(rank):
    """The costliest layer errs by its weight, the next one clips, the last one was not tried closely."""
    gain = Gain(
        weight_sqnr_db=(26.0, 50.0, 0.0)[rank],
        grid_sqnr_db=(40.0, 31.0, 0.0)[rank],
        float_db=3.25,
        wide_db=-0.1,
    )
    clips = rank == 1
    return LayerExplanation(
        layer=a_layer(2 - rank, sqnr=20.0 + rank, clipped=0.02 * clips, high=9.0 if clips else 3.0),
        alone_sqnr_db=25.0 + rank,
        share=(0.6, 0.3, 0.1)[rank],
        gain=gain if rank < 2 else None,
        steps=(18.0, 20.0 + rank),
    )


@pytest.fixture
def explanation():
    remedy = Remedy(
        kind="float",
        layers=("/block.2/Conv",),
        toml='[[passes.overrides]]\nlayers = ["/block.2/Conv"]\nkeep_float = true',
        gain_db=3.3,
        measured="requantized",
    )
    found = Explanation(
        model_name="net",
        target="x86",
        recipe="int8",
        bundle_digest="0" * 64,
        data_source="val.npz",
        golden=False,
        samples=16,
        output_sqnr_db=24.5,
        layers=tuple(map(a_cost, range(3))),
        steps=tuple(
            RecoveryStep(name=n, output_sqnr_db=db, samples=256)
            for n, db in (("plain", 20.0), ("gptq", 24.5))
        ),
        remedies=(remedy,),
    )
    return msgspec.structs.replace(found, summary=summarize(found))


def test_the_summary_names_shares_causes_and_gains(explanation):
    assert explanation.summary == (
        "1 of 3 layers makes 60.0 % of the error: /block.2/Conv (60.0 %).",
        "/block.2/Conv: the rounding of its weight.",
        "The recipe's steps moved the outputs from 20.0 dB to 24.5 dB (+4.5 dB).",
    )
    flat = msgspec.structs.replace(
        explanation,
        layers=tuple(msgspec.structs.replace(each, share=0.3) for each in explanation.layers),
        steps=(),
    )
    assert summarize(flat) == (
        "2 of 3 layers make 60.0 % of the error: /block.2/Conv (30.0 %), /block.1/Conv (30.0 %).",
        "/block.2/Conv: the rounding of its weight.",
        "/block.1/Conv: 2.0 % of its output is clipped.",
    )
    exact = msgspec.structs.replace(explanation, output_sqnr_db=None)
    assert summarize(exact) == ("Quantization changes nothing at the outputs on these samples.",)


TABLE = """\
net for x86, recipe int8: outputs at 24.5 dB

1 of 3 layers makes 60.0 % of the error: /block.2/Conv (60.0 %).
/block.2/Conv: the rounding of its weight.
The recipe's steps moved the outputs from 20.0 dB to 24.5 dB (+4.5 dB).

 recovery step (256 samples)  output SQNR   gained
 ─────────────────────────────────────────────────
 plain                            20.0 dB        –
 gptq                             24.5 dB  +4.5 dB


                                SQNR        cost    16
 layer     range  clipped      steps   own     %  bits  float
 ────────────────────────────────────────────────────────────
 /block.2     -1        –       20.0  35.0  60.0  −0.1   +3.2
 Conv          3           18.0→20.0
 /block.1     -1    2.0 %       21.0  35.0  30.0  −0.1   +3.2
 Conv          9           18.0→21.0

+3.3 dB measured by running the recipe with it:
[[passes.overrides]]
layers = ["/block.2/Conv"]
keep_float = true

SQNR in dB: of each layer's output, with all error before it; own: with float
inputs
cost: share of the error at the outputs, each layer quantized alone
16 bits, float: what the outputs gain in dB if this layer alone is left so
on 16 samples of val.npz
and 1 layer that costs less: --top 3, or --json
"""


def shown(renderable, width):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def test_the_table_at_80_columns(explanation):
    assert shown(explanation_summary(explanation, 2), 80) == TABLE


@pytest.mark.parametrize("width", [50, 76, 120])
def test_no_line_is_wider_than_the_terminal(explanation, width):
    text = shown(explanation_summary(explanation, 10), width)
    assert max(map(len, text.splitlines())) <= width
    assert "/block.0" in text


def test_long_names_keep_their_end():
    assert short("a" * 20, 20) == "a" * 20
    assert short("/model/features/block.17/project", 20) == "…/block.17/project"
    assert short("/model/features/block.17/project", 12) == "…/project"
    assert short("/model/features/block.17/projection", 8) == "…jection"


def test_better_sqnr_is_drawn_higher_and_order_is_that_of_computation(explanation):
    drawn = profile(explanation)
    assert [mark.x for mark in drawn.marks] == sorted(mark.x for mark in drawn.marks)
    assert [mark.cost > 0 for mark in drawn.marks] == [True] * 3
    assert max(drawn.marks, key=lambda mark: mark.cost) is drawn.marks[-1]  # rank 0 is position 2
    for mark in drawn.marks:
        assert TOP <= mark.own < mark.reached <= GROUND
    assert [mark.clipped > 0 for mark in drawn.marks] == [False, True, False]
    assert all("reached" in mark.title and "own" in mark.title for mark in drawn.marks)


@pytest.mark.parametrize("count", [3, 40, 200])
def test_names_do_not_touch(count):
    layers = tuple(a_layer(position, own=10.0 + position) for position in range(count))
    named = [
        mark for mark in profile(Diagnosis(samples=4, output_sqnr_db=20.0, layers=layers)).marks if mark.name
    ]
    assert named[0].name == layers[0].name  # the worst of all
    assert all(second.x - first.x >= APART for first, second in itertools.pairwise(named))
    assert len(named) == min(count, NAMED)


def test_a_diagnosis_is_drawn_without_costs():
    layers = (a_layer(0, sqnr=None), a_layer(1, sqnr=-7.0), a_layer(2, sqnr=90.0, own=None))
    drawn = profile(Diagnosis(samples=4, output_sqnr_db=20.0, layers=layers))
    assert not drawn.costs
    assert [mark.reached is None for mark in drawn.marks] == [True, False, False]
    assert drawn.marks[1].reached <= GROUND
    assert drawn.marks[2].reached == TOP  # beyond what is told apart
    assert profile(Diagnosis(samples=4, output_sqnr_db=None, layers=())) is None


def test_the_page_is_sound_and_fetches_nothing(explanation):
    page = render_explanation(explanation)
    found = Page(page)
    assert found.problems == []
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link|<img|<iframe|javascript:|\bon\w+=", page)
    for word in ("/block.2/Conv", "60.0 %", "keep_float = true", "+3.3 dB", "gptq", "layer by layer"):
        assert word in found.text
    assert render_explanation(explanation) == page


def test_names_of_layers_are_no_markup(explanation):
    [first, *rest] = explanation.layers
    evil = msgspec.structs.replace(first.layer, name="<b>[bold]</b>")
    changed = msgspec.structs.replace(explanation, layers=(msgspec.structs.replace(first, layer=evil), *rest))
    assert "<b>[bold]" not in render_explanation(changed)
    assert "<b>[bold]</b>" in shown(explanation_summary(changed, 3), 100)


def test_a_run_shows_its_layers(make_run):
    diagnosis = Diagnosis(samples=4, output_sqnr_db=20.0, layers=(a_layer(0), a_layer(1, clipped=0.1)))
    page = Page(render_report([make_run(diagnosis=diagnosis)]))
    assert page.problems == []
    assert "What INT8 costs each layer" in page.text
    assert "What INT8 costs each layer" not in Page(render_report([make_run()])).text


def test_the_table_says_where_a_weight_is_narrow(explanation):
    console = Console(width=80, file=io.StringIO(), color_system=None)
    first = explanation.layers[0]
    narrow = msgspec.structs.replace(first.layer.weight, bits=3)
    layer = msgspec.structs.replace(first.layer, weight=narrow)
    changed = (msgspec.structs.replace(first, layer=layer), *explanation.layers[1:])
    console.print(explanation_summary(msgspec.structs.replace(explanation, layers=changed), 10))
    shown = console.file.getvalue()
    assert shown.count("Conv, 3 bits") == 1
    assert "8 bits" not in shown
