"""All that is looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tutelage.diagnose import outcome, teaching, training
from tutelage.diagnose.figures import Figures, Finding

CHECKS: tuple[Callable[[Figures], Iterable[Finding]], ...] = (
    outcome.seen_val,
    outcome.misled_choice,
    outcome.harmful_teacher,
    outcome.forgetting,
    outcome.gain,
    teaching.no_headroom,
    teaching.unfitted_teacher,
    teaching.contradicted_labels,
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

    A pure function: it reads no file, and the same figures give the same findings.
    """
    found = [finding for check in CHECKS for finding in check(figures)]
    found += outcome.unexplained(figures, found)
    return sorted(found, key=lambda finding: ORDER[finding.severity])
