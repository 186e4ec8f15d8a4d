"""The verdict: one sentence that says how the student compares with other models, and how certain that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from tutelage.evaluation.paired import Paired

Outcome = Literal["better", "not significantly different", "worse"]
ALPHA = 0.05
OPPONENTS = {
    "start": "its start",
    "control": "the labels-only control",
    "teacher": "the teacher",
    "probe": "the linear probe",
    "teacher-probe": "the linear probe of the teacher's features",
}


def outcome(pair: Paired) -> Outcome:
    """Better or worse only where the 95% interval leaves zero out and McNemar's p is below 0.05.

    On few images the bootstrap's interval is too narrow: where four of four images changed for the better it is the
    single point +100, while McNemar's exact test gives p = 0.125.
    """
    if pair.mcnemar_p < ALPHA and pair.low > 0:
        return "better"
    if pair.mcnemar_p < ALPHA and pair.high < 0:
        return "worse"
    return "not significantly different"


def outcome_of(record: Mapping[str, Any]) -> Outcome | None:
    """The outcome in the verdict of a comparison.json; earlier versions wrote "no different"."""
    found: Outcome | Literal["no different"] | None = record.get("outcome")
    return "not significantly different" if found == "no different" else found


def verdict(pairs: Mapping[str, Paired], kept: str, random_start: bool = False) -> dict[str, Any]:
    """The verdict of a run, for comparison.json.

    Args:
        pairs: the kept student against `start`, `control` and `teacher`, on test.
        kept: name of the candidate that was kept.
        random_start: the start has random weights. Any training beats it, so it is left out of sentence and outcome.

    Returns:
        `sentence`, `outcome`, `against` (the role that the outcome is about) and `pairs` (a record each). Outcome and
        role are None where there is no model to compare with.
    """
    opponents = [role for role in OPPONENTS if role in pairs and not (role == "start" and random_start)]
    against = opponents[0] if opponents else None
    told = [role for role in opponents if not role == kept == "start"]  # a start is not compared with itself
    comparisons = "; ".join(_against(role, pairs[role]) for role in told)
    if kept == "start":
        sentence = "No trained candidate beat the start on val, so the start is kept"
        sentence += f"; it is {comparisons}" if told else ""
    elif told:
        sentence = f"The kept student ({kept}) is {comparisons}"
    else:
        sentence = (
            f"The kept student ({kept}) started from random weights, and no control or teacher was measured"
        )
    return {
        "sentence": f"{sentence}, on {next(iter(pairs.values())).n:,} test images.",
        "outcome": outcome(pairs[against]) if against else None,
        "against": against,
        "pairs": [{"new": "distilled", "old": role, **asdict(pair)} for role, pair in pairs.items()],
    }


def interval_text(pair: Paired) -> str:
    """The interval in points, with McNemar's p where it is the reason that the interval does not decide."""
    text = f"{pair.low:+.2f} to {pair.high:+.2f}"
    if not pair.low <= 0 <= pair.high and pair.mcnemar_p >= ALPHA:
        text += f", McNemar p = {pair.mcnemar_p:.3f}"
    return text


def _against(role: str, pair: Paired) -> str:
    interval = f"95% interval {interval_text(pair)}"
    result = outcome(pair)
    if result == "not significantly different":
        return f"{result} from {OPPONENTS[role]} ({pair.difference:+.2f} points top-1, {interval})"
    return f"{result} than {OPPONENTS[role]} by {abs(pair.difference):.2f} points top-1 ({interval})"
