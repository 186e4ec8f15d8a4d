"""What `tutelage advise` found, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tutelage.evaluation.paired import Paired
from tutelage.evaluation.table import ABSENT

Answer = Literal["distil", "not ahead", "too few images", "no student"]
RANDOM = "random weights have no features to probe"
RANDOM_STUDENT = (
    "a small network from random weights was 12 points below a linear probe of a pretrained one on our clothes data "
    "(3,068 training images), with a teacher or without"
)
FINE = 2.0  # points: an interval with arms longer than this cannot tell whether the teacher is worth a run
SMALL_LEAD = 3.0  # points: less than this left nothing to gain in our trials


@dataclass(frozen=True)
class Candidate:
    """A model's figures; the first one of an advice is the teacher.

    Attributes:
        model: NAME@WEIGHTS, or KIND:WHERE.
        resolution: height of its input images, in pixels.
        params_m: parameters in millions, with a head for the data's classes.
        size_mb: parameters and buffers, in MiB (2^20 bytes).
        latency_ms: of one image, median, in ms.
        top1: percent of the held-out images; None where it was not measured, with the reason in `why`.
        low: lower end of its 95% interval (Wilson 1927), in percent.
        high: upper end of its 95% interval, in percent.
        lead: of the teacher over this model on the same images; None for the teacher, and without `top1`.
        within: whether latency and size are within the limits.
        own_head: the figure is that of the model's own head, which knows the data's classes, and not of a probe.
        why: there is no `top1`; "" where there is one.
    """

    model: str
    resolution: int
    params_m: float
    size_mb: float
    latency_ms: float
    top1: float | None = None
    low: float | None = None
    high: float | None = None
    lead: Paired | None = None
    within: bool = True
    own_head: bool = False
    why: str = ""

    @property
    def name(self) -> str:
        """The model with its resolution, for sentences."""
        return f"{self.model} at {self.resolution} px"


@dataclass(frozen=True)
class Advice:
    """Whether distilling is right for some images.

    Attributes:
        answer: ``distil``: the teacher's lead over the student is larger than noise; ``not ahead``; ``too few images``
            to tell; ``no student``: none within the limits, or none with pretrained weights.
        sentences: the recommendation in words.
        warnings: what else should be known.
        teacher: its figures.
        students: their figures, in the order in which they were named.
        student: the recommended one of these; None where there is none.
        command: starts the run; None without a student, and where a model was given as an object.
        minutes: estimated time of the run, on this machine.
        disk_mb: estimated disk space of the run, in MB (10^6 bytes).
        trained_on: number of images that the probes were fitted to.
        held_out: number of images that they were evaluated on.
        notes: how it was measured.
    """

    answer: Answer
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    teacher: Candidate
    students: tuple[Candidate, ...]
    student: Candidate | None
    command: str | None
    minutes: float | None
    disk_mb: float | None
    trained_on: int
    held_out: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def rich(self) -> RenderableType:
        """For a terminal: a row per model, the recommendation, and the warnings; not the command, for copying."""
        dim = [*self.notes, *_absent([self.teacher, *self.students])]
        warnings = [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        lines = [*(Text(line, style="dim") for line in dim), Text(""), *map(Text, self.sentences), *warnings]
        return Group(_table(self), *lines)


def recommended(students: Sequence[Candidate]) -> Candidate | None:
    """Return the student with the highest top-1 of those within the limits, and of equal ones the fastest."""
    usable = [one for one in students if _usable(one)]
    return max(usable, key=lambda one: (one.top1 or 0.0, -one.latency_ms), default=None)


def judged(student: Candidate | None) -> Answer:
    """Tell whether a teacher can be expected to help the recommended student."""
    if student is None or student.lead is None:
        return "no student"
    lead = student.lead
    if lead.low > 0:
        return "distil"
    unclear = lead.high > 0 and (lead.high - lead.low) / 2 > FINE
    return "too few images" if unclear else "not ahead"


def sentences(
    answer: Answer, teacher: Candidate, student: Candidate | None, students: Sequence[Candidate]
) -> tuple[str, ...]:
    """Put the recommendation into words."""
    if student is None or student.lead is None:
        return (_no_student(students),)
    lead = student.lead
    led = (
        f"the teacher's lead over {student.name} is {lead.difference:+.1f} points (95% interval {lead.low:+.1f} to "
        f"{lead.high:+.1f}, {lead.n:,} held-out images)"
    )
    said = {
        "distil": f"Distil {teacher.name} into {student.name}: {led}, which is more than noise.",
        "not ahead": (
            f"This teacher has little to teach here: {led}. Expect about as much from labels alone; a better teacher "
            "may help."
        ),
        "too few images": f"There are too few images to tell: {led}. {_enough(lead)}",
    }[answer]
    return (said, *_cheaper(student, students))


def warnings_of(
    teacher: Candidate,
    students: Sequence[Candidate],
    student: Candidate | None,
    answer: Answer,
    chance: float,
) -> tuple[str, ...]:
    """Return what else should be known before the run is started.

    Args:
        teacher: its figures.
        students: their figures.
        student: the recommended one.
        answer: of `judged`.
        chance: top-1 in percent of always giving the most frequent class.
    """
    found = []
    if any(one.why == RANDOM for one in students):
        found.append(f"random weights: {RANDOM_STUDENT}")
    if teacher.low is not None and teacher.low <= chance:
        found.append(
            f"the teacher's {teacher.top1:.1f}% is hardly better than always giving the most frequent class "
            f"({chance:.1f}%); its features do not fit these images"
        )
    lead = student.lead.difference if student and student.lead else 0.0
    if answer == "distil" and lead < SMALL_LEAD:
        found.append(
            f"a lead of less than {SMALL_LEAD:g} points leaves little to gain: with one of 2 points, nothing was "
            "gained in our trials"
        )
    return tuple(found)


def _usable(one: Candidate) -> bool:
    return one.within and one.top1 is not None


def _no_student(students: Sequence[Candidate]) -> str:
    if not any(one.within for one in students):
        fastest = min(students, key=lambda one: one.latency_ms)
        return (
            f"No student is within the limits: the fastest is {fastest.name}, with {fastest.latency_ms:.2f} ms and "
            f"{fastest.size_mb:.2f} MiB. Raise the limits, or name smaller students with --student."
        )
    return (
        "No student within the limits has pretrained weights, so none can be recommended. Name one with "
        "--student NAME@FILE."
    )


def _enough(lead: Paired) -> str:
    """Say how many held-out images would show a lead of `FINE` points; an interval's width falls with their root."""
    needed = lead.n * ((lead.high - lead.low) / 2 / FINE) ** 2
    digits = 10 ** max(0, len(str(round(needed))) - 2)
    return f"About {round(needed / digits) * digits:,} held-out images would show a lead of {FINE:g} points."


