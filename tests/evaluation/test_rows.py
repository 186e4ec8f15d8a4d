"""What a row of the table is given."""

import pytest
import torch

from tutelage.evaluation.rows import graded
from tutelage.evaluation.table import Row, Table


@pytest.mark.parametrize(
    ("head", "data", "shown"), [(5, 5, []), (6, 6, ["top5"]), (9, 5, ["top5"]), (9, 7, ["top5", "top5_data"])]
)
def test_the_top_5_of_five_classes_is_not_measured(head: int, data: int, shown: list[str]) -> None:
    logits, labels = torch.randn(40, head), torch.arange(40) % data
    row = graded(Row("m"), logits, labels, torch.arange(data))
    assert [name for name in ("top5", "top5_data") if getattr(row, name) is not None] == shown
    assert row.top1 is not None
    assert ("top-5" in Table([row]).markdown()) is bool(shown)
