"""The page's table of accuracies on corrupted images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.report.small_run import make_run

from tutelage.evaluation.robustness import CORRUPTIONS, robustness
from tutelage.report.run_records import read_run_records
from tutelage.report.sections import run_sections
from tutelage.report.sections.robustness import robustness_sections


def test_the_page_shows_corruptions_where_they_were_measured(tmp_path: Path) -> None:
    records = read_run_records(make_run(tmp_path))
    assert robustness_sections(records) == []
    assert "robustness" not in [section.id for section in run_sections(records)]
    right = {"distilled": np.zeros((8, 50), bool), "teacher": np.ones((8, 50), bool)}
    right["distilled"][:, :20] = True
    right["distilled"][0, :10] = False  # noise
    measured = robustness(right, "distilled", ["teacher"])
    with_them = replace(records, robustness={"n": 50, **measured})
    (section,) = robustness_sections(with_them)
    assert "robustness" in [one.id for one in run_sections(with_them)]
    text = " ".join(section.html.replace("\n", " ").split())
    for kind in CORRUPTIONS:
        assert kind in text
    assert "Top-1 on 50 test images" in text
    assert "<bdi>20.00</bdi>" in text
    assert "<bdi>37.50</bdi>" in text  # the mean of all kinds
    assert "Distilled student against teacher −62.50 (" in text
    assert "not the images of ImageNet-C" in text