def _cheaper(student: Candidate, students: Sequence[Candidate]) -> list[str]:
    """Name the students within the limits that are faster."""
    faster = [
        one for one in students if _usable(one) and one.latency_ms < student.latency_ms and one is not student
    ]
    if not faster:
        return []
    named = ", ".join(
        f"{one.name} ({student.latency_ms / one.latency_ms:.1f}x as fast, {(one.top1 or 0) - (student.top1 or 0):+.1f} "
        "points)"
        for one in sorted(faster, key=lambda one: one.latency_ms, reverse=True)
    )
    return [f"Faster, against that student: {named}."]


def _absent(rows: Sequence[Candidate]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for one in rows:
        if one.why:
            reasons.setdefault(one.why, []).append(one.name)
    return [f"{ABSENT} {', '.join(names)}: {why}" for why, names in reasons.items()]


def _table(advice: Advice) -> RichTable:
    table = RichTable(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    titles = ("model", "px", "params\nM", "size\nMiB", "latency\nms", "probe\ntop-1, %", "teacher's\nlead")
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left", overflow="fold")
    for one in [advice.teacher, *advice.students]:
        lead = one.lead
        cells = [
            f"{one.model}\nteacher" if one is advice.teacher else one.model,
            str(one.resolution),
            f"{one.params_m:.2f}",
            f"{one.size_mb:.2f}",
            f"{one.latency_ms:.2f}",
            ABSENT if one.top1 is None else f"{one.top1:.1f}\n{one.low:.1f}–{one.high:.1f}",
            "" if lead is None else f"{lead.difference:+.1f}\n{lead.low:+.1f} to {lead.high:+.1f}",
        ]
        table.add_row(*map(_cell, cells), style="bold" if one is advice.student else None)
    return table


def _cell(text: str) -> Text:
    figure, _, below = text.partition("\n")
    return Text.assemble(figure, (f"\n{below}" if below else "", "dim"))
