"""Results that several runs share: the first run that needs one computes it, the others wait for it and take it.

A file is shared under a digest of everything that decides its content, so that a shared result is bit for bit the
one that each run would have computed by itself.
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
def made_once(context: Context, mine: Path, key: Callable[[], Mapping[str, Any]]) -> Iterator[bool]:
    """Take a file of the run from the memo directory, or keep it there once the body has made it.

    The body is told whether the file was taken. It runs in either case, and uses the file where it exists. Without
    a memo directory (`context.memo`) nothing else happens. All processes of a run have to come here: the first one
    holds a lock of the file meanwhile, so that other runs wait, and the others follow what it found.

    Args:
        context: of the run.
        mine: the file in the run.
        key: everything that decides its content, JSON-able; called in the first process only.

    Raises:
        TutelageError: in every process, where the first one cannot lock or link the file.
    """
    if context.memo is None:
        yield False
        return
    memo, runtime = context.memo, context.runtime
    with ExitStack() as held:

        def take() -> tuple[Path, bool]:
            text = json.dumps(key(), sort_keys=True)
            place = memo / f"{mine.stem}-{hashlib.sha256(text.encode()).hexdigest()[:20]}{mine.suffix}"
            _lock(place, held)
            if place.exists():
                link_file(place, mine)
                return place, True
            return place, False

        place, taken = runtime.on_main(take)
        yield taken
        if not taken:
            runtime.on_main(lambda: link_file(mine, place))


def _lock(place: Path, held: ExitStack) -> None:
    """Wait for the lock of a file in the memo directory, and remove what killed processes left of that file."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(place.with_name(f"{place.name}.lock")))
    except OSError as error:
        raise unwritable(place, error) from None
    for aside in place.parent.glob(f".{place.name}.*.tmp"):
        aside.unlink(missing_ok=True)


def train_once(stage: Stage, context: Context) -> Trained:
    """Train a stage without a teacher, or go on from its end in a run that had the same stage."""
    with made_once(context, context.checkpoint(stage), lambda: stage_key(stage, context)):
        return context.train(stage)


def stage_key(stage: Stage, context: Context) -> dict[str, Any]:
    """Everything that decides the outcome of a stage without a teacher; to be taken before the stage is trained."""
    module = stage.model.module
    return {
        "stage": stage.name,
        "settings": stage.settings.model_dump(mode="json", exclude=INCIDENTAL),
        "view": [stage.view.model_dump(mode="json"), stage.views],
        "objective": [repr(stage.objective), stage.objective.l2_sp],
        "network": [stage.model.name, repr(module), repr(getattr(module, "drop_rate", None))],
        "state": state_digest(module.state_dict()),
        "input": stage.model.input_spec.to_dict(),
        "images": [stage.train.digest(), stage.val.digest()],
        "metric": stage.metric,
        "head": [stage.head_only, stage.head_index.tolist()],
        "machine": [context.runtime.precision, context.runtime.device.type],
    }
