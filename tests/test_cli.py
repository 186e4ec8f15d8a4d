"""The command line as a user runs it: bad input is one line on stderr and exit code 2."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe, load_recipe
from tutelage.core.run_dir import Run
from tutelage.pipeline.run import describe

TINY_FLAGS = [
    "teacher.resolution=32", "student.resolution=32", "preflight.allow_weak_teacher=true", "data.workers=0",
    "train.precision=fp32", "train.epochs=1", "train.batch_size=8", "teacher.fit={epochs: 1}",
]  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command is refused with; its exit code is 2 and nothing else is on stderr."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def distil(tmp_path: Path, *words: str) -> list[str]:
    return ["distill", *TINY_FLAGS, "--runs", str(tmp_path / "runs"), "--progress", "none", *words]


def folder(place: Path, classes: dict[str, int]) -> Path:
    """Images of noise in class folders."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (place / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")
    return place


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tutelage {metadata.version('tutelage')}\n"


# --- help


def helped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What a command shows of itself, without the frame's lines and breaks."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(list(words))
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).replace("│", " ").split())


def test_help_groups_commands_by_what_people_do_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    found = re.findall(r"^(?:╭─ ([\w ]+) ─|│ (\w+) )", capsys.readouterr().out, re.MULTILINE)
    assert [title or command for title, command in found] == [
        "Options", "Start", "quickstart", "data", "advise", "teacher", "distill", "compare",
        "List what there is", "models", "losses", "recipe", "Look at results", "report", "watch",
        "verify", "Deploy", "export", "predict", "cascade", "serve", "Go further", "resume", "study",
    ]  # fmt: skip


def test_distill_without_arguments_shows_its_help_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Usage:" in helped(capsys, monkeypatch, "distill")
    assert not list(tmp_path.iterdir())


def test_the_defaults_that_help_names_are_those_of_recipes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe()
    text = helped(capsys, monkeypatch, "distill", "--help")
    for value in (recipe.teacher.model, recipe.student.model, recipe.data.train):
        assert f"[default: ({value}, or as in RECIPE)]" in text
    train = recipe.train.model_dump(mode="json")
    assert train["epochs"] == train["lr"] == "auto"
    assert text.count("[default: (auto, or as in RECIPE)]") == 2
    assert recipe.control
    assert (recipe.export.int8, recipe.export.max_drop) == (True, 1)
    text = helped(capsys, monkeypatch, "export", "--help")
    assert "(--int8, or as in RUN)" in text
    assert "(1, or as in RUN)" in text


def test_check_is_still_a_name_of_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("verify", "check"):
        assert "not a run directory" in refused([command, str(tmp_path)], capsys)


@pytest.mark.parametrize(
    "words", [["--help"], ["recipe", "loss"], ["recipe", "--new"], ["recipe", "--schema"]]
)
def test_help_and_recipe_do_not_wait_for_pytorch(words: list[str]) -> None:
    code = (
        "import sys; from tutelage.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("word", "meant"), [("exprot", "export"), ("run", "distill"), ("train", "distill"), ("recipes", "recipe")]
)
def test_a_command_that_does_not_exist_gets_the_nearest_one(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"no command {word!r}; did you mean {meant!r}?" in refused([word, "x"], capsys)


def test_a_command_like_no_other_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["zzzz"], capsys)
    assert "tutelage --help" in line
    assert "did you mean" not in line


# --- recipe


def test_recipe_explains_a_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = helped(capsys, monkeypatch, "recipe", "train.lr")
    assert "train.lr=auto (a number above 0, auto or range) Learning rate after" in text
    assert "train.epochs" not in text
    assert "did you mean 'loss.temperature'" in refused(["recipe", "loss.temprature"], capsys)


def test_recipe_writes_a_new_file_and_replaces_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    assert f"tutelage distill {path}" in helped(capsys, monkeypatch, "recipe", "--new", str(path))
    assert load_recipe(path) == Recipe()
    assert f"{path}: exists already" in refused(["recipe", "--new", str(path)], capsys)
    assert "$schema=" in helped(capsys, monkeypatch, "recipe", "--schema", str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text())["properties"].keys() == Recipe.model_fields.keys()
    assert "--new and --schema" in refused(["recipe", "--new", "--schema"], capsys)


# --- models and losses


def test_models_shows_as_many_as_the_limit_and_counts_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["models", "efficientvit_b*", "--limit", "2"])
    text = capsys.readouterr().out
    assert [word for word in text.split() if word.startswith("efficientvit")] == [
        "efficientvit_b0",
        "efficientvit_b1",
    ]
    assert re.search(r"efficientvit_b1 .* 9\.10 +34\.77 +0\.519 +224", text)
    assert "2 more" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "did you mean 'efficientvit_b" in refused(["models", "efficientvit_b9"], capsys)


