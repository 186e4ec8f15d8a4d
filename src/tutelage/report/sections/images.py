"""The test images whose prediction changed, and the mistakes that the student is most confident of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.records import RunPredictions
from tutelage.report import class_tables
from tutelage.report.class_names import class_names
from tutelage.report.page import UNLABELLED, Section, awaited, missing, render_section
from tutelage.report.predictions import greatest_changes, worst_mistakes
from tutelage.report.run_records import RunRecords
from tutelage.report.sections.data import splits

CARDS = 12  # images of each kind
MISTAKES = 100  # rows of their table


@dataclass(frozen=True)
class Answer:
    """A model's first class for one image."""

    role: str
    called: str
    percent: float
    right: bool


@dataclass(frozen=True)
class Card:
    """One image that changed."""

    picture: Any
    id: str
    truth: str
    answers: Sequence[Answer]


def images_section(records: RunRecords) -> Section:
    """Show images whose true class lost or gained much probability, and the most confident mistakes."""
    id, title = "images", "Changed predictions and worst mistakes"
    baseline = records.baseline
    predictions = records.predictions_of(baseline, "distilled")
    if predictions is None:
        return awaited(id, title, f"There are no predictions to compare yet: {records.reached}.")
    if not records.labelled_test:
        return missing(id, title, UNLABELLED)
    chosen = greatest_changes(predictions, baseline, "distilled", CARDS)
    every = greatest_changes(predictions, baseline, "distilled", len(predictions))
    mistakes = worst_mistakes(predictions, "distilled", len(predictions))
    chosen["mistakes"] = mistakes[:CARDS]
    total = {kind: len(found) for kind, found in (every | {"mistakes": mistakes}).items()}
    try:
        cards = {kind: _cards(records, predictions, positions.tolist()) for kind, positions in chosen.items()}
    except TutelageError as error:
        return missing(id, title, f"The test images cannot be read: {error}")
    return render_section(
        id,
        title,
        "images.html.j2",
        cards=cards,
        total=total,
        baseline=baseline,
        sheet=class_tables.mistakes(predictions, mistakes[:MISTAKES]),
    )


def _cards(records: RunRecords, predictions: RunPredictions, positions: Sequence[int]) -> list[Card]:
    from tutelage.data.decode import UnreadableImage
    from tutelage.report.thumbnails import picture

    part = splits(records.recipe_text, records.copies).test
    place = {id: position for position, id in enumerate(part.ids)}
    names = class_names(predictions.classes)
    cards = []
    for position in positions:
        id, label = str(predictions.ids[position]), int(predictions.labels[position])
        if id not in place:
            raise TutelageError(f"{part.images.name}: has no image {id!r} any more")
        try:
            shown = picture(part.image(place[id]))
        except UnreadableImage as error:
            raise TutelageError(str(error)) from None
        answers = [
            Answer(
                role,
                names[predictions.classes[predictions.roles[role].first[position]]],
                100 * float(predictions.roles[role].prob[position, 0]),
                bool(predictions.roles[role].first[position] == label),
            )
            for role in dict.fromkeys((records.baseline, "distilled", "teacher"))
            if role in predictions.roles
        ]
        cards.append(Card(shown, id, names[predictions.classes[label]], answers))
    return cards
