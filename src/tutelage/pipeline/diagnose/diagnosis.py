"""All checks of a diagnosis, and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tutelage.core.recipe_tree import flat, read_value
from tutelage.pipeline.diagnose import doubts, outcome, teaching, training
from tutelage.pipeline.diagnose.figures import Figures, Finding

CHECKS: tuple[Callable[[Figures], Iterable[Finding]], ...] = (
    outcome.seen_val,
    outcome.misled_choice,
    outcome.harmful_teacher,
    outcome.forgetting,
    doubts.below_probe,
    doubts.not_shown,
    doubts.no_better_than_guessing,
    doubts.badly_calibrated,
    doubts.val_and_test_apart,
    doubts.unfinished_fit,
    outcome.gain,
    teaching.wrong_description,
    teaching.no_headroom,
    teaching.unfitted_teacher,
    teaching.contradicted_labels,
    teaching.hiding_views,
    teaching.saturated_teacher,
    teaching.flat_temperature,
    teaching.diverging_goals,
    training.high_lr,
    training.overfitting,
    training.few_epochs,
    training.batchnorm_drift,
    training.skipped_steps,
)
ORDER = {"problem": 0, "note": 1, "good": 2}


def diagnose(figures: Figures) -> list[Finding]:
    """Findings from a run's figures: problems first, then notes, then what is good.

    Nothing is called good where a finding gives a reason against that.

    A pure function: it reads no file, and the same figures give the same findings.
    """
    found = [finding for check in _checks(figures) for finding in check(figures)]
    if figures.labelled_val and figures.labelled_test:
        found += outcome.unexplained(figures, found)
    reservations = [finding.reservation for finding in found if finding.reservation]
    found = [_not_good(f, reservations) if f.severity == "good" and reservations else f for f in found]
    present = flat(figures.recipe.model_dump(mode="json"))
    return sorted((_without(f, present) for f in found), key=lambda finding: ORDER[finding.severity])


def _checks(figures: Figures) -> Iterable[Callable[[Figures], Iterable[Finding]]]:
    """Return the checks for which there are figures: without labels on val or test, there are few."""
    if figures.labelled_val and figures.labelled_test:
        return CHECKS
    return (outcome.gain, training.skipped_steps) if figures.labelled_test else (training.skipped_steps,)


def _not_good(finding: Finding, reservations: Sequence[str]) -> Finding:
    """What a run gained, where it is not to be called good."""
    sentence = f"{finding.sentence} This is not called good, since {' and '.join(reservations)}."
    return replace(finding, severity="note", sentence=sentence)


def _without(finding: Finding, present: Mapping[str, Any]) -> Finding:
    """Leave out what the recipe has already."""
    new = [t for t in finding.attempts if present.get(t.key) != read_value(t.value)]
    return replace(finding, attempts=tuple(new))
