"""An explanation on the terminal: in words, as a table of layers, with lines to paste."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.text import Text

from edgepipe.quantize.explain.diagnosis import LayerDiagnosis
from edgepipe.quantize.explain.explanation import Explanation, LayerExplanation
from edgepipe.report import text
from edgepipe.report.layout import FigureTable, LongName, figure_table
from edgepipe.units import format_share


def explanation_summary(explanation: Explanation, top: int) -> RenderableType:
    """The summary, the steps, the costliest layers and what would help.

    Args:
        explanation: What to show.
        top: How many layers to show.
    """
    parts: list[RenderableType] = [_headline(explanation), Text()]
    parts += [Text(sentence) for sentence in explanation.summary]
    if explanation.steps:
        parts.append(_steps(explanation))
    parts.append(_layers(explanation, top))
    parts += _remedies(explanation)
    parts.append(_provenance(explanation, top))
    return Group(*parts)


def _headline(explanation: Explanation) -> Text:
    return Text.assemble(
        (explanation.model_name, "bold"),
        f" for {explanation.target}, recipe {explanation.recipe}: outputs at ",
        (decibels(explanation.output_sqnr_db), "bold"),
    )


def _steps(explanation: Explanation) -> FigureTable:
    samples = explanation.steps[0].samples
    table = figure_table(f"recovery step ({samples} samples)", ">output SQNR", ">gained")
    last: float | None = None
    for step in explanation.steps:
        gained = None if last is None or step.output_sqnr_db is None else step.output_sqnr_db - last
        table.add(step.name, decibels(step.output_sqnr_db), text.NONE if gained is None else gain(gained))
        last = step.output_sqnr_db
    return table


def _layers(explanation: Explanation, top: int) -> FigureTable:
    sqnr = ">SQNR\nsteps" if explanation.steps else ">SQNR"
    table = figure_table("layer", ">range", ">clipped", sqnr, ">own", ">cost\n%", ">16\nbits", ">float")
    for each in explanation.layers[:top]:
        table.add(*_cells(each))
    return table


def _cells(each: LayerExplanation) -> list[RenderableType]:
    layer, activation, found = each.layer, each.layer.activation, each.gain
    steps = [decibels(sqnr, unit=False) for sqnr in each.steps if sqnr is not None]
    sqnr = Text(decibels(layer.sqnr_db, unit=False))
    if len(steps) > 1 and steps[0] != steps[-1]:
        sqnr.append(f"\n{steps[0]}→{steps[-1]}", "dim")
    return [
        LongName(layer.name.removesuffix(f"/{layer.op}"), _kind(layer)),
        text.NONE if activation is None else f"{activation.low:.3g}\n{activation.high:.3g}",
        text.NONE if activation is None or not activation.clipped else share(activation.clipped),
        sqnr,
        decibels(layer.local_sqnr_db, unit=False),
        Text(format_share(each.share).removesuffix(" %"), "bold"),
        text.NONE if found is None or found.wide_db is None else gain(found.wide_db, unit=False),
        text.NONE if found is None else gain(found.float_db, unit=False),
    ]


def _kind(layer: LayerDiagnosis) -> str:
    """The op, and the bits of its weight where they are not the usual 8."""
    bits = 8 if layer.weight is None else layer.weight.bits
    return layer.op if bits == 8 else f"{layer.op}, {bits} bits"


def _remedies(explanation: Explanation) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for remedy in explanation.remedies:
        how = "measured by running the recipe with it"
        if remedy.measured == "simulated":
            option = "--requantize" if explanation.steps else "--data"
            how = f"computed for these layers alone; {option} would run the recipe with it"
        parts.append(Text.assemble((f"{gain(remedy.gain_db)} ", "bold green"), (f"{how}:", "dim")))
        parts.append(Syntax(remedy.toml, "toml", background_color="default", word_wrap=True))
        parts.append(Text())
    return parts


def _provenance(explanation: Explanation, top: int) -> Text:
    lines = [
        "SQNR in dB: of each layer's output, with all error before it; own: with float inputs",
        "cost: share of the error at the outputs, each layer quantized alone",
        "16 bits, float: what the outputs gain in dB if this layer alone is left so",
    ]
    source = "golden samples of the bundle; --data FILE gives more" if explanation.golden else (
        f"samples of {explanation.data_source}"
    )  # fmt: skip
    lines.append(f"on {explanation.samples} {source}")
    rest = len(explanation.layers) - top
    if rest > 0:
        others = "layer that costs" if rest == 1 else "layers that cost"
        lines.append(f"and {rest} {others} less: --top {len(explanation.layers)}, or --json")
    return Text("\n".join(lines), "dim")


def decibels(sqnr_db: float | None, *, unit: bool = True) -> str:
    """``24.1 dB``; ``exact`` without an error."""
    if sqnr_db is None:
        return "exact"
    return f"{sqnr_db:.1f} dB" if unit else f"{sqnr_db:.1f}"


def gain(gain_db: float, *, unit: bool = True) -> str:
    """``+1.2 dB``."""
    return f"{text.signed(gain_db)} dB" if unit else text.signed(gain_db)


def share(value: float) -> str:
    """A share of values, small ones too: ``0.3 %``, ``<0.1 %``."""
    return format_share(value) if value >= 1e-3 else "<0.1 %"
