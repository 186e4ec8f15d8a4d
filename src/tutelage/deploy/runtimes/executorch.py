"""ExecuTorch programs on XNNPACK, for phones and boards; its Python package, which runs them here, imports torch."""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.deploy.quiet import quiet
from tutelage.deploy.runtimes.base import Options, Runtime, Session, Variant, damaged

_OPENING = threading.Lock()
_pool_is_used = False


class _ExecuTorch:
    """A program for one image; batches are run one image at a time, since XNNPACK gains little from them."""

    def __init__(self, path: Path, threads: int | None) -> None:
        with _OPENING, _unprinted():
            torch: Any = importlib.import_module("torch")
            runtime: Any = importlib.import_module("executorch.runtime")
            _size_pool(threads)
            try:
                # the program is kept, since the method reads from it
                self._program = runtime.Runtime.get().load_program(path)
                self._method = self._program.load_method("forward")
                sizes = self._method.metadata.output_tensor_meta(0).sizes()
            # the binding raises RuntimeError with a number, and KeyError for a program without the method
            except (RuntimeError, KeyError) as error:
                raise damaged(path, str(error)) from None
        self.num_classes = int(sizes[1])
        self._from_numpy = torch.from_numpy
        self._calling = (
            threading.Lock()
        )  # the buffers between the layers belong to the method, not to the call

    def __call__(self, images: np.ndarray) -> np.ndarray:
        given = np.require(images, np.float32, ["C", "W"])  # torch warns of arrays that cannot be written
        with self._calling:
            logits = [
                self._method.execute([self._from_numpy(given[place : place + 1])])[0].numpy()
                for place in range(len(given))
            ]
        return np.concatenate(logits) if logits else np.zeros((0, self.num_classes), np.float32)


def _size_pool(threads: int | None) -> None:
    """Set the size of the pool of threads, which all files of a process share, before the first file is opened.

    Later it stays as it is: files that are open hold the pool, and a new one ends the process in SIGSEGV at their next
    call (ExecuTorch 1.5).
    """
    global _pool_is_used
    if threads and not _pool_is_used:
        library: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
        if library._threadpool_get_thread_count() != threads:
            library._unsafe_reset_threadpool(threads)
    _pool_is_used = True


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Keep what ExecuTorch prints about the CPU and about its own imports, in every process, from the terminal."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield


def _open(path: Path, options: Options) -> Session:
    return _ExecuTorch(path, options.threads)


RUNTIME = Runtime(
    name="executorch",
    format="executorch",
    title="ExecuTorch",
    package="executorch.runtime",
    makers=("executorch.runtime", "torchao"),
    extra="executorch",
    variants=(
        Variant("executorch", "model.pte"),
        Variant("executorch-int8", "model-int8.pte", int8=True),
    ),
    open=_open,
)
