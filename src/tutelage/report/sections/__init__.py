"""The sections of one run's page, in the order of a reader's questions."""

from __future__ import annotations

from tutelage.report.page import Section
from tutelage.report.run_records import RunRecords
from tutelage.report.sections.cascade import cascade_sections
from tutelage.report.sections.checks import checks_section
from tutelage.report.sections.comparison import comparison_section, tradeoff_section
from tutelage.report.sections.data_summary import data_section
from tutelage.report.sections.gradcam import gradcam_sections
from tutelage.report.sections.images import images_section
from tutelage.report.sections.predictions import agreement_section, classes_section
from tutelage.report.sections.record import record_section
from tutelage.report.sections.robustness import robustness_sections
from tutelage.report.sections.selection import selection_section
from tutelage.report.sections.training import training_section
from tutelage.report.sections.verdict import verdict_section
from tutelage.report.sections.views import views_section


def run_sections(records: RunRecords) -> list[Section]:
    """Make the sections of the page. Those that a run has not got to yet are left out until it has ended.

    Where a run has ended without their data, such as one of an older version, they say so.
    """
    sections = [
        verdict_section(records),
        comparison_section(records),
        tradeoff_section(records),
        data_section(records),
        training_section(records),
        selection_section(records),
        agreement_section(records),
        classes_section(records),
        images_section(records),
        *gradcam_sections(records),
        *robustness_sections(records),
        *cascade_sections(records),
        views_section(records),
        checks_section(records),
        record_section(records),
    ]
    return [section for section in sections if records.finished or not section.awaited]
