"""Results that several runs share: the first run that needs one computes it, the others wait and use it.

A file is shared under a digest of everything that its content depends on, so that a shared result is bit for bit
the one that each run would have computed by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from tutelage.core.files import link_file, unwritable
from tutelage.distillation.stage import Stage, Trained
from tutelage.models.digest import state_digest
from tutelage.pipeline.context import Context

INCIDENTAL = {"checkpoint_minutes", "max_bad_steps"}  # settings of the loop that do not change the weights


@contextmanager
def made_once(context: Context, path: Path, key: Callable[[], Mapping[str, Any]]) -> Iterator[bool]:
    """Get a file of the run from the memo directory, or put it there after the body of the `with` has made it.

    The body runs in either case, and gets True where the file came from the memo. Without a memo directory
    (`context.memo`) nothing else happens. All processes of a run have to call this: the first one holds a lock of
    the file meanwhile, so that other runs wait, and its result is that of all processes.

    Args:
        context: of the run.
        path: the file in the run.
        key: returns everything that the content depends on, JSON-able; called in the first process only.

    Raises:
        TutelageError: in every process, where the first one cannot lock or link the file.
    """
    if context.memo is None:
        yield False
        return
    memo, runtime = context.memo, context.runtime
    with ExitStack() as stack:

        def fetch() -> tuple[Path, bool]:
            text = json.dumps(key(), sort_keys=True)
            shared = memo / f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:20]}{path.suffix}"
            _lock(shared, stack)
            if shared.exists():
                link_file(shared, path)
                return shared, True
            return shared, False

        shared, found = runtime.on_main(fetch)
        yield found
        if not found:
            runtime.on_main(lambda: link_file(path, shared))


def _lock(shared: Path, stack: ExitStack) -> None:
    """Wait for the lock of a file in the memo directory, and remove temporary files that killed processes left."""
    try:
        shared.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(shared.with_name(f"{shared.name}.lock")))
    except OSError as error:
        raise unwritable(shared, error) from None
    for temporary in shared.parent.glob(f".{shared.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def train_once(stage: Stage, context: Context) -> Trained:
    """Train a stage without a teacher, or use its final checkpoint from a run that had the same stage."""
    with made_once(context, context.checkpoint(stage), lambda: stage_key(stage, context)):
        return context.train(stage)


def stage_key(stage: Stage, context: Context) -> dict[str, Any]:
    """Return everything that the result of a stage without a teacher depends on; call it before the training."""
    module = stage.model.module
    return {
        "stage": stage.name,
        "settings": stage.settings.model_dump(mode="json", exclude=INCIDENTAL),
        "view": [stage.view.model_dump(mode="json"), stage.views, stage.steps],
        "objective": [repr(stage.objective), stage.objective.l2_sp],
        "network": [stage.model.name, repr(module), repr(getattr(module, "drop_rate", None))],
        "state": state_digest(module.state_dict()),
        "input": stage.model.input_spec.to_dict(),
        "images": [stage.train.digest(), stage.val.digest()],
        "metric": stage.metric,
        "head": [stage.head_only, stage.head_index.tolist()],
        "machine": [context.runtime.precision, context.runtime.device.type],
    }
