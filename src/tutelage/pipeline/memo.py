"""What several runs would compute alike is computed once: by the first that needs it, the others wait and take it.

A file is shared under a digest of everything that decides its content, so that a shared result is the one
the run would have come to by itself, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from tutelage.core.files import link_file
from tutelage.distillation.stage import Stage, Trained
from tutelage.models.digest import state_digest
from tutelage.pipeline.context import Context

INCIDENTAL = {"checkpoint_minutes", "max_bad_steps"}  # settings of the loop that change no weight


@contextmanager
def made_once(context: Context, mine: Path, key: Callable[[], Mapping[str, Any]]) -> Iterator[bool]:
    """Bring a file of the run from the store, or leave it there once the body has made it.

    The body is told whether it was brought, runs in either case, and is to go on from the file where it is there.
    Without a store (`context.memo`) nothing else happens. A lock is held meanwhile; it falls when its process dies.

    Args:
        context: of the run.
        mine: the file in the run.
        key: what decides its content, JSON-able.
    """
    if context.memo is None:
        yield False
        return
    text = json.dumps(key(), sort_keys=True)
    place = context.memo / f"{mine.stem}-{hashlib.sha256(text.encode()).hexdigest()[:20]}{mine.suffix}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f"{place.name}.lock")):
        if brought := place.exists():
            link_file(place, mine)
        yield brought
        if not brought:
            link_file(mine, place)


def train_once(stage: Stage, context: Context) -> Trained:
    """`train` a stage without a teacher, or take it from a run that began it alike."""
    with made_once(context, context.checkpoint(stage), lambda: stage_key(stage, context)):
        return context.train(stage)


def stage_key(stage: Stage, context: Context) -> dict[str, Any]:
    """What decides the outcome of a stage without a teacher; asked before it is trained."""
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
        "head": [stage.head_only, stage.head_index.tolist()],
        "machine": [context.runtime.precision, context.runtime.device.type],
    }
