"""A folder with a folder for each class; or with train/, val/ and test/ of such; or with unlabelled images.

Images in a folder ``_unlabelled`` beside the class folders, or beside train/, are training images without a label.
Folders around these (``photos/photos/...`` of an unpacked zip) are looked through, and well-known data sets are read
by their own lists of labels (`layouts`).
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.decode import SUFFIXES, remedy
from tutelage.data.sources import scan
from tutelage.data.sources.base import canonical_part
from tutelage.data.sources.files import Files
from tutelage.data.sources.layouts import Listing, labels_of, read_layout
from tutelage.data.sources.names import Paths, class_name, image_id
from tutelage.data.sources.scan import STATS, Scan, keep, kept, stats_of
from tutelage.data.sources.tree import Tree, counted, folders, holds_images, listed, unread_note, walk

PARTS = ("train", "val", "test")
UNLABELLED = {"_unlabelled", "_unlabeled"}  # folders that are no classes
# A folder of one of these names that holds all images of a part is no class.
GENERIC = frozenset({"images", "image", "imgs", "img", "jpg", "jpegs", "jpegimages", "photos", "pictures"})
HINTS = {
    ".tar": "write wds:PATTERN, or unpack them",
    ".parquet": "name the file itself; of one with the pictures in it, write hf:PATH",
    ".arrow": "write hf:PATH",
    ".zip": "name the file itself, such as photos.zip",
    ".gz": "unpack them",
    ".tgz": "unpack them",
}
PICKLED = "data_batch_1"  # of CIFAR-10's and CIFAR-100's python version, with "train"


@dataclass(frozen=True)
class Found:
    """Images of a folder.

    Attributes:
        files: paths.
        classes: of each image; None: it has none.
        notes: sentences about what is not used.
        folders: that decide what is found, each with its time in ns; () where files decide it too.
    """

    files: Sequence[Path]
    classes: Sequence[str | None]
    notes: tuple[str, ...] = ()
    folders: dict[str, int] = field(default_factory=dict)

    def scan(self, root: Path, stats: bool) -> Scan:
        """What was found, in little memory; with `stats`, every file is looked at."""
        classes = sorted({cls for cls in self.classes if cls is not None})
        place = {cls: label for label, cls in enumerate(classes)}
        labels = np.array([-1 if cls is None else place[cls] for cls in self.classes], np.int64)
        paths = [file.relative_to(root).as_posix() for file in self.files]
        found = stats_of(root, paths) if stats else np.empty((0, len(STATS)), np.int64)
        return Scan(Paths.of(paths), tuple(classes), labels, self.notes, found)


class Folder(Files):
    """The images of a folder; ids are paths below the folder that the user named."""

    def __init__(
        self, name: str, root: Path, origin: str, found: Scan, notes_before: tuple[str, ...] = ()
    ) -> None:
        self.notes = notes_before + found.notes
        labels = found.labels if found.classes else None
        stats = found.stats if len(found.stats) else None
        super().__init__(name, root, origin, found.paths, found.classes or None, labels, stats)


def parts(where: str) -> tuple[str, ...]:
    """The names of the train, val and test folders, where the folder consists of these."""
    top = _unwrapped(_existing(where))
    return tuple(sorted(read_layout(top) or _parts(top)))


def load(where: str, part: str | None) -> Folder:
    """Open a folder, or one part of it."""
    root = _existing(where)
    top = _unwrapped(root)
    name = f"folder:{where}#{part}" if part else f"folder:{where}"
    around = () if top == root else (f"{name}: its images are read from {top.relative_to(root)}/",)
    if (layout := read_layout(top)) is not None and part is not None:
        found = _of_layout(name, layout, part)
        return Folder(name, root, f"{top.resolve()}#{canonical_part(part)}", found.scan(root, False))
    beside: list[Path] = []
    if part is not None:
        beside = _unlabelled(top) if canonical_part(part) == "train" else []
        top = _part(where, name, top, part)
        around = ()
    return Folder(name, root, str(top.resolve()), _scanned(name, top, root, beside), around)


def _scanned(name: str, top: Path, root: Path, beside: Sequence[Path]) -> Scan:
    """What `_found` finds; of very many images, what an earlier start has found."""
    further = [*_unlabelled(top), *beside]
    where = [root, top, *further]
    if (before := kept(name, where)) is not None:
        return before
    began = time.time()
    found = _found(name, top, root, further)
    many = len(found.files) >= scan.LEAST and bool(found.folders)
    result = found.scan(root, many)
    if many:
        keep(name, where, result, found.folders, began)
    return result


def _of_layout(name: str, layout: Listing, part: str) -> Found:
    images = layout.get(canonical_part(part))
    if images is None:
        raise TutelageError(f"{name}: no such part; it has {', '.join(layout)}")
    there = [(path, class_name(cls)) for path, cls in images if path.is_file()]
    missing = [path.name for path, _ in images if not path.is_file()]
    notes = (
        (f"{name}: {counted(len(missing), 'image')} of its list missing: {listed(missing)}",)
        if missing
        else ()
    )
    there.sort(key=lambda image: (image[1], image[0]))
    return Found([path for path, _ in there], [cls for _, cls in there], notes)


def _found(name: str, top: Path, root: Path, beside: Sequence[Path]) -> Found:
    """The images below a folder of classes, or in a folder of unlabelled images; and those of folders beside these."""
    loose = walk(top, deep=False)
    trees = {folder: walk(folder) for folder in folders(top) if folder.name not in UNLABELLED}
    apart = [walk(folder) for folder in beside]
    classes = {folder: tree for folder, tree in trees.items() if tree.images}
    if len(classes) == 1 and not loose.images and (only := next(iter(classes))).name.lower() in GENERIC:
        loose, classes = classes[only], {}
    everything = Tree()
    for tree in (loose, *(tree for folder, tree in trees.items() if tree is not loose), *apart):
        everything.add(Tree(unread=tree.unread, lost=tree.lost, others=tree.others, folders=tree.folders))
    notes = unread_note(name, everything.unread)
    if everything.lost:
        paths = listed([image_id(path.relative_to(top).as_posix()) for path in everything.lost])
        notes.append(f"{name}: {counted(len(everything.lost), 'link')} to nowhere passed over: {paths}")
    further = [file for tree in apart for file in sorted(tree.images)]
    files: list[Path] = []
    labels: list[str | None] = []
    if classes:
        notes += _passed_over(name, loose, trees, classes)
        for folder, tree in sorted(classes.items(), key=lambda item: class_name(item[0].name)):
            files += sorted(tree.images)
            labels += [class_name(folder.name)] * len(tree.images)
    else:
        files = sorted(loose.images)
        named = labels_of(files, top, root) if files else None
        labels += [class_name(cls) for cls in named] if named else [None] * len(files)
        if named:
            everything.folders.clear()  # a list of labels may change where its folder does not
    if not files and not further:
        raise TutelageError(_nothing(name, top, everything))
    return Found([*files, *further], [*labels, *[None] * len(further)], tuple(notes), everything.folders)


def _passed_over(name: str, loose: Tree, trees: dict[Path, Tree], classes: dict[Path, Tree]) -> list[str]:
    """Notes on images beside the class folders, and on folders without images."""
    notes = []
    if loose.images:
        beside = sorted(path.name for path in loose.images)
        if len(classes) < 2 or len(loose.images) >= sum(len(tree.images) for tree in classes.values()):
            raise TutelageError(
                f"{name}: {beside[0]} lies beside the class folders; move it into one of them or, if its class is not "
                "known, into a folder _unlabelled beside them, or remove it"
            )
        notes.append(
            f"{name}: {counted(len(beside), 'image')} beside the class folders passed over: {listed(beside)}"
        )
    if empty := [folder.name for folder in trees if folder not in classes]:
        notes.append(f"{name}: folders without images are no classes: {listed(empty)}")
    return notes


def _nothing(name: str, top: Path, tree: Tree) -> str:
    """Why there are no images, by what is there instead."""
    line = f"{name}: no images found; looked for {' '.join(sorted(SUFFIXES))}"
    if (top / PICKLED).is_file() or {"train", "test", "meta"} <= {
        p.name for p in top.iterdir() if p.is_file()
    }:
        return f"{line}; this is CIFAR's python version: save its images as files, or write hf:cifar10"
    there: Counter[str] = tree.unread + tree.others
    if not there:
        return line
    kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in there.most_common(4))
    suffix = there.most_common(1)[0][0]
    hint = remedy(suffix) if suffix in tree.unread else HINTS.get(suffix)
    return f"{line}; there are {kinds}" + (f" ({suffix}: {hint})" if hint else "")


def _existing(where: str) -> Path:
    root = Path(where).expanduser()
    if not root.exists():
        raise TutelageError(f"folder:{where}: no such folder")
    if not root.is_dir():
        raise TutelageError(f"folder:{where}: a file, not a folder; name the folder that holds the images")
    return root


def _unwrapped(root: Path) -> Path:
    """The folder of classes or parts in a folder that holds nothing else, as an unpacked zip has it; or the folder."""
    if read_layout(root) or _parts(root) or walk(root, deep=False).images:
        return root
    holders = _two_with_images(root)
    if len(holders) != 1:
        return root
    inner = _unwrapped(holders[0])
    if read_layout(inner) or _parts(inner):
        return inner
    return inner if len(_two_with_images(inner)) == 2 and not walk(inner, deep=False).images else root


def _two_with_images(root: Path) -> list[Path]:
    """The folders in a folder that hold images; no more than two of them are looked for."""
    return list(itertools.islice(filter(holds_images, folders(root)), 2))


def _parts(root: Path) -> dict[str, list[Path]]:
    """Folders of the parts by their common names. A class that happens to be called 'train' is not a part."""
    own = [folder for folder in folders(root) if folder.name not in UNLABELLED]
    found: dict[str, list[Path]] = {}
    for folder in own:
        if canonical_part(folder.name) in PARTS:
            found.setdefault(canonical_part(folder.name), []).append(folder)
    paired = "train" in found and len(found) > 1
    return found if found and (paired or sum(map(len, found.values())) == len(own)) else {}


def _unlabelled(root: Path) -> list[Path]:
    return [folder for folder in folders(root) if folder.name in UNLABELLED]


def _part(where: str, name: str, top: Path, part: str) -> Path:
    """The folder of a part.

    Raises:
        TutelageError: there is none, or there are two.
    """
    found = _parts(top).get(canonical_part(part), [])
    if not found:
        raise TutelageError(f"{name}: there is no such folder below {where}")
    if len(found) > 1:
        names = " and ".join(folder.name for folder in found)
        raise TutelageError(
            f"{name}: the folders {names} are both its part {canonical_part(part)}; remove or rename one of them, "
            f"or name the one to use, such as data.{canonical_part(part)}=folder:{found[0]}"
        )
    return found[0]
