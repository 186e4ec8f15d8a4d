"""Write docs/licences.md: the licence of each package that tutelage or one of its extras needs, as an SPDX expression.

Run it in an environment with all extras (`make setup`, and `pip install -e '.[executorch]'`): python docs/licences.py
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- made by docs/licences.py: begin -->\n", "<!-- end -->\n"
UNKNOWN = "not stated"
# A passage of a licence's text, by which it is recognised. The first one counts: licences of bundled parts follow.
TEXTS = {
    "Matplotlib Development Team": "LicenseRef-Matplotlib",
    "PYTHON SOFTWARE FOUNDATION LICENSE": "PSF-2.0",
    "Mozilla Public License Version 2.0": "MPL-2.0",
    "Redistribution and use in source and binary forms": "BSD",
    "Permission is hereby granted, free of charge": "MIT",
    "Permission to use, copy, modify, and": "ISC",
    "Apache License": "Apache-2.0",
    "NVIDIA": "LicenseRef-NVIDIA-Proprietary",
}
NOT_TO_ENDORSE = re.compile("be used to endorse|Neither the name", re.IGNORECASE)  # the third clause of BSD-3
CLAUSES = 1500  # characters of a BSD licence
# A word of a licence's name or classifier.
NAMES = {
    "Apache": "Apache-2.0",
    "MIT": "MIT",
    "ISC": "ISC",
    "Mozilla": "MPL-2.0",
    "NVIDIA": "LicenseRef-NVIDIA-Proprietary",
    "BSD-3": "BSD-3-Clause",
}
KNOWN = {
    "antlr4-python3-runtime": "BSD-3-Clause"
}  # which says "BSD" and brings no text; its repository has one


def needed() -> dict[str, str]:
    """Return the packages that tutelage needs, each with the first that needs it: `tutelage`, or one of its extras.

    What is not installed is left out: `make setup` installs litert-torch without packages that it does not use.
    """
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    for source, lines in {"tutelage": project["dependencies"], **project["optional-dependencies"]}.items():
        waiting, seen = [(line, frozenset[str]()) for line in lines], set()
        while waiting:
            line, extras = waiting.pop()
            one = Requirement(line)
            if one.name == "tutelage" or not _applies(one, extras):
                continue
            name = canonicalize_name(one.name)
            if (name, *sorted(one.extras)) in seen:
                continue
            seen.add((name, *sorted(one.extras)))
            try:
                requires = distribution(name).requires or ()
            except PackageNotFoundError:
                continue
            found.setdefault(name, source)
            waiting += [(further, frozenset(one.extras)) for further in requires]
    return found


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether a requirement of a package holds on this machine, with the package's extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def licence(package: Distribution) -> str:
    """Return the SPDX expression of an installed package, or that it states none."""
    metadata = package.metadata
    for stated in (metadata["License-Expression"], metadata["License"]):
        try:
            return canonicalize_license_expression(stated or "")
        except InvalidLicenseExpression:  # a name in words, or the licence's whole text
            continue
    files = [file for file in package.files or () if re.search(r"LICEN[CS]E|COPYING", file.name.upper())]
    texts = [Path(str(file.locate())).read_text(encoding="utf-8", errors="replace") for file in files]
    text = re.sub(r"\s+", " ", " ".join([metadata["License"] or "", *texts]))
    if places := {text.find(mark): mark for mark in TEXTS if mark in text}:
        first = min(places)
        third = NOT_TO_ENDORSE.search(text[first : first + CLAUSES])
        return TEXTS[places[first]].replace("BSD", "BSD-3-Clause" if third else "BSD-2-Clause")
    names = " ".join([metadata["License"] or "", *(metadata.get_all("Classifier") or [])])
    named = next((expression for word, expression in NAMES.items() if word in names), UNKNOWN)
    return KNOWN.get(canonicalize_name(package.name), named)


def main() -> None:
    """Find all packages and write the page."""
    rows = sorted(needed().items(), key=lambda row: (row[1] != "tutelage", row[0]))
    lines = [f"| {name} | {licence(distribution(name))} | {source} |\n" for name, source in rows]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table = ["| package | licence | needed by |\n", "|---|---|---|\n", *lines]
    PAGE.write_text("".join([before, BEGIN, *table, END, rest.partition(END)[2]]), encoding="utf-8")


if __name__ == "__main__":
    main()
