"""Corrupted test images in a run: all four models, on the same pixels, and computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.test_stages import checked_run

from tutelage.core.files import read_json
from tutelage.evaluation.robustness import CORRUPTIONS, corrupted
from tutelage.pipeline.stages import robustness
from tutelage.pipeline.stages.evaluate import labels_of, predict
from tutelage.pipeline.stages.robustness import measure_robustness
from tutelage.pipeline.stages.train import train_control, train_student


def test_a_run_measures_its_four_models_on_corrupted_images_once(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["train"]["epochs"] = 1
    tiny["data"]["limit"] = 96
    tiny["measure"] = {"robustness": True}
    checked = checked_run(tiny, tmp_path)
    control, distilled = train_control(checked), train_student(checked)
    measure_robustness(checked, control, distilled)
    run, prepared = checked.prepared.run, checked.prepared
    found = read_json(run.robustness)
    assert set(found["top1"]) == {"start", "control", "distilled", "teacher"}
    assert [pair["old"] for pair in found["pairs"]] == ["control", "start", "teacher"]
    test = prepared.splits.test
    for kind, models in (("noise", checked.teachers), ("JPEG", (distilled.model,))):
        one = predict(prepared, models[0], corrupted(test, kind, 0))
        right = one.logits.argmax(1) == labels_of(prepared, test, one)
        role = "teacher" if models is checked.teachers else "distilled"
        assert found["top1"][role][list(CORRUPTIONS).index(kind)] == pytest.approx(
            100 * np.mean(right.numpy())
        )
    with monkeypatch.context() as patched:  # a run that is resumed after it has these figures
        patched.setattr(robustness, "predict_together", lambda *_, **__: pytest.fail("it was measured again"))
        measure_robustness(checked, control, distilled)
        run.robustness.unlink()
        with pytest.raises(pytest.fail.Exception):
            measure_robustness(checked, control, distilled)
    assert not run.robustness.exists()
