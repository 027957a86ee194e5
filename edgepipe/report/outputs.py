"""Outputs of several places on the terminal: exact, or how far apart, and from which layer on."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from edgepipe.measure.outputs import LayerDifference, OutputsReport, Site, SiteOutputs, steps
from edgepipe.report import text
from edgepipe.report.layout import FigureTable, figure_table
from edgepipe.units import format_share

MOST_LAYERS = 12
_KINDS = {"embedded": "embedded: the host's CPU, no board", "emulated": "emulated"}


def outputs_summary(report: OutputsReport) -> RenderableType:
    """The sites, a row for each artifact with a column for each site, and layers if asked for."""
    head = Text.assemble((report.model_name, "bold"), f" on {report.samples} samples, {report.source}")
    parts: list[RenderableType] = [head, Text(f"compared with {report.reference}", "dim")]
    parts += [Text(f"{site.name}: {_site(site)}", "dim") for site in report.sites]
    parts.append(_artifacts(report))
    parts += _pairs(report)
    for result in report.results:
        if result.reason:
            parts.append(Text(f"{result.artifact} on {result.site} did not run: {result.reason}", "yellow"))
    for artifact in dict.fromkeys(each.artifact for each in report.results):
        parts += _layers(artifact, [each for each in report.results if each.artifact == artifact])
    return Group(*parts)


def _site(site: Site) -> str:
    kind = f" [{_KINDS[site.kind]}]" if site.kind in _KINDS else ""
    return f"{site.description}, {site.architecture}{kind}"


def _artifacts(report: OutputsReport) -> FigureTable:
    table = figure_table("artifact", *(site.name for site in report.sites), title="outputs, bit for bit")
    results = {(each.artifact, each.site): each for each in report.results}
    for artifact in dict.fromkeys(each.artifact for each in report.results):
        cells = [_cell(results[artifact, site.name]) for site in report.sites]
        table.add(Text(artifact, "bold"), *cells)
    return table


def _cell(found: SiteOutputs) -> Text:
    if found.reason:
        return Text(text.NONE)
    ran_on = f"\n{found.runtime} {found.runtime_version}".rstrip()
    style = "green" if found.exact else "bold red" if found.not_finite else "yellow"
    return Text.assemble((str(found), style), (ran_on, "dim"))


def _pairs(report: OutputsReport) -> list[RenderableType]:
    """Places that agree with each other though not with the reference, and those that do not."""
    apart = {(each.artifact, each.site) for each in report.results if not each.exact}
    lines = []
    for pair in report.pairs:
        if (pair.artifact, pair.first) in apart and (pair.artifact, pair.second) in apart:
            how = (
                f"differ on {pair.differing_samples} samples"
                if pair.differing_samples
                else "agree bit for bit"
            )
            lines.append(Text(f"{pair.artifact}: {pair.first} and {pair.second} {how}", "dim"))
    return [*lines]


def _layers(artifact: str, results: list[SiteOutputs]) -> list[RenderableType]:
    """The layers of one artifact from the first that differs anywhere."""
    looked = [each for each in results if each.layers]
    if not looked:
        return []
    parts: list[RenderableType] = []
    differing = [
        at for at in range(len(looked[0].layers)) if any(each.layers[at].differing for each in looked)
    ]
    if not differing:
        count = len(looked[0].layers)
        parts.append(Text.assemble((artifact, "bold"), f": all {count} layers are exact everywhere"))
    else:
        table = figure_table(f"layer of {artifact}", *(each.site for each in looked))
        for at in differing[:MOST_LAYERS]:
            first = looked[0].layers[at]
            name = Text.assemble((first.layer, "bold"), (f"\n{first.op}, layer {at + 1}", "dim"))
            table.add(name, *(_layer_cell(each.layers[at]) for each in looked))
        parts.append(table)
        rest = len(differing) - MOST_LAYERS
        if rest > 0:
            parts.append(Text(f"and {rest} later layers that differ: --json", "dim"))
    if any(each.disturbed for each in looked):
        note = "returning its layers changes its outputs, as less is fused: all here is told of that form"
        parts.append(Text(f"{artifact}: {note}", "yellow"))
    return parts


def _layer_cell(layer: LayerDifference) -> Text:
    if not layer.differing:
        return Text("exact", "green")
    far = f"{layer.worst_relative:.1e} of the range"
    if layer.worst_steps is not None:
        far = steps(layer.worst_steps)
    share = layer.differing / layer.elements
    return Text.assemble(
        (far, "yellow"), (f"\n{format_share(share) if share >= 1e-3 else '<0.1 %'} of its values", "dim")
    )
