"""What is said when a loader process dies."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from tutelage.core.errors import TutelageError
from tutelage.data.workers import dead_workers_named


def test_a_connection_that_ends_while_a_batch_is_handed_over_is_a_dead_worker() -> None:
    ours, theirs = Pipe()
    theirs.close()
    with pytest.raises(TutelageError, match=r"a loader process died .*data\.workers=0"), dead_workers_named():
        ours.recv()


def test_another_connection_that_ends_is_none() -> None:
    with pytest.raises(ConnectionResetError), dead_workers_named():
        raise ConnectionResetError
