"""Images that are left out of training and of model selection, named in a text file (`data.exclude`).

A line holds the id of an image, which for folders is its path below the folder that the user named. Empty lines and
lines that begin with ``#`` are passed over, and so is what follows two spaces and ``# `` behind an id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.tree import counted, listed
from tutelage.data.subset import Subset

REASON = "  # "  # between an id and the reason why it is left out
ROLES = ("train", "unlabelled", "val", "teacher")  # the parts from which images can be left out


@dataclass(frozen=True)
class Exclusion:
    """The images that a list leaves out.

    Attributes:
        file: the list, as the recipe names it.
        digest: a hash of the ids in it, without comments and whatever their order.
        left_out: the ids that were left out of each part.
    """

    file: str
    digest: str
    left_out: Mapping[str, list[str]]

    def note(self) -> str:
        """Count and name what was left out."""
        names = [name for names in self.left_out.values() for name in names]
        shares = ", ".join(f"{len(names):,} of {role}" for role, names in self.left_out.items())
        return (
            f"data.exclude={self.file}: {counted(len(names), 'image')} left out ({shares}): {listed(names)}"
        )

    def record(self) -> dict[str, Any]:
        """What is recorded in the run directory, so that an edited list is noticed."""
        return {
            "file": self.file,
            "digest": self.digest,
            "images": {role: len(names) for role, names in self.left_out.items()},
        }


def leave_out(
    parts: Mapping[str, Subset], sets: Mapping[str, ImageSet], file: str
) -> tuple[dict[str, Subset], Exclusion]:
    """Leave the images of a list out of all parts but test.

    The split is made before, so that the test images are the same with and without a list.

    Args:
        parts: the subsets of a run, by role.
        sets: what each role takes its images from.
        file: the list.

    Raises:
        TutelageError: the list cannot be read, or a line of it names no image, a test image, or images of two sources.
    """
    lines = read_list(file)
    found = _found(lines, parts, sets, file)
    changed = dict(parts)
    left_out = {}
    for role in ROLES:
        if role not in parts or not (indices := found.get(parts[role].images.origin)):
            continue
        part = parts[role]
        gone = np.isin(part.indices, indices)
        if gone.any():
            left_out[role] = [part.id(position) for position in np.flatnonzero(gone).tolist()]
            split = f"{part.split}; without {counted(len(left_out[role]), 'image')} of {file}"
            changed[role] = replace(part, indices=part.indices[~gone], split=split)
    text = "\n".join(sorted(lines)).encode("utf-8", "surrogateescape")
    return changed, Exclusion(file, hashlib.sha256(text).hexdigest(), left_out)


def read_list(file: str) -> dict[str, int]:
    """Read the ids of a list, each with the number of its line.

    Raises:
        TutelageError: it is missing or no text.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TutelageError(
            f"data.exclude={file}: no such file; name a text file with an image on each line, such as cat/1.jpg"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TutelageError(f"data.exclude={file}: cannot be read ({one_line(error)})") from None
    names: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            names.setdefault((line.rpartition(REASON)[0] or line).strip().removeprefix("./"), number)
    return names


def writer(sets: Mapping[str, ImageSet]) -> Callable[[ImageSet, str], str]:
    """Return a function of a set and an id that writes the id as a list names it.

    Where two sources have an image of one id, its role stands before it.

    Args:
        sets: what each role takes its images from.
    """
    sources = {sets[role].origin: sets[role] for role in ROLES if role in sets}
    known = {origin: set(images.ids) for origin, images in sources.items()} if len(sources) > 1 else {}

    def write(images: ImageSet, name: str) -> str:
        if not any(name in ids for origin, ids in known.items() if origin != images.origin):
            return name
        return next(f"{role}:{name}" for role in ROLES if role in sets and sets[role].origin == images.origin)

    return write


def _found(
    lines: Mapping[str, int], parts: Mapping[str, Subset], sets: Mapping[str, ImageSet], file: str
) -> dict[str, list[int]]:
    """The indices of the images that a list names, by the origin of their source."""
    places = {images.origin: _places(images, lines) for images in sets.values()}
    usable = {sets[role].origin for role in ROLES if role in sets}
    tested = {(parts["test"].images.origin, index) for index in parts["test"].indices.tolist()}
    found: dict[str, list[int]] = {}
    unknown = []
    for line, number in lines.items():
        role, _, rest = line.partition(":")
        here = [origin for origin in usable if line in places[origin]]
        name = line
        if len(here) != 1 and role in ROLES and role in sets and rest in places[sets[role].origin]:
            here, name = [sets[role].origin], rest
        where = f"data.exclude={file}: line {number}: {line}"
        if len(here) > 1:
            roles = [role for role in ROLES if role in sets and sets[role].origin in here]
            raise TutelageError(
                f"{where} is an image of {' and of '.join(f'data.{role}' for role in roles)}; write "
                f"{' or '.join(f'{role}:{line}' for role in roles)}"
            )
        if (here and (here[0], places[here[0]][name]) in tested) or (
            not here and line in places[sets["test"].origin]
        ):
            raise TutelageError(
                f"{where} is a test image, and test images are never left out, since that would change what is "
                "measured; remove the line"
            )
        if here:
            found.setdefault(here[0], []).append(places[here[0]][name])
        else:
            unknown.append((number, line))
    if unknown:
        number, line = unknown[0]
        more = f" ({counted(len(unknown) - 1, 'other line')} of it too)" if len(unknown) > 1 else ""
        names = ", ".join(dict.fromkeys(sets[role].name for role in ROLES if role in sets))
        raise TutelageError(
            f"data.exclude={file}: line {number}: {line!r} is no image of {names}{more}; write paths below the "
            f"folder, such as {sets['train'].ids[0]}"
        )
    return found


def _places(images: ImageSet, lines: Mapping[str, int]) -> dict[str, int]:
    """The index of each image of a set that a list may name."""
    wanted = {name for line in lines for name in (line, line.partition(":")[2])}
    return {name: index for index, name in enumerate(images.ids) if name in wanted}
