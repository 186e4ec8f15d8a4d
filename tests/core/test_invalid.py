"""A message names the key, what was given, what is expected, and an example that is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import load_recipe
from tutelage.data.sources.base import open_source
from tutelage.models.registry import load_model


def refusal(override: str) -> str:
    with pytest.raises(TutelageError) as caught:
        load_recipe(None, [override])
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("recipe: ")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        # kinds of values
        ("track=mlflow", "track=mlflow: write a list, such as track=[mlflow]"),
        ("track=[wandb]", "track.0=wandb: write tensorboard or mlflow, such as track=[mlflow]"),
        (
            "teacher.others=resnet50",
            "teacher.others=resnet50: write a list, such as teacher.others=[tf_efficientnet_lite1]",
        ),
        (
            "view.crop_scale=0.5",
            "view.crop_scale=0.5: write a list, such as view.crop_scale=[0.35, 1.0]",
        ),
        (
            "view.crop_scale=[0.5]",
            "view.crop_scale: has too few values; write view.crop_scale=[0.35, 1.0], for instance",
        ),
        ("data=digits", "data=digits: write one of its keys, such as data.train=digits"),
        ("train=3", "train=3: write one of its keys, such as train={epochs: 10}"),
        (
            "loss.options=3",
            "loss.options=3: write a mapping of keys to values, such as loss.options={beta: 8}",
        ),
        ("train.epochs=abc", "train.epochs=abc: write a whole number, such as train.epochs=10"),
        ("train.epochs=2.5", "train.epochs=2.5: write a whole number, such as train.epochs=10"),
        ("train.epochs=null", "train.epochs=null: write a whole number, such as train.epochs=10"),
        ("train.lr=fast", "train.lr=fast: write a number, such as train.lr=3e-4"),
        ("control=maybe", "control=maybe: write true or false, such as control=true"),
        ("loss.name=[kl]", "loss.name=[kl]: write a text, such as loss.name=kl"),
        # one of several kinds: none of pydantic's own names for them is shown
        (
            "teacher.resolution=big",
            "teacher.resolution=big: write a whole number or own or best, such as teacher.resolution=own",
        ),
        (
            "teacher.fit=3",
            "teacher.fit=3: write one of its keys or auto, probe or no, such as teacher.fit={epochs: 5}",
        ),
        ("teacher.fit.epochs=x", "teacher.fit.epochs=x: write a whole number, such as teacher.fit.epochs=5"),
        # bounds and choices
        (
            "train.batch_size=0",
            "train.batch_size=0: write a number of at least 2 or auto, such as train.batch_size=64",
        ),
        (
            "train.epochs=0",
            "train.epochs=0: write a number of at least 1 or auto, such as train.epochs=10",
        ),
        (
            "teacher.fit.lr=-1",
            "teacher.fit.lr=-1: write a number above 0 or auto, such as teacher.fit.lr=3e-4",
        ),
        ("view.flip=2", "view.flip=2: write a number of at most 1, such as view.flip=0.5"),
        ("data.cache_mb=0", "data.cache_mb=0: write a number above 0, such as data.cache_mb=20000.0"),
        ("targets.mode=cache", "targets.mode=cache: write live or cached, such as targets.mode=live"),
        # keys
        ("epochs=3", "unknown key 'epochs'; did you mean 'train.epochs'? Write train.epochs=3"),
        ("lr=1", "unknown key 'lr'; did you mean 'train.lr'? Write train.lr=1"),
        ("val=photos", "unknown key 'val'; did you mean 'data.val'? Write data.val=photos"),
        ("loss.nam=kl", "unknown key 'loss.nam'; did you mean 'loss.name'? Write loss.name=kl"),
        (
            "loss.mixup=0.2",
            "unknown key 'loss.mixup'; did you mean 'view.mixup'? Write view.mixup=0.2",
        ),
        (
            "resolution=96",
            "unknown key 'resolution'; did you mean 'teacher.resolution' or 'student.resolution'? "
            "Write teacher.resolution=96",
        ),
        ("batchsize=4", "unknown key 'batchsize'; did you mean 'train.batch_size'? Write train.batch_size=4"),
        (
            "teacher.fit={epoch: 3}",
            "unknown key 'teacher.fit.epoch'; did you mean 'teacher.fit.epochs'? Write teacher.fit.epochs=3",
        ),
    ],
)
def test_a_value_or_a_key_that_is_not_valid(override: str, line: str) -> None:
    said = refusal(override)
    assert said == line
    example = re.search(r"(?:such as |Write |write )([a-z_.]+=.*?)(?:, for instance)?$", said)
    assert example is not None
    if "=x" not in example[1] and "lr=1" not in example[1]:
        load_recipe(None, [example[1]])  # what is advised works


def test_a_key_like_no_other_gets_the_list_of_keys() -> None:
    assert refusal("zzz=1").startswith("unknown key 'zzz'; the keys are name, teacher, student, data, view")
    assert refusal("targets.zzz=1").startswith(
        "unknown key 'targets.zzz'; the keys of targets are targets.mode"
    )


def test_a_study_is_told_how_its_file_is_written(tmp_path: Path) -> None:
    plan = pytest.importorskip("tutelage.pipeline.study.plan")
    (tmp_path / "study.yaml").write_text("base: {}\nvariants: [temperature=1]\n")
    with pytest.raises(TutelageError) as caught:
        plan.load_study(tmp_path / "study.yaml")
    assert str(caught.value).endswith(
        "variants.0: temperature=1: write a mapping of keys to values, such as variants: "
        "[{name: sharper, loss.temperature: 1}]"
    )
    (tmp_path / "study.yaml").write_text("variants: []\n")
    with pytest.raises(TutelageError, match=r"base is missing; write it, such as base: recipe.yaml"):
        plan.load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("spec", ["ftp:photos", "s3:bucket/photos", "http://example.org/photos"])
def test_a_kind_of_data_like_no_other_gets_the_list_of_kinds(spec: str) -> None:
    with pytest.raises(TutelageError) as caught:
        open_source(spec)
    assert "did you mean" not in str(caught.value)
    assert repr(spec) in str(caught.value)
    assert (
        "write a path that exists, folder:PATH, csv:FILE, parquet:FILE, zip:FILE, hf:NAME, wds:PATTERN, "
        "torchvision:NAME, sklearn:NAME or digits, such as folder:photos" in str(caught.value)
    )


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("RUN", "RUN: a run, not a model; its student is test_resnet@RUN/student.safetensors"),
        ("RUN/", "RUN/: a run, not a model; its student is test_resnet@RUN/student.safetensors"),
        ("best.pth", "best.pth: a file of weights, not a model; write its architecture before it, such as "),
        ("photos", "photos: neither a model, nor a run, nor a file of weights; write NAME@WEIGHTS"),
        (
            "runs/gone",
            "runs/gone: there is no such run or file, and no model has this name; write NAME@WEIGHTS",
        ),
        (
            "q",
            "unknown model 'q', and there is no such path; write NAME@WEIGHTS with one of timm's names, such as",
        ),
        ("resnet_50", "unknown model 'resnet_50'; did you mean 'resnet50'?"),
        (
            "keras:resnet-50",
            "unknown kind 'keras'; write NAME@WEIGHTS for timm's models, such as tf_effic",
        ),
    ],
)
def test_what_is_no_model(spec: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "recipe.yaml").write_text("student: {model: test_resnet@none}\n")
    (tmp_path / "best.pth").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    with pytest.raises(TutelageError) as caught:
        load_model(spec)
    assert line in str(caught.value)
