"""Write the list in architectures.md: python docs/architectures.py

Every architecture of timm gets a head for seven classes and runs once as a teacher and once as a student, at its own
resolution on PyTorch's meta device, which computes nothing. What fails there is run on the CPU.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import timm
import torch

from tutelage.models.dry_run import refused

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- list -->\n", "<!-- end of list -->\n"


def reason(name: str) -> str:
    """Why an architecture cannot be used; empty where it can."""
    return refused(name, torch.device("meta")) and refused(name, torch.device("cpu"))


def families() -> list[str]:
    """The first architecture of each of timm's families."""
    members = (timm.list_models(module=family) for family in timm.list_modules())
    return [names[0] for names in members if names]


def lines(names: list[str]) -> list[str]:
    """The list of those that cannot be used."""
    found = {}
    for number, name in enumerate(names, 1):
        print(f"\r{number}/{len(names)} {name:<60}", end="", file=sys.stderr)
        if why := reason(name):
            found[name] = why
    head = f"Of the {len(names):,} architectures of timm {timm.__version__}, {len(found)} cannot be used"
    if not found:
        return [f"{head}: all can be teachers and students.\n"]
    rows = [f"| `{name}` | {why[:200].replace('|', '/')} |\n" for name, why in found.items()]
    return [f"{head}:\n", "\n", "| architecture | reason |\n", "|---|---|\n", *rows]


def main() -> None:
    """Walk all architectures and write the page."""
    warnings.simplefilter("ignore")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("".join([before, BEGIN, *lines(timm.list_models()), END, after]), encoding="utf-8")


if __name__ == "__main__":
    main()
