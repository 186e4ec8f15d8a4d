"""The ranking of a study's trials: by val, with figures on test and intervals of the differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tutelage.evaluation.paired import Paired
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import Outcome, outcome
from tutelage.pipeline.study import variants as over_seeds
from tutelage.pipeline.study.text import (
    differences,
    extent,
    figure,
    interval,
    left_out,
    markdown,
    settings,
    title,
)
from tutelage.pipeline.study.trials import Entry, Figures, Ranked
from tutelage.pipeline.study.variants import Variant, by_variant

# Of models that the trials are held against, in the order in which the note below the table has them.
REFERENCES = {
    Role.TEACHER: "the teacher",
    Role.START: "the start",
    Role.PROBE: "a linear probe",
    Role.TEACHER_PROBE: "a probe of the teacher's features",
    Role.CONTROL: "labels only",
}

SEED_NOTE = (
    "Over the seeds: mean of val, mean and standard deviation of top-1 on test, and mean differences with 95% "
    "intervals over the test images, each resampled with all its seeds. Variants with fewer finished seeds come last."
)


@dataclass(frozen=True)
class Ranking:
    """All trials of a study.

    Attributes:
        name: of the study.
        metric: `top1` or `nll`, on val.
        done: the finished trials, the best on val first.
        others: the trials that run or have failed.
        against: name of the variant that all are held against; None: none.
        variants: over their seeds, the best on val first; empty where each has one seed.
    """

    name: str
    metric: str
    done: list[Ranked]
    others: list[Entry]
    against: str | None = None
    variants: Sequence[Variant] = ()

    def record(self) -> dict[str, Any]:
        """Return the content of study.json."""
        names = [one.name for one in self.variants] or [one.entry.name for one in self.done]
        return {
            "name": self.name,
            "metric": self.metric,
            "best": next(iter(names), None),
            "against": self.against,
            "sentence": self.sentence(),
            "variants": [one.record(self.metric) for one in self.variants],
            "trials": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """Return a record of each trial, in the order of the table."""
        return [*map(_ranked_record, self.done), *map(_entry_record, self.others)]

    def sentence(self) -> str:
        """Summarise the result of the study."""
        if not self.done:
            return f"No trial of {self.name} is finished yet."
        if self.variants:
            return self._sentence_over_seeds()
        best = self.done[0]
        text = (
            f"Of {len(self.done)} finished trials {best.entry.name} (trial {best.entry.number}) is best on val "
            f"({self.metric} {figure(best.val[self.metric], self.metric)}); on test it has {best.test_top1:.2f} top-1"
        )
        if best.start:
            text += f", {_words(best.start)} its start ({interval(best.start)})"
        same: Outcome = "not significantly different"
        return text + _level(
            [one.entry.name for one in self.done[1:] if one.best and outcome(one.best) == same]
        )

    def _sentence_over_seeds(self) -> str:
        best = self.variants[0]
        text = (
            f"Of {len(self.variants)} variants {best.name} is best on val over {len(best.trials)} seeds "
            f"({self.metric} {figure(best.val(self.metric), self.metric)}); on test it has {best.test} top-1"
        )
        for what, gap in (("labels only", best.control), ("its start", best.start)):
            if gap:
                text += f", against {what} {interval(gap)}"
        return text + _level(
            [one.name for one in self.variants[1:] if one.best and one.best.low <= 0 <= one.best.high]
        )

    def columns(self, every: bool = False) -> dict[str, list[str]]:
        """Return the table as text, by column.

        Args:
            every: all columns, with two decimals. Otherwise as many as fit 80 characters, with intervals of one
                decimal: of the differences from start and control, that from the control where there is one.
        """
        table = {
            "#": [str(one.entry.number) for one in self.done],
            "Trial": [title(one.entry) for one in self.done],
            "Val": [figure(one.val[self.metric], self.metric) for one in self.done],
            "Test": [f"{one.test_top1:.2f}" for one in self.done],
            "NLL": [f"{one.test[Role.DISTILLED]['nll']:.3f}" for one in self.done],
            **differences(self.done, self.against, every),
            "Kept": [one.kept for one in self.done],
        }
        return self._with_others(table, "Trial", every)

    def variant_columns(self, every: bool = False) -> dict[str, list[str]]:
        """Return the table of the variants over their seeds as text, by column, as `columns`."""
        table = over_seeds.columns(self.variants, self.metric, self.against, every)
        return self._with_others(table, "Variant", every)

    def _with_others(self, table: dict[str, list[str]], name: str, every: bool) -> dict[str, list[str]]:
        """Leave out the columns that are not shown, and add a line for each trial that is not finished."""
        for column in left_out(table, self.against, every):
            table.pop(column, None)
        last = _last(table)
        for one in self.others:
            known = {"#": str(one.number), name: one.name, "Val": one.state, last: one.reason or ""}
            for column, cells in table.items():
                cells.append(known.get(column, ""))
        return table

    def markdown(self) -> str:
        """Return the content of study.md: the sentence, the tables and the settings of each trial."""
        changes = [
            f"- {one.number} {one.name}: {settings(one.overrides) or 'the same as the base'}"
            for one in sorted([*(r.entry for r in self.done), *self.others], key=lambda e: e.number)
        ]
        tables = markdown(self.columns(every=True))
        if self.variants:
            tables = [
                *markdown(self.variant_columns(every=True)),
                "",
                SEED_NOTE,
                "",
                "Each trial:",
                "",
                *tables,
            ]
        text = [f"# {self.name}", "", self.sentence(), "", *tables, "", self.note(), "", *changes, ""]
        return "\n".join(text)

    def note(self) -> str:
        """Explain the table, and give the figures on test of the models that the trials are compared with."""
        found = [f"{name} {self._extent(role)}" for role, name in self._references().items()]
        return _note(self.metric) + (f" On test, top-1 (NLL): {'; '.join(found)}." if found else "")

    def _extent(self, role: str) -> str:
        """Write the figures of a reference on test: over the seeds, where their trials have it in common."""
        having = [one for one in self.done if role in one.test]
        by_seed = {one.seed: one.test[role] for one in having}
        if self.variants and all(one.test[role] == by_seed[one.seed] for one in having):
            return over_seeds.spread(list(by_seed.values()))
        return extent([one.test[role] for one in having])

    def _references(self) -> dict[str, str]:
        known = {role for one in self.done for role in one.test}
        is_probe = any(one.start_is_probe for one in self.done)
        names = REFERENCES | ({Role.START: "the start (a linear probe)"} if is_probe else {})
        return {str(role): name for role, name in names.items() if role in known}

    def rich(self) -> Table:
        """Return the table for a terminal."""
        caption = f"{SEED_NOTE} {self.note()}" if self.variants else self.note()
        table = Table(title=self.name, caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        columns = self.variant_columns() if self.variants else self.columns()
        last = _last(columns)
        for column in columns:
            named = column in ("Trial", "Variant")
            justify: Literal["left", "right"] = "left" if named else "right"
            reasons = column == last and bool(self.others)  # why trials failed, which can be long
            table.add_column(column, justify=justify, overflow="fold", no_wrap=not (named or reasons))
        for line in zip(*columns.values(), strict=True):
            table.add_row(*map(escape, line))
        return table


def ranking(
    name: str,
    metric: str,
    entries: Sequence[Entry],
    figures: Figures | None = None,
    against: str | None = None,
) -> Ranking:
    """Rank the finished trials on val, and compare each with its start, its control and the best.

    A student from scratch is compared with the pretrained start of the best trial that has one, since a random start
    is no baseline.

    Args:
        name: of the study.
        metric: `top1` or `nll`, of the kept student on val.
        entries: the trials that have begun.
        figures: figures read for an earlier ranking of the same study.
        against: name of the variant that all are held against, each by its trial with the same seed.
    """
    figures = figures or Figures()
    done = sorted((figures.read(e) for e in entries if e.state == "done"), key=lambda r: _merit(r, metric))
    if done:
        best, reference = done[0], next((r for r in done if not r.from_scratch), None)
        named = {one.seed: one for one in done if one.entry.variant == against}
        done = [
            replace(
                one,
                start=figures.pair(one, reference if one.from_scratch and reference else one, Role.START),
                control=figures.pair(one, one, Role.CONTROL),
                best=figures.pair(one, best, Role.DISTILLED) if one is not best else None,
                named=(
                    figures.pair(one, named[one.seed], Role.DISTILLED)
                    if one.seed in named and one is not named[one.seed]
                    else None
                ),
            )
            for one in done
        ]
    others = [e for e in entries if e.state != "done"]
    return Ranking(name, metric, done, others, against, by_variant(done, metric, against))


def _merit(one: Ranked, metric: str) -> tuple[float, float, int]:
    top1, nll = -one.val["top1"], one.val["nll"]
    return (top1, nll, one.entry.number) if metric == "top1" else (nll, top1, one.entry.number)


def _ranked_record(one: Ranked) -> dict[str, Any]:
    pairs = {"start": one.start, "control": one.control, "best": one.best, "named": one.named}
    return _entry_record(one.entry) | {
        "seed": one.seed,
        "val": one.val,
        "kept": one.kept,
        "test_top1": one.test_top1,
        "test": {str(role): figures for role, figures in one.test.items()},
        "against": {role: asdict(pair) if pair else None for role, pair in pairs.items()},
    }


def _entry_record(one: Entry) -> dict[str, Any]:
    return {
        "number": one.number,
        "name": one.name,
        "variant": one.variant,
        "state": one.state,
        "overrides": dict(one.overrides),
        "run": f"{one.run.path.parent.name}/{one.run.path.name}",
        "reason": one.reason,
    }


def _last(table: Iterable[str]) -> str:
    """Return the column in which a trial that is not finished has its reason."""
    return [column for column in table if column.startswith("Against")][-1]


def _level(names: Sequence[str]) -> str:
    return f". Not significantly different from it on test: {', '.join(names)}." if names else "."


def _words(pair: Paired) -> str:
    found = outcome(pair)
    return f"{found} {'from' if found == 'not significantly different' else 'than'}"


def _note(metric: str) -> str:
    return (
        f"Ranked by {metric} on val. Test: top-1, %. Differences: points of top-1 on the same test images, with "
        "paired 95% intervals; a student from scratch is compared with the pretrained start."
    )
