"""The head of the page: which models, and whether the student improved."""

from __future__ import annotations

from tutelage.evaluation.verdict import OPPONENTS, outcome_of
from tutelage.report import plots, tables
from tutelage.report.page import Section, embed, render_section
from tutelage.report.run_records import RunRecords

OUTCOMES = {
    "better": ("better", "Better than"),
    "worse": ("worse", "Worse than"),
    "not significantly different": ("same", "Not significantly different from"),
}


def verdict_section(records: RunRecords) -> Section:
    """Show which models took part, how far the run got, and its verdict."""
    verdict = records.verdict
    outcome, words = OUTCOMES.get(outcome_of(verdict) or "", ("", ""))
    # verdicts of earlier versions do not say it: theirs are always against the start
    heading = words and f"{words} {OPPONENTS[verdict.get('against', 'start')]}"
    return render_section(
        "verdict",
        "Verdict",
        "verdict.html.j2",
        records=records,
        who=_who(records),
        verdict=verdict,
        outcome=outcome,
        heading=heading,
        figure=embed(plots.intervals(verdict["pairs"])) if verdict.get("pairs") else None,
        pairs=tables.pairs(records),
    )


def _who(records: RunRecords) -> str:
    recipe = records.recipe
    models = ((recipe.get(who) or {}).get("model", "?") for who in ("student", "teacher"))
    student, teacher = map(tables.short_model, models)
    return f"{student}, taught by {teacher}, on {(recipe.get('data') or {}).get('train', '?')}"
