"""The page of `tutelage data`: self-contained, each finding with its pictures, odd names escaped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.core.recipe import DataRecipe
from tutelage.data.doctor.checkup import Checkup
from tutelage.pipeline.doctor import check_data
from tutelage.report.data_page import GROUPS, write_data_page


@pytest.fixture(scope="module")
def checkup(tmp_path_factory: pytest.TempPathFactory) -> Checkup:
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for name in ("<b>bold</b>".replace("/", ":"), "plain"):
        (root / name).mkdir()
        for number in range(70):
            pixels = noise.integers(0, 256, (40, 40, 3), np.uint8)
            image = Image.fromarray(pixels)
            image.save(root / name / f"{number}.png")
            if number < 35:
                Image.fromarray(pixels // 10).save(root / name / f"dark-{number}.png")
    for number in range(7):
        image.save(root / "plain" / f"again-{number}.png")
    (root / "plain" / "broken.png").write_bytes(b"nothing")
    return check_data(DataRecipe(train=str(root)), model="none")


@pytest.fixture(scope="module")
def page(checkup: Checkup, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "data.html"
    write_data_page(checkup, path)
    return path.read_text(encoding="utf-8")


def section(page: str, id: str) -> str:
    return page.partition(f'<section id="{id}"')[2].partition("</section>")[0]


def test_every_finding_has_a_section_that_the_overview_links_to(checkup: Checkup, page: str) -> None:
    for finding in checkup.findings:
        id = finding.key.replace("_", "-")
        assert f'<a href="#{id}">{finding.title}</a>' in section(page, "summary")
        assert finding.text in section(page, id)


def test_the_page_loads_nothing_and_has_no_plots(page: str) -> None:
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "Plotly.newPlot" in page  # of the page's own script
    assert len(page) < 2_000_000  # and not Plotly itself


def test_names_are_escaped(page: str) -> None:
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page


def test_of_many_images_the_first_are_shown_and_all_are_counted(checkup: Checkup, page: str) -> None:
    dark = section(page, "dark")
    assert dark.count("<img") == GROUPS
    assert f"70 in all; the first {GROUPS} are shown" in dark


def test_copies_stand_together_and_what_the_list_leaves_out_is_marked(checkup: Checkup, page: str) -> None:
    (finding,) = (one for one in checkup.findings if one.key.startswith("copies"))
    shown = section(page, finding.key.replace("_", "-"))
    assert len(finding.groups) == 1
    assert len(finding.items) == 8
    assert "and 4 more" in shown
    left_out = sum(bool(item.leave_out) for item in finding.items[:4])
    assert shown.count("in the list") == left_out > 0


def test_a_file_that_cannot_be_decoded_has_no_picture(page: str) -> None:
    assert "<img" not in section(page, "unreadable")
    assert "plain/broken.png" in section(page, "unreadable")


def test_the_table_of_classes_counts_the_parts(checkup: Checkup, page: str, tmp_path: Path) -> None:
    row = re.search(r"<bdi>plain</bdi></th>(.*?)</tr>", section(page, "classes"), re.DOTALL)
    assert row is not None
    counts = [int(text) for text in re.findall(r"<bdi>([\d,]+)</bdi>", row[1])]
    assert counts[-1] == sum(counts[:-1]) == 113
