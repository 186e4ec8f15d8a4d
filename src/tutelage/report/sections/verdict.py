"""The head of the page: which models, and whether the student improved."""

from __future__ import annotations

from tutelage.report import plots, tables
from tutelage.report.headline import headline, sentence
from tutelage.report.page import Section, embed, render_section
from tutelage.report.run_records import RunRecords


def verdict_section(records: RunRecords) -> Section:
    """Show which models took part, how far the run got, and its verdict."""
    pairs = [
        pair
        for pair in records.verdict.get("pairs") or []
        if not (records.random_start and pair["old"] == "start")
    ]
    return render_section(
        "verdict",
        "Verdict",
        "verdict.html.j2",
        records=records,
        who=_who(records),
        headline=headline(records),
        sentence=sentence(records),
        figure=embed(plots.intervals(pairs)) if pairs else None,
        pairs=tables.pairs(records),
    )


def _who(records: RunRecords) -> str:
    recipe = records.recipe
    models = ((recipe.get(who) or {}).get("model", "?") for who in ("student", "teacher"))
    student, teacher = map(tables.short_model, models)
    return f"student {student}, teacher {teacher}, data {(recipe.get('data') or {}).get('train', '?')}"
