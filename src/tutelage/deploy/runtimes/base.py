"""What a runtime is: the files that it runs, and how it opens them."""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from tutelage.core.errors import TutelageError

T = TypeVar("T")
Arithmetic = Literal["f32", "bf16", "f16"]
Precision = Literal["int8", "int4", "fp32", "fp16"]


class Session(Protocol):
    """A loaded model, which any number of threads may call at the same time."""

    num_classes: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give float32 logits (B, C) of normalised float32 images (B, 3, H, W)."""


class Idle(Generic[T]):
    """What holds the values of one call at a time, such as an interpreter: threads would mix theirs in a common one.

    Args:
        make: one more, where all others are in use; called once at first, so that its errors are seen early.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.first = make()
        self._idle = deque([self.first])

    @contextmanager
    def one(self) -> Iterator[T]:
        """Lend one that no other call has."""
        try:
            found = self._idle.pop()
        except IndexError:
            found = self._make()
        try:
            yield found
        finally:
            self._idle.append(found)


@dataclass(frozen=True)
class Options:
    """How a file is opened.

    Attributes:
        batch: size of every batch, which makes some runtimes faster; None: any size.
        arithmetic: precision of layers that are not int8, where the runtime lets one choose.
        threads: of the CPU; None: as many as the runtime chooses.
    """

    batch: int | None = None
    arithmetic: Arithmetic = "f32"
    threads: int | None = None


@dataclass(frozen=True)
class Variant:
    """A file and how it is run.

    Attributes:
        role: its name in the table.
        file: its name in the directory.
        arithmetic: precision of the layers that are not int8.
        int8: whether the file is quantised.
        int4: whether some of its weights have 4 bits.
        is_option: another way to run a file, which the user may choose: where it fails, the file is still good.
    """

    role: str
    file: str
    arithmetic: Arithmetic = "f32"
    int8: bool = False
    int4: bool = False
    is_option: bool = False

    @property
    def shown(self) -> str:
        """The file, and its precision where it has several: ``model.xml (bf16)``."""
        return f"{self.file} ({self.arithmetic})" if self.is_option else self.file

    @property
    def exact(self) -> bool:
        """Whether its logits should equal PyTorch's, apart from the order of float32 sums."""
        return self.arithmetic == "f32" and not self.int8

    @property
    def precision(self) -> Precision:
        """As `Predictor` and its users name it."""
        return (
            "int4" if self.int4 else "int8" if self.int8 else "fp16" if self.arithmetic == "f16" else "fp32"
        )


@dataclass(frozen=True)
class Runtime:
    """A runtime and the files that are made for it.

    Attributes:
        name: as users choose it: ``onnxruntime``.
        format: name of its files' format in a recipe: ``onnx``.
        title: the format's name in sentences: ``ONNX``.
        package: the module that runs the files.
        makers: the modules that making the files needs, `package` among them where it is one of them.
        extra: of tutelage, which installs `package`.
        maker_extra: of tutelage, which installs `makers`; empty: `extra` does.
        variants: its files, in the order of the table.
        open: makes a session of a file that exists.
        parts: all files and folders that may belong to a model file, itself first.
        supports: whether this machine can run a variant that is an option.
        platform: `sys.platform` of the machines that run its files; empty: all. Elsewhere files are made and inspected.
        inspect: what is wrong with a file of a model with an input of this shape and so many classes, by the file's
            content alone; empty where nothing is.
    """

    name: str
    format: str
    title: str
    package: str
    makers: tuple[str, ...]
    extra: str
    variants: tuple[Variant, ...]
    open: Callable[[Path, Options], Session]
    parts: Callable[[Path], tuple[Path, ...]] = lambda path: (path,)
    supports: Callable[[Variant], bool] = lambda variant: True
    maker_extra: str = ""
    platform: str = ""
    inspect: Callable[[Path, tuple[int, ...], int], str] = lambda path, shape, classes: ""

    @property
    def remedy(self) -> str:
        """How to install it."""
        return f"run `pip install tutelage[{self.extra}]`"

    @property
    def makers_remedy(self) -> str:
        """How to install what makes its files."""
        return f"run `pip install tutelage[{self.maker_extra or self.extra}]`"

    @property
    def converters(self) -> tuple[str, ...]:
        """The packages of `makers`, whose versions are recorded with the files."""
        return tuple(name.partition(".")[0] for name in self.makers)

    @property
    def runs_here(self) -> bool:
        """Whether it could run files on this machine, if it is installed."""
        return self.platform in ("", sys.platform)

    @property
    def is_installed(self) -> bool:
        """Whether it can run files here."""
        return self.runs_here and is_installed(self.package)

    @property
    def missing(self) -> tuple[str, ...]:
        """The modules of `makers` that are not installed."""
        return tuple(name for name in self.makers if not is_installed(name))


def damaged(path: Path, message: str) -> TutelageError:
    """The error of a model file that its runtime refuses; `message` is the runtime's."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "Exception from" not in line), "unreadable")
    return TutelageError(f"{path}: damaged model file ({reason[:160]}); export again, or copy it again")


def is_installed(module: str) -> bool:
    """Whether a module, whose name may be dotted, can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its package is not there, or it was set to None
        return False