def test_losses_shows_settings_needs_and_paper(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = helped(capsys, monkeypatch, "losses")
    assert (
        "dkd temperature=4.0 alpha=1.0 beta=8.0 Decoupled distillation (Zhao 2022). It needs the "
        "teacher's logits and the labels." in text
    )
    assert "feature_mse student=... teacher=... projector=linear" in text
    assert "attention_transfer student=[-3, -2, -1] teacher=[-3, -2, -1] weight=1000.0" in text


# --- options are values


def begun(monkeypatch: pytest.MonkeyPatch, *words: str) -> Recipe:
    """The recipe that a command begins its run with."""
    seen: list[Recipe] = []

    def begin(recipe: Recipe, *_: object) -> None:
        seen.append(recipe)
        raise TutelageError("far enough")

    monkeypatch.setattr("tutelage.pipeline.early.check_early", lambda *_: None)
    monkeypatch.setattr("tutelage.pipeline.run.begin", begin)
    with pytest.raises(SystemExit):
        main(["distill", *words])
    return seen[0]


@pytest.mark.parametrize(
    "text", ["folder:/set #2", "20240501", "1e5", "on", "null", "0123", "nan", "[a, b]", "a: b", "&a", "1.10"]
)
def test_an_option_is_taken_as_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"--{option}={text}" for option in ("teacher", "student", "data", "name")]
    recipe = begun(monkeypatch, *words, "--lr", "1e-3", "--epochs", "3")
    assert (recipe.teacher.model, recipe.student.model, recipe.data.train, recipe.name) == (text,) * 4
    assert (recipe.train.lr, recipe.train.epochs) == (1e-3, 3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--teacher", "X", "teacher.model=Y"], "--teacher X and teacher.model=Y disagree; give one of them"),
        (["--teacher", "X", "teacher=Y"], "--teacher X and teacher=Y disagree"),
        (["--epochs", "3", "train.epochs=5"], "--epochs 3 and train.epochs=5 disagree"),
        (["--epochs", "3", "train={epochs: 5}"], "--epochs 3 and train={epochs: 5} disagree"),
        (["--no-control", "control=true"], "--no-control and control=true disagree"),
        (["--control", "control=false"], "--control and control=false disagree"),
    ],
)
def test_an_option_and_an_override_that_disagree_are_refused(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refused(["distill", *words], capsys)


def test_an_option_and_an_override_may_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--lr", "0.001", "train.lr=1e-3", "--teacher", "X", "teacher.resolution=64"]
    recipe = begun(monkeypatch, *words)
    assert (recipe.train.lr, recipe.teacher.model, recipe.teacher.resolution) == (1e-3, "X", 64)


def test_options_change_what_a_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("control: false\nteacher: resnet50\nname: 20240501\n")
    assert begun(monkeypatch, str(path)).control is False
    recipe = begun(monkeypatch, str(path), "--control", "--export", "--teacher", "X")
    assert (recipe.control, recipe.export.enabled, recipe.teacher.model) == (True, True, "X")
    assert recipe.name == "20240501"


@pytest.mark.parametrize("fault", ["rejected", "missing"])
def test_a_file_of_one_seed_that_is_rejected_or_cannot_be_made_is_exit_code_1(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seeds(recipe: Recipe, run: Run, *_: object) -> dict[str, object]:
        deployed = run.path / "seed-1" / "deploy"
        (deployed / "rejected" if fault == "rejected" else deployed).mkdir(parents=True)
        (deployed / "deploy.json").write_text(
            '{"missing": {"model.xml": "no"}}' if fault == "missing" else "{}"
        )
        return {"pairs": [], "sentence": ""}

    monkeypatch.setattr("tutelage.pipeline.seeds.distill_seeds", seeds)
    with pytest.raises(SystemExit) as ended:
        main(distil(tmp_path, "--seeds", "2", "--name", "two"))
    assert ended.value.code == 1


# --- bad input


def test_unknown_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(distil(tmp_path, "--teacher", "efficientvit_b11", "--student", "test_vit@none"), capsys)
    assert "efficientvit_b11" in line
    assert "did you mean 'efficientvit_b1'" in line


def test_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'loss.temperature'" in refused(distil(tmp_path, "loss.temprature=2"), capsys)


def test_unknown_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--teacher", "test_resnet@none", "--student", "test_vit@none", "loss.name=kll", "data.limit=100"]
    assert "did you mean kl" in refused(distil(tmp_path, *words), capsys)


def test_missing_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such recipe" in refused(["distill", str(tmp_path / "nothing.yaml")], capsys)


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(distil(tmp_path, "--data", f"folder:{tmp_path / 'nothing'}"), capsys)
    assert str(tmp_path / "nothing") in line


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images" in refused(distil(tmp_path, "--data", f"folder:{tmp_path / 'empty'}"), capsys)


def test_one_class_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder(tmp_path / "one", {"cat": 20})
    assert "only one class" in refused(distil(tmp_path, "--data", f"folder:{place}"), capsys)


def test_images_that_cannot_be_decoded_stop_the_run_at_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(tmp_path / "bad", {"cat": 30, "dog": 30})
    for number in range(8):
        (place / "cat" / f"{number}.png").write_bytes(b"no picture")
    words = ["--data", f"folder:{place}", "--teacher", "test_resnet@none", "--student", "test_vit@none"]
    line = refused(distil(tmp_path, *words, "data.max_bad_images=3"), capsys)
    assert "data.max_bad_images=3" in line
    assert ".png" in line


def test_teacher_and_student_with_different_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both heads cover the data, but they are not the same head, and all of their classes shall stay."""
    from tutelage.models.registry import load_model
    from tutelage.models.weights import save_weights

    names = ["cat", "dog", "cow"]
    files = []
    for model, classes in (("test_resnet", names), ("test_vit", names[::-1])):
        one = load_model(f"{model}@none").with_head(classes)
        save_weights(one.module, tmp_path / f"{model}.safetensors", one.metadata())
        files.append(f"{model}@{tmp_path / model}.safetensors")
    place = folder(tmp_path / "photos", {"cat": 30, "dog": 30})
    words = ["--data", f"folder:{place}", "--teacher", files[0], "--student", files[1]]
    told = refused(distil(tmp_path, *words, "student.all_classes=true"), capsys)
    assert "must have the same classes in the same order" in told


def test_unreachable_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(distil(tmp_path, "--teacher", "resnet18", "--student", "test_vit@none"), capsys)
    assert "resnet18" in line
    assert "hub" in line


def test_checkpoint_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tutelage.models.registry import load_model
    from tutelage.models.weights import save_weights

    path = tmp_path / "other.safetensors"
    save_weights(load_model("test_resnet@none").module, path, {})
    line = refused(distil(tmp_path, "--teacher", f"test_vit@{path}", "--student", "test_vit@none"), capsys)
    assert "other.safetensors" in line
    assert "missing" in line


def test_run_names_that_are_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a path" in refused(distil(tmp_path, "--name", "../outside"), capsys)


def test_no_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run directory" in refused(["resume", str(tmp_path)], capsys)


def test_an_existing_run_directory_is_refused_or_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    kept = tmp_path / "runs" / "mine" / "thing"
    kept.write_text("precious")
    assert "tutelage resume" in refused(distil(tmp_path, "--name", "mine"), capsys)
    assert kept.read_text() == "precious"


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from tutelage.core import files as run_module

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module.os, "fsync", full)
    line = refused(distil(tmp_path, "--name", "full", "--teacher", "test_resnet@none"), capsys)
    assert "No space left" in line
    assert not [p for p in (tmp_path / "runs" / "full").rglob("*") if p.is_file()]


@pytest.mark.parametrize("command", ["distill", "resume"])
def test_a_device_that_is_not_there_is_refused_before_any_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = distil(tmp_path, "--name", "mine", "--teacher", "test_resnet@none", "--device", "tpu")
    if command == "resume":
        run = Run.create(tmp_path / "runs", "mine")
        describe(run, Recipe(), {"seeds": 1, "directory": str(tmp_path)})
        words = ["resume", str(run.path), "--device", "tpu"]
    before = sorted(tmp_path.rglob("*"))
    assert "--device tpu: use one of cpu, cuda, mps" in refused(words, capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*distil(tmp_path)[:-2], "--progress", "loud", "--teacher", "test_resnet@none"]
    assert "--progress loud" in refused(words, capsys)


def test_distil_as_a_user_runs_it(tmp_path: Path) -> None:
    """A process of its own, JSON lines on standard output, the table at the end."""
    words = distil(tmp_path, "--teacher", "test_resnet@none", "--student", "test_vit@none", "--name", "mine")
    words[words.index("none", words.index("--progress"))] = "json"
    words.append("--watch")
    done = subprocess.run(
        [sys.executable, "-m", "tutelage", *words, "data.limit=160"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    table = next(event for event in events if event["event"] == "table")
    assert [row["role"] for row in table["rows"]] == ["teacher", "start", "control", "distilled"]
    assert (tmp_path / "runs" / "mine" / "student.safetensors").is_file()
