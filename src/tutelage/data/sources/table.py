"""Lists of images: a CSV or Parquet file with the path of an image and its class in each row.

``csv:labels.csv`` and ``parquet:labels.parquet``; a path of such a file needs no kind. Columns are found by their
usual names, or named behind a question mark: ``csv:labels.csv?image=photo&label=species``. ``label=`` without a name
takes none. Paths are relative to the folder of the file, or to another one (``root=FOLDER``), and lead to nothing
outside of it. A row without a class is an unlabelled image. A column of train, val and test gives the parts.
"""

from __future__ import annotations

import csv
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError, one_line
from tutelage.data.decode import SUFFIXES, UnreadableImage
from tutelage.data.sources.base import PART_NAMES, canonical_part
from tutelage.data.sources.files import Files
from tutelage.data.sources.names import label_indices
from tutelage.data.sources.tree import counted, listed

# The usual names of each column, in the order in which they are looked for; capitals do not matter. Columns of a list
# without a line of names are 1, 2, 3...
COLUMNS = {
    "image": (
        *("image", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path"),
        *("image_name", "img", "photo", "picture", "image_id", "id", "1"),
    ),
    "label": ("label", "labels", "class", "class_name", "target", "category", "cls", "2"),
    "split": ("split", "subset", "partition", "set", "part"),
}
DELIMITERS = ",;\t|"
EXAMPLE = "?image=path&label=class"


@dataclass(frozen=True)
class _Place:
    """Where a list is, and which of its columns are used; a column that is not in `columns` is looked for."""

    name: str  # of the source, as it is written
    file: Path
    root: Path
    columns: tuple[tuple[str, str], ...]

    def wrong(self, reason: str) -> TutelageError:
        return TutelageError(f"{self.name}: {reason}")


@dataclass(frozen=True)
class _Row:
    """An image of a list: number of the row or line, path below the root, class and part ("": it has none)."""

    number: int
    path: str
    label: str
    part: str


@dataclass(frozen=True)
class _Rows:
    """All rows of a list; `unit` is what their numbers count."""

    rows: tuple[_Row, ...]
    unit: str
    has_parts: bool
    notes: tuple[str, ...]


class Listed(Files):
    """The images of a list, or of one part of it."""

    def __init__(self, place: _Place, name: str, origin: str, found: _Rows, rows: Sequence[_Row]) -> None:
        self.notes = found.notes
        self._row = f"{found.unit} {{}} of {place.file.name}"
        self._numbers = np.array([row.number for row in rows], np.int64)
        classes, labels = label_indices([row.label or None for row in rows])
        paths, sizes = _existing(place, found.unit, rows)
        super().__init__(name, place.root, origin, paths, classes, labels)
        self._sizes = sizes

    def image(self, index: int) -> Image.Image:
        """Decode one file; an error names the row too."""
        try:
            return super().image(index)
        except UnreadableImage as error:
            row = self._row.format(self._numbers[index])
            raise UnreadableImage(error.image_id, f"{error.reason}; {row}") from None


def parts(where: str) -> tuple[str, ...]:
    """The parts that the rows name; none where there is no such column."""
    found = _read(where)
    if not found.has_parts:
        return ()
    named = {row.part for row in found.rows}
    return tuple(part for part in PART_NAMES if part in named)


def load(where: str, part: str | None) -> Listed:
    """Open all images of a list, or those of one part."""
    place, found = _place(where), _read(where)
    rows: Sequence[_Row] = found.rows
    name = f"{place.name}#{part}" if part else place.name
    if part is not None:
        rows = [row for row in rows if row.part == canonical_part(part)]
        if not rows:
            there = ", ".join(parts(where)) or "no parts, since no column names them"
            raise TutelageError(f"{name}: no row is of this part; it has {there}")
    kind = _kind(place.file)
    origin = f"{kind}:{place.file.resolve()}" + (f"#{canonical_part(part)}" if part else "")
    return Listed(place, name, origin, found, rows)


def _kind(file: Path) -> str:
    return "parquet" if file.suffix.lower() == ".parquet" else "csv"


def _place(where: str) -> _Place:
    """Take a path and its options apart."""
    path, _, options = (where, "", "") if Path(where).expanduser().exists() else where.partition("?")
    file = Path(path).expanduser()
    name = f"{_kind(file)}:{where}"
    if not file.is_file():
        reason = "a folder, not a file" if file.is_dir() else "no such file"
        raise TutelageError(f"{name}: {reason}; name a list of images, such as csv:labels.csv")
    try:
        named = parse_qsl(options, keep_blank_values=True, strict_parsing=bool(options))
    except ValueError:
        raise TutelageError(f"{name}: the options are not understood; write them as in {EXAMPLE}") from None
    known = (*COLUMNS, "root")
    for key, _ in named:
        if key not in known:
            raise TutelageError(
                f"{name}: unknown option {key!r}; there are {', '.join(known)}, as in {EXAMPLE}"
            )
    chosen = dict(named)
    root = Path(chosen.pop("root", "") or file.parent).expanduser()
    if not root.is_dir():
        raise TutelageError(f"{name}: root={root}: no such folder; name the one that the paths begin in")
    return _Place(name, file, root, tuple(chosen.items()))


def _read(where: str) -> _Rows:
    place = _place(where)
    stat = place.file.stat()
    return _read_once(place, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=4)  # train, val and test may be parts of one list
def _read_once(place: _Place, stamp: tuple[int, int]) -> _Rows:
    parquet = _kind(place.file) == "parquet"
    unit = "row" if parquet else "line"
    header, cells = (_parquet if parquet else _csv)(place)
    columns = {use: _column(place, header, use) for use in COLUMNS}
    if columns["label"] is None and "label" not in dict(place.columns):
        used = {columns["image"], columns["split"]}
        if others := [name for number, name in enumerate(header) if number not in used]:
            raise place.wrong(
                f"no column of classes; it has {', '.join(others)}: name one, as in ?label={others[0]}, or none by "
                "?label="
            )
    rows, notes = _checked(place, unit, cells, columns)
    return _Rows(tuple(rows), unit, columns["split"] is not None, tuple(notes))


def _column(place: _Place, header: Sequence[str], use: str) -> int | None:
    """The number of the column for a use; None where there is none, and none is needed."""
    chosen = dict(place.columns).get(use)
    if chosen is not None:
        if chosen in header:
            return header.index(chosen)
        if chosen or use == "image":
            raise place.wrong(f"{use}={chosen}: no such column; it has {', '.join(header)}")
        return None
    lower = [name.lower() for name in header]
    found = next((lower.index(name) for name in COLUMNS[use] if name in lower), None)
    if found is None and use == "image":
        raise place.wrong(
            f"no column of paths; it has {', '.join(header)}: name one, as in ?image={header[0] or 'path'}"
        )
    return found


def _checked(
    place: _Place, unit: str, cells: Iterable[tuple[int, Sequence[str]]], columns: dict[str, int | None]
) -> tuple[list[_Row], list[str]]:
    """The rows, each image once, with notes.

    Raises:
        TutelageError: names the row that has no path, leads outside, names no part, or says of an image what another
            row does not say.
    """
    root = os.path.abspath(place.root)
    needed = max(number for number in columns.values() if number is not None) + 1
    seen: dict[str, _Row] = {}
    again = 0
    for number, row in cells:
        if len(row) < needed:
            raise place.wrong(f"{unit} {number} has {counted(len(row), 'cell')}, and {needed} are needed")
        image, label, part = ("" if at is None else row[at].strip() for at in columns.values())
        path = _below(place, f"{unit} {number}", root, image)
        if columns["split"] is not None:
            if canonical_part(part) not in PART_NAMES:
                raise place.wrong(
                    f"{unit} {number}: the part is {part!r}, and should be train, val or test; ?split= takes no column"
                )
            part = canonical_part(part)
        this = _Row(number, path, label, part)
        first = seen.setdefault(path, this)
        for what, one, other in (("classes", first.label, label), ("parts", first.part, part)):
            if one != other:
                raise place.wrong(
                    f"{image} has two {what}, {one or 'none'} in {unit} {first.number} and {other or 'none'} in {unit} "
                    f"{number}; leave one of them"
                )
        again += first is not this
    notes = (
        [f"{place.name}: {counted(again, 'row')} passed over, which an earlier row repeats"] if again else []
    )
    return list(seen.values()), notes


def _below(place: _Place, row: str, root: str, image: str) -> str:
    """The path of an image below the root, with slashes."""
    if not image or "\0" in image:
        raise place.wrong(f"{row}: {'the path has a zero byte' if image else 'no path of an image'}")
    if "://" in image:
        raise place.wrong(f"{row}: {image} is an address of the web; download the images first")
    path = os.path.normpath(os.path.join(root, os.path.expanduser(image)))
    if not path.startswith(root.rstrip(os.sep) + os.sep):
        raise place.wrong(
            f"{row}: {image} is not below {place.root}; name a folder that holds all images, as in ?root=FOLDER"
        )
    return path[len(root.rstrip(os.sep)) + 1 :].replace(os.sep, "/")


def _existing(place: _Place, unit: str, rows: Sequence[_Row]) -> tuple[list[str], np.ndarray]:
    """The paths of rows and the sizes of their files, in bytes; all files are there."""
    root = os.fspath(place.root)
    paths, sizes, missing = [], np.zeros(len(rows), np.int64), []
    for index, row in enumerate(rows):
        # a list that was written on Windows has backslashes
        for path in dict.fromkeys((row.path, row.path.replace("\\", "/"))):
            try:
                sizes[index] = os.stat(os.path.join(root, path)).st_size
            except OSError:
                continue
            paths.append(path)
            break
        else:
            missing.append(row)
    if missing:
        where = f"{unit} {missing[0].number}: there is no file {missing[0].path} in {place.root}"
        more = listed([str(row.number) for row in missing[1:]])
        raise place.wrong(
            where + (f"; nor those of {counted(len(missing) - 1, unit)} more: {more}" if more else "")
        )
    return paths, sizes


def _csv(place: _Place) -> tuple[list[str], Iterator[tuple[int, Sequence[str]]]]:
    """(names of the columns, (line, cells) of each row); without a first line of names, these are 1, 2, 3...

    The delimiter is the comma, semicolon, tabulator or bar that the first line has most of.
    """
    lines = _csv_lines(place)
    first = next(lines, None)
    if first is None:
        raise place.wrong("the file is empty; its first line names the columns, such as path,label")
    header = [cell.strip() for cell in first[1]]
    if any(Path(cell).suffix.lower() in SUFFIXES for cell in header):
        return [str(number) for number in range(1, len(header) + 1)], itertools.chain([first], lines)
    return header, lines


def _csv_lines(place: _Place) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, each with the number of its last line."""
    try:
        # bytes that are no UTF-8 are kept, so that paths lead to their files
        with open(place.file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            head = stream.readline()
            if "\0" in head:
                raise place.wrong("not a text in UTF-8; save the table as CSV in UTF-8")
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(DELIMITERS, key=head.count))
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except OSError as error:
        raise place.wrong(f"cannot be read ({error.strerror})") from None
    except csv.Error as error:
        raise place.wrong(f"line {reader.line_num}: no CSV ({one_line(error)})") from None


def _parquet(place: _Place) -> tuple[list[str], Iterator[tuple[int, Sequence[str]]]]:
    """(names of the columns, (row, cells) of each row), counted from 1."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise place.wrong("needs the package pyarrow: pip install 'tutelage[parquet]'") from None
    try:
        file = pq.ParquetFile(place.file)
        schema = file.schema_arrow
        plain = [
            field.name
            for field in schema
            if not (pa.types.is_nested(field.type) or pa.types.is_binary(field.type))
        ]
        if len(plain) < len(schema) and not set(map(str.lower, plain)) & set(COLUMNS["image"]):
            raise place.wrong(
                f"it holds the pictures themselves; write hf:{place.file}, which needs pip install 'tutelage[hf]'"
            )
        table = file.read(columns=plain)
    except (pa.ArrowException, OSError) as error:
        raise place.wrong(f"no Parquet file that can be read ({one_line(error)[:200]})") from None
    columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    return table.column_names, enumerate(zip(*columns, strict=True), start=1)


def _text(value: Any) -> str:
    """A cell of Parquet as text; a column of whole numbers with gaps is one of floats."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
