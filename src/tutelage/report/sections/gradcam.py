"""Grad-CAM of teacher and student on changed images, where `tutelage report RUN --explain` has made it."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.report.class_names import class_names
from tutelage.report.page import Section, missing, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.sections.data import splits
from tutelage.report.style import role_name

ROLES = ("teacher", "distilled")


def gradcam_sections(records: RunRecords) -> list[Section]:
    """Make the section of the pictures; none for a run that has none."""
    from tutelage.report.thumbnails import picture

    id, title = "gradcam", "Where the models look"
    predictions = records.predictions
    if predictions is None or not records.run.heat_maps.is_file():
        return []
    try:
        with np.load(io.BytesIO(records.run.heat_maps.read_bytes()), allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        part = splits(records.recipe_text, records.copies).test
        position = {name: place for place, name in enumerate(part.ids)}
        place = {str(name): number for number, name in enumerate(predictions.ids)}
        names = class_names(predictions.classes)
        cards: list[dict[str, Any]] = []
        for row, name in enumerate(map(str, stored["ids"])):
            looks = [
                {
                    "role": role_name(role),
                    "picture": picture(Image.fromarray(stored[role][row])),
                    "called": names[predictions.classes[predictions.roles[role].first[place[name]]]],
                    "right": bool(predictions.right(role)[place[name]]),
                }
                for role in ROLES
                if role in stored and role in predictions.roles
            ]
            truth = names[predictions.classes[predictions.labels[place[name]]]]
            cards.append(
                {"id": name, "truth": truth, "original": picture(part.image(position[name])), "looks": looks}
            )
    except (TutelageError, OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        return [missing(id, title, f"The pictures cannot be shown: {error}")]
    whys = [f"{role_name(role)}: {stored[f'{role}_why']}" for role in ROLES if f"{role}_why" in stored]
    return [render_section(id, title, "gradcam.html.j2", cards=cards, whys=whys)]
