"""Tables of a number of each class for each image: CSV, Parquet and NumPy (.npz) files."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.sources.table import COLUMNS, DELIMITERS
from tutelage.data.sources.tree import listed

# The usual names of the column of images. A column named by a digit is that of a class.
IMAGE = tuple(name for name in COLUMNS["image"] if not name.isdigit())
NEEDS = "name the column of the images 'image', or by ?image=COLUMN, and each other column by its class"


@dataclass(frozen=True)
class Scores:
    """A table.

    Attributes:
        images: (N,) names, in the order of the rows.
        classes: (C,) names, in the order of the columns.
        values: (N, C) float32; NaN where a cell is empty.
        output: ``probabilities`` or ``logits``, where the file tells.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    values: np.ndarray
    output: str | None = None


def read_scores(path: Path, image: str | None = None) -> Scores:
    """Read a table by the suffix of its file; columns of text beside that of the images are passed over.

    Args:
        path: of a ``.csv``, ``.tsv``, ``.parquet`` or ``.npz`` file.
        image: the column of the images; None: it has a usual name, or is the first column of text.

    Raises:
        TutelageError: the file is of another kind or damaged, or has no column of images.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".npz": _npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TutelageError(f"{path}: is no {listed(tuple(readers))} file; save the table as one of these")
    return reader(path, image)


def _csv(path: Path, image: str | None) -> Scores:
    lines = _lines(path)
    _, header = next(lines, (0, []))
    first = next(lines, None)
    if first is None:
        raise TutelageError(f"{path}: has no rows below its line of column names; {NEEDS}")
    _check_cells(path, header, *first)
    numeric = {name for name, cell in zip(header, first[1], strict=True) if _number(cell) is not None}
    at = _image_column(path, header, image, numeric)
    columns = [place for place, name in enumerate(header) if name in numeric and place != at]
    images, rows = [], []
    for number, cells in (first, *lines):
        _check_cells(path, header, number, cells)
        images.append(cells[at].strip())
        found = [_number(cells[place]) for place in columns]
        if None in found:
            place = columns[found.index(None)]
            raise TutelageError(
                f"{path}: line {number}: column {header[place]!r} holds {cells[place]!r}, which is no number"
            )
        rows.append(np.array(found, np.float32))
    return Scores(tuple(images), tuple(header[place] for place in columns), np.stack(rows))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line that is not empty."""
    reader = None
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(DELIMITERS, key=head.count))
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        at = f"line {reader.line_num}: " if reader else ""
        raise TutelageError(f"{path}: {at}cannot be read as CSV in UTF-8 ({one_line(error)[:100]})") from None


def _check_cells(path: Path, header: Sequence[str], number: int, cells: Sequence[str]) -> None:
    if len(cells) != len(header):
        raise TutelageError(
            f"{path}: line {number} has {len(cells)} cells, and its first line names {len(header)} columns"
        )


def _number(cell: str) -> float | None:
    """The number in a cell, NaN for an empty one; None for text."""
    try:
        return float(cell) if cell else float("nan")
    except ValueError:
        return None


def _image_column(path: Path, header: Sequence[str], wish: str | None, numeric: set[str]) -> int:
    """The place of the column of images: as named, with a usual name, or the first one of text."""
    if wish is not None:
        if wish in header:
            return header.index(wish)
        raise TutelageError(f"{path}: image={wish}: no such column; it has {listed(header)}")
    lower = [name.lower() for name in header]
    usual = [lower.index(name) for name in IMAGE if name in lower]
    text = [place for place, name in enumerate(header) if name not in numeric]
    if not (usual or text):
        raise TutelageError(f"{path}: no column of images; it has {listed(header)}: {NEEDS}")
    return (usual or text)[0]


def _parquet(path: Path, image: str | None) -> Scores:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TutelageError(f"{path}: needs the package pyarrow: pip install 'tutelage[parquet]'") from None
    try:
        file = pq.ParquetFile(path)
        kinds = {field.name: field.type for field in file.schema_arrow}
        numeric = {
            name
            for name, kind in kinds.items()
            if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
        }
        header = list(kinds)
        at = _image_column(path, header, image, numeric)
        columns = [name for name in header if name in numeric and name != header[at]]
        table = file.read(columns=[header[at], *columns])
        images = tuple("" if one is None else str(one) for one in table[header[at]].to_pylist())
        values = [table[name].cast(pa.float32(), safe=False).to_numpy() for name in columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TutelageError(f"{path}: no Parquet file that can be read ({one_line(error)[:200]})") from None
    return Scores(images, tuple(columns), np.array(values, np.float32).reshape(len(columns), -1).T.copy())


def _npz(path: Path, image: str | None) -> Scores:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: Mapping[str, Any] = dict(archive)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise TutelageError(f"{path}: no .npz file that can be read ({one_line(error)[:200]})") from None
    needs = "it needs images (N,), classes (C,), and logits or probabilities (N, C)"
    kinds = [kind for kind in ("logits", "probabilities") if kind in arrays]
    if not {image or "images", "classes"} <= arrays.keys() or len(kinds) != 1:
        raise TutelageError(f"{path}: has the arrays {listed(tuple(arrays)) or 'none'}; {needs}")
    images, classes, values = arrays[image or "images"], arrays["classes"], arrays[kinds[0]]
    if values.shape != (images.size, classes.size) or values.dtype.kind not in "fiu":
        raise TutelageError(
            f"{path}: {kinds[0]} is {values.dtype} of shape {values.shape}, for {images.size} images and "
            f"{classes.size} classes; {needs}"
        )
    names = [tuple(map(str, array.reshape(-1).tolist())) for array in (images, classes)]
    return Scores(names[0], names[1], values.astype(np.float32), kinds[0])
