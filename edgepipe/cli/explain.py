"""`edgepipe explain`: which layers lose the accuracy, why, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.show import ProgressView, print_result

EPILOG = """
**Examples**

`edgepipe explain bundle --data val.npz`

`edgepipe explain bundle --top 20 -o layers.html`
"""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog=EPILOG)(explain)


def explain(
    bundle: o.BundleArgument,
    data: o.DataOption = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="The float model.", show_default="the bundle's float artifact"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the data to measure on.", min=1)] = 16,
    top: Annotated[int, typer.Option(help="How many of the costliest layers to show.", min=1)] = 10,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Run the recipe with every remedy, however long that takes.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write an HTML report too.", show_default=False)
    ] = None,
    store: o.StoreOption = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Show which layers of a bundle lose the accuracy, why, and what would help, measured."""
    from edgepipe import job as jobs
    from edgepipe import workflow
    from edgepipe.report import explanation as shown
    from edgepipe.report.html import write_explanation
    from edgepipe.workflow.deployment import CACHE

    spec = None if data is None else jobs.resolve_data(data, None, jobs.current_project())
    cache = store / CACHE if store.is_dir() else None  # where `deploy` keeps results of passes too
    with ProgressView() as emit:
        depth = workflow.Depth(samples=samples, closely=top, requantize=requantize)
        found = workflow.explain(bundle, data=spec, against=against, depth=depth, cache=cache, emit=emit)
        if output is not None:
            write_explanation(found, output)
    print_result(shown.explanation_summary(found, top), found, as_json=as_json)
