"""The commands that list models and losses by name."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.recipe import INDENT

if TYPE_CHECKING:
    from rich.table import Table


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="Part of a name, or a pattern such as 'efficientnet*'. Without it, the models whose weights are on "
            "this machine are listed.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Largest number of models to list.")] = 20,
) -> None:
    """List models with size, own resolution, and whether their weights are on this machine.

    The names are timm's. MODEL@none has random weights.
    """
    from rich.console import Console

    with Console(stderr=True).status("looking for models"):
        from tutelage.evaluation.catalogue import find_models, measured  # PyTorch is imported here

        found = find_models(pattern)
        rows = [measured(*one) for one in found[:limit]]
    table = _table("model", "weights", figures=("params\nM", "size\nMiB", "GMACs", "px"))
    for row in rows:
        macs = "–" if row.gmacs is None else f"{row.gmacs:.3f}"
        table.add_row(
            row.name, row.weights, f"{row.params_m:.2f}", f"{row.size_mb:.2f}", macs, str(row.resolution)
        )
    if rows:
        Console(highlight=False).print(table)
        print("size: parameters and buffers; GMACs: one image at the own resolution (px)")
    if len(found) > limit:
        print(f"{len(found) - limit:,} more: write a longer part of the name, or --limit {len(found)}")
    if pattern is None:
        print(
            "weights on this machine; `tutelage models efficientnet` lists all models with that in their name"
        )


def losses() -> None:
    """List the losses with their settings and defaults, paper, and what each needs."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    with Console(stderr=True).status("looking for losses"):
        from tutelage.distillation.losses.listing import list_losses  # PyTorch is imported here

        found = list_losses()
    console = Console(highlight=False)
    for one in found:
        values = {} if one.temperature is None else {"temperature": one.temperature}
        words = [f"{key}={_shown(value)}" for key, value in (values | one.options).items()]
        console.print(Text.assemble((one.name, "bold cyan"), f"  {' '.join(words)}"))
        paper = f" ({one.paper})" if one.paper else ""
        needs = f" It needs {' and '.join(one.needs)}." if one.needs else ""
        origin = "" if one.built_in else " From an installed package."
        console.print(Padding(Text(f"{one.meaning}{paper}.{needs}{origin}"), (0, 0, 0, INDENT)))
    print()
    print("A recipe names one as loss.name, or several as loss.terms: `tutelage recipe loss`.")
    print("What each costs in time is measured in docs/losses.md.")


def _shown(value: object) -> str:
    if isinstance(value, tuple):  # as in a recipe
        return f"[{', '.join(map(str, value))}]"
    return "..." if value is inspect.Parameter.empty else str(value)


def _table(*texts: str, figures: tuple[str, ...]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in texts:
        table.add_column(title, overflow="fold")
    for title in figures:
        table.add_column(title, justify="right")
    return table
