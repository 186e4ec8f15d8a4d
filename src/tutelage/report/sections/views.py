"""The augmented views that the models were trained on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.report.class_names import class_names
from tutelage.report.page import Section, awaited, missing, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.sections.data import recipe, splits


def views_section(records: RunRecords) -> Section:
    """Show some training images as the models are given them."""
    id, title = "views", "Training images as the models receive them"
    preflight = records.preflight or {}
    inputs = {who: (preflight.get(who) or {}).get("input") for who in ("teacher", "student")}
    if not all(inputs.values()):
        return awaited(id, title, f"The input sizes of the models are not recorded yet: {records.reached}.")
    if preflight["teacher"].get("stored"):
        del inputs["teacher"]
    specs = {who: InputSpec.from_dict(values) for who, values in inputs.items() if values}
    try:
        rows = _contact_sheet(records.recipe_text, records.copies, tuple(specs.values()))
    except TutelageError as error:
        return missing(id, title, f"The training images cannot be read: {error}")
    names = class_names([row.label for row in rows])
    return render_section(id, title, "views.html.j2", rows=rows, names=names, specs=specs)


@lru_cache(maxsize=4)
def _contact_sheet(recipe_text: str, copies: str, specs: tuple[InputSpec, ...]) -> list[Any]:
    """Draw the views once: a watched page is made again after each epoch, and they stay the same."""
    from tutelage.report.thumbnails import contact_sheet

    return contact_sheet(splits(recipe_text, copies).train, recipe(recipe_text), specs)
