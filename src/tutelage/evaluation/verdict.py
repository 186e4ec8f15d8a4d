"""One sentence about what came of it, with how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from tutelage.evaluation.paired import Paired

Outcome = Literal["better", "no different", "worse"]
OPPONENTS = {
    "start": "its start",
    "control": "the labels-only control",
    "teacher": "the teacher",
}


def outcome(pair: Paired) -> Outcome:
    """Better or worse only where the 95% interval leaves zero out."""
    if pair.low > 0:
        return "better"
    return "worse" if pair.high < 0 else "no different"


def verdict(pairs: Mapping[str, Paired], kept: str) -> dict[str, Any]:
    """The verdict of a run, for comparison.json.

    Args:
        pairs: the kept student against `start`, `control` and `teacher`, on test.
        kept: name of the candidate that was kept.
    """
    opponents = [role for role in OPPONENTS if role in pairs and not role == kept == "start"]
    parts = [_against(role, pairs[role]) for role in opponents]
    first = (
        f"The kept student ({kept}) is "
        if kept != "start"
        else "No trained candidate beat the start on val, so the start is kept"
    )
    if kept == "start" and parts:
        first += "; it is "
    return {
        "sentence": f"{first}{'; '.join(parts)}, on {pairs['start'].n:,} test images.",
        "outcome": outcome(pairs["start"]),
        "pairs": [{"new": "distilled", "old": role, **asdict(pair)} for role, pair in pairs.items()],
    }


def _against(role: str, pair: Paired) -> str:
    interval = f"95% interval {pair.low:+.2f} to {pair.high:+.2f}"
    result = outcome(pair)
    if result == "no different":
        return f"no different from {OPPONENTS[role]} ({pair.difference:+.2f} points top-1, {interval})"
    return f"{result} than {OPPONENTS[role]} by {abs(pair.difference):.2f} points top-1 ({interval})"
