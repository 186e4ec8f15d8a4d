"""The command that looks at images before anything is trained on them."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import DeviceOption, option


def data(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Training images, as KIND:WHERE or a path, and keys of the recipe such as data.val_fraction=0.2.",
            metavar="SOURCE [KEY=VALUE]...",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        str | None, option("Test images, as KIND:WHERE or a path.", "a part of SOURCE, as in a run")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Pretrained network by whose features labels are checked, as NAME@WEIGHTS; none: they are not."
        ),
    ] = "tf_efficientnet_lite0",
    device: DeviceOption = None,
    out: Annotated[Path, typer.Option(help="File for the page with pictures.", dir_okay=False)] = Path(
        "data-report.html"
    ),
    json: Annotated[Path | None, option("Write the findings as JSON.", False, dir_okay=False)] = None,
    fix: Annotated[
        Path | None,
        option(
            "Write a list of images to leave out, for data.exclude=LIST.",
            False,
            dir_okay=False,
            metavar="LIST",
        ),
    ] = None,
    fetch: Annotated[
        str | None,
        option(
            "Download a data set to try things on, such as EuroSAT, FashionMNIST, OxfordIIITPet or Flowers102, and "
            "write it as a folder of images.",
            False,
            metavar="NAME",
        ),
    ] = None,
    into: Annotated[Path | None, option("Folder for --fetch.", "NAME", file_okay=False)] = None,
) -> None:
    """Look at images before training: copies, doubtful labels, small classes, and pictures that show little."""
    from tutelage.core.errors import TutelageError

    if fetch:
        if words:
            raise TutelageError(
                f"--fetch {fetch} and {words[0]}: fetch a data set first, then look at its folder"
            )
        return _fetch(fetch, into or Path(fetch.rpartition(":")[2]))
    if not words:
        raise TutelageError("data: name the images to look at, such as `tutelage data photos`")
    if into:
        raise TutelageError(f"--into {into}: it is the folder for --fetch NAME, which is not given")
    _look(words, test, model, device, out, json, fix)


def _fetch(name: str, folder: Path) -> None:
    from tutelage.data.fetch import PARTS, fetch
    from tutelage.pipeline.console import shown_steps
    from tutelage.pipeline.early import check_place

    check_place(folder.parent)
    print_now = functools.partial(print, flush=True)  # before a download that may take long
    with shown_steps() as say:

        def step(done: int, total: int) -> None:
            if done % 5000 == 0 or done == total:
                say(f"wrote {done:,} of {total:,} images")

        splits = fetch(name, folder, print_now, step)
    sizes = ", ".join(f"{len(splits.parts[part]):,} {part}" for part in PARTS)
    print(f"{folder}: {sizes}, {len(splits.classes)} classes")
    print(shlex.join(["tutelage", "distill", "--data", str(folder)]))


def _look(
    words: list[str],
    test: str | None,
    model: str,
    device: str | None,
    out: Path,
    json: Path | None,
    fix: Path | None,
) -> None:
    from rich.console import Console

    from tutelage.core.errors import TutelageError
    from tutelage.core.files import write_json, write_text
    from tutelage.core.recipe import load_recipe
    from tutelage.data.sources.tree import counted
    from tutelage.pipeline.console import shown_steps
    from tutelage.pipeline.early import check_place

    source, *overrides = words
    if other := [word for word in overrides if not word.startswith("data.")]:
        raise TutelageError(f"{other[0]}: only keys of data can be given here, such as data.val_fraction=0.2")
    recipe = load_recipe(None, overrides, {"SOURCE": ("data.train", source), "--test": ("data.test", test)})
    for place in filter(None, (out, json, fix)):
        check_place(place.parent)
    if fix and fix.exists():
        raise TutelageError(
            f"--fix {fix}: this file exists, and its lines may have been edited; remove it or name another one"
        )
    from tutelage.pipeline.doctor import check_data  # PyTorch is imported here
    from tutelage.pipeline.doctor.table import show
    from tutelage.report.data_page import write_data_page

    with shown_steps() as say:
        checkup = check_data(recipe.data, model, device, say)
        say("writing the page")
        write_data_page(checkup, out)
    show(checkup, Console())
    text, count, doubtful = checkup.leave_out()
    if json:
        write_json(json, checkup.to_dict())
    what = counted(count, "image") + (f", and {doubtful:,} more as comments" if doubtful else "")
    if fix:
        write_text(fix, text)
        print(f"{fix} lists {what}; look through it, then:" if count + doubtful else f"{fix} is empty")
        held = [f"data.test={test}"] if test else []
        print(shlex.join(["tutelage", "distill", "--data", source, *overrides, *held, f"data.exclude={fix}"]))
    elif count + doubtful:
        print(f"--fix LIST writes a list of images to leave out: {what}")
    print(f"the page is {out}")
