"""A progress that keeps what a run says."""

from __future__ import annotations

from tutelage.core.progress import Silent


class Heard(Silent):
    """Keeps the lines, in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.lines if line.startswith("warning: ")]
