"""Commands that show what edgepipe knows: targets, recipes, passes."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepipe.cli import options as o
from edgepipe.cli.show import print_result

NameArgument = Annotated[str, typer.Argument(help="Its name in the list.", metavar="NAME")]


def register(app: typer.Typer) -> None:
    """Adds the command groups to `app`."""
    for noun, lister, shower in (
        ("targets", list_targets, show_target),
        ("recipes", list_recipes, show_recipe),
        ("passes", list_passes, show_pass),
    ):
        group = typer.Typer(help=f"The {noun} that edgepipe knows.", no_args_is_help=True)
        group.command("list", epilog=f"**Example**: `edgepipe {noun} list`")(lister)
        group.command("show", epilog=f"**Example**: `edgepipe {noun} show NAME --json`")(shower)
        app.add_typer(group, name=noun)


def list_targets(as_json: o.JsonOption = False) -> None:
    """List the boards that edgepipe has a profile of."""
    from edgepipe import target
    from edgepipe.report import catalogue

    targets = target.list_targets()
    print_result(catalogue.targets_table(targets), targets, as_json=as_json)


def show_target(name: NameArgument, as_json: o.JsonOption = False) -> None:
    """Show one profile, with the source of each figure."""
    from edgepipe import target
    from edgepipe.report import catalogue

    found = target.load_target(name)
    print_result(catalogue.record_table(found), found, as_json=as_json)


def list_recipes(as_json: o.JsonOption = False) -> None:
    """List the recipes that come with edgepipe."""
    from edgepipe import recipe
    from edgepipe.report import catalogue

    recipes = recipe.list_recipes()
    print_result(
        catalogue.recipes_table(recipes), [catalogue.recipe_data(each) for each in recipes], as_json=as_json
    )


def show_recipe(name: NameArgument, as_json: o.JsonOption = False) -> None:
    """Show one recipe: its passes and all their settings."""
    from edgepipe import recipe
    from edgepipe.report import catalogue

    found = recipe.load_recipe(name)
    print_result(catalogue.recipe_table(found), catalogue.recipe_data(found), as_json=as_json)


def list_passes(as_json: o.JsonOption = False) -> None:
    """List the passes that a recipe may use."""
    from edgepipe import recipe
    from edgepipe.report import catalogue

    passes = {name: recipe.load_pass(name) for name in recipe.list_passes()}
    print_result(catalogue.passes_table(passes), catalogue.passes_data(passes), as_json=as_json)


def show_pass(name: NameArgument, as_json: o.JsonOption = False) -> None:
    """Show one pass: what it does, where that comes from, and its settings."""
    from edgepipe import recipe
    from edgepipe.report import catalogue

    found = recipe.load_pass(name)
    print_result(catalogue.pass_text(name, found), catalogue.passes_data({name: found}), as_json=as_json)
