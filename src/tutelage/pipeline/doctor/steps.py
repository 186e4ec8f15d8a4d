"""How far the work on many images is, told often enough for a person and seldom enough for a log."""

from __future__ import annotations

from collections.abc import Callable

TIMES = 20  # lines of one step


class Steps:
    """Counts images, and says a few times how many are done."""

    def __init__(self, say: Callable[[str], object], what: str, total: int) -> None:
        self._say, self._what, self._total = say, what, total
        self._done = 0

    def __call__(self, images: int) -> None:
        """Count so many more images."""
        before, self._done = self._done, self._done + images
        if before * TIMES // self._total != self._done * TIMES // self._total:
            self._say(f"{self._what} {self._done:,} of {self._total:,} images")
