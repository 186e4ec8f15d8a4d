"""Inputs on which tutelage 0.1.0 failed, a row each: what is done, what must hold, which tests hold the relatives.

A row either has a function of its own, which makes the input and runs it, or it names the test that does so elsewhere.
The relatives are other inputs of the same kind of fault.
"""

from __future__ import annotations

import ast
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tests.helpers.command_line import call
from tests.helpers.real_runs import quick

from tutelage.core.files import read_json
from tutelage.core.recipe import DataRecipe
from tutelage.core.run_dir import Run
from tutelage.data.sources.base import open_source
from tutelage.data.splits import make_splits
from tutelage.pipeline.verify import verify

ROOT = Path(__file__).resolve().parents[1]
PX = 32
SMALL = [
    "--epochs", "1", "--progress", "none", "train.batch_size=8", "teacher.resolution=32", "student.resolution=32",
    "teacher.fit=no", "student.head_fit=no", "train.precision=fp32", "data.workers=0",
    "preflight.allow_weak_teacher=true", "selection.interpolate=false", "selection.soup=false",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code, its lines on stderr, and the run."""

    code: int
    lines: list[str]
    run: Run


@dataclass
class Here:
    """A working directory, and commands in it."""

    path: Path
    capsys: pytest.CaptureFixture[str]
    caplog: pytest.LogCaptureFixture
    count: int = 0

    def command(self, *words: str) -> tuple[int, list[str]]:
        """Run a command, and return its exit code and its lines on stderr."""
        self.capsys.readouterr()
        code = call(*words)
        return code, self.capsys.readouterr().err.strip().splitlines()

    def distil(self, *words: str, page: bool = False, student: str = "test_efficientnet@none") -> Ended:
        """Distil with tiny random networks, without clocks and, unless it is the subject, without a page."""
        self.count += 1
        name = f"run{self.count}"
        given = [
            "distill",
            "--teacher",
            "test_resnet@none",
            "--student",
            student,
            "--name",
            name,
            *SMALL,
            *words,
        ]
        if page:
            code, lines = self.command(*given)
        else:
            with quick():
                code, lines = self.command(*given)
        return Ended(code, lines, Run(Path("runs") / name))


def pictures(root: Path, counts: dict[str, int], suffix: str = "png", side: int = PX) -> Path:
    """A folder for each class, with so many noisy pictures whose mean colour shows the class."""
    rng = np.random.default_rng(zlib.crc32(root.name.encode()))  # no copies of the pictures of another folder
    for label, (name, count) in enumerate(counts.items()):
        place = root / name
        place.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 90, (side, side, 3))
            pixels[..., label % 3] += 60 + 30 * (label // 3)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number:04d}.{suffix}")
    return root


def four(count: int) -> dict[str, int]:
    """The same number of pictures for four classes."""
    return dict.fromkeys(("ant", "bee", "cat", "dog"), count)


# --- what is done with the inputs


def two_heads(here: Here) -> None:
    """A student with a distillation head is trained, and its heads are averaged."""
    pictures(here.path / "data", four(6))
    ended = here.distil("--data", "data", "--no-control", student="deit_tiny_distilled_patch16_224@none")
    assert (ended.code, ended.lines) == (0, [])
    assert read_json(ended.run.comparison)["rows"][-1]["role"] == "distilled"


def unreadable_image(here: Here) -> None:
    """A training image that is cut off is left out, counted and named, and the run ends."""
    pictures(here.path / "data/train", four(8), "jpg")
    pictures(here.path / "data/val", four(4), "jpg")
    cut = here.path / "data/train/ant/0003.jpg"
    cut.write_bytes(cut.read_bytes()[:500])
    ended = here.distil("--data", "data")
    assert ended.code == 0
    assert ended.lines == []
    told = [line for line in here.caplog.messages if "ant/0003.jpg" in line]
    assert len(told) == 1
    assert here.command("resume", str(ended.run.path), "--progress", "none")[0] == 0


def batch_of_one(here: Here) -> None:
    """Statistics are measured again on 129 images, one more than fit into a batch."""
    pictures(here.path / "data/train", dict.fromkeys(("a", "b", "c"), 43))
    pictures(here.path / "data/val", dict.fromkeys(("a", "b", "c"), 5))
    pictures(here.path / "data/test", dict.fromkeys(("a", "b", "c"), 5))
    ended = here.distil("--data", "data", "--no-control")
    assert (ended.code, ended.lines) == (0, [])
    assert read_json(ended.run.splits)["parts"]["train"]["size"] == 129
    names = [one["name"] for one in read_json(ended.run.candidates)["candidates"]]
    assert "last-recalibrated" in names


def small_test_part(here: Here) -> None:
    """Four test images are enough for a page, the digests, and a verdict that claims nothing."""
    pictures(here.path / "data", four(5))
    ended = here.distil("--data", "data", page=True)
    assert (ended.code, ended.lines) == (0, [])
    assert ended.run.report.stat().st_size > 100_000
    assert verify(ended.run).ok
    assert read_json(ended.run.comparison)["verdict"]["outcome"] == "not significantly different"


def name_that_is_no_utf8(here: Here) -> None:
    """A class whose name is Latin-1 goes through a run, its page and a resume."""
    pictures(here.path / "data", {"the": 8, "eau": 8, "cafe": 8})
    os.rename(bytes(here.path) + b"/data/cafe", bytes(here.path) + b"/data/caf\xe9")
    ended = here.distil("--data", "data", "--no-control", page=True)
    assert (ended.code, ended.lines) == (0, [])
    assert "caf\xe9" in ended.run.report.read_text()
    assert here.command("resume", str(ended.run.path), "--progress", "none") == (0, [])


def resolution_that_does_not_fit(here: Here) -> None:
    """A network of fixed resolution is refused with those that it takes."""
    pictures(here.path / "data", four(6))
    ended = here.distil("--data", "data", "student.resolution=64", student="mixer_s32_224@none")
    assert ended.code == 2
    (line,) = ended.lines
    assert line.endswith("it runs at 224 px, such as student.resolution=224")
    assert not Path("runs").exists()


def edited_recipe(here: Here) -> None:
    """An edit that would mix two recipes is refused by its key, and the finished run stays finished."""
    pictures(here.path / "data", four(8))
    ended = here.distil("--data", "data", "--no-control")
    assert ended.code == 0
    tree = yaml.safe_load(ended.run.recipe.read_text())
    tree["loss"]["temperature"], tree["train"]["batch_size"], tree["train"]["epochs"] = 9.0, 4, 3
    ended.run.recipe.write_text(yaml.safe_dump(tree))
    code, lines = here.command("resume", str(ended.run.path), "--progress", "none")
    assert (code, len(lines)) == (2, 1)
    assert "train.batch_size" in lines[0] or "loss.temperature" in lines[0] or "train.epochs" in lines[0]
    assert ended.run.digests.exists()


def folder_named_like_an_image(here: Here) -> None:
    """Folders whose names end like those of images are folders: their pictures count, and they are no bad image."""
    pictures(here.path / "data", {"cat": 4, "dog": 4, "logo.gif": 4})
    (here.path / "data/cat/album.jpg").mkdir()
    images = open_source("folder:data")
    assert images.classes == ("cat", "dog", "logo.gif")
    assert len(images) == 12
    assert all(images.image(index).size == (PX, PX) for index in range(len(images)))


def png(label: int) -> bytes:
    """A small picture of a class."""
    stream = io.BytesIO()
    Image.new("RGB", (PX, PX), (80 * label, 90, 90)).save(stream, "PNG")
    return stream.getvalue()


def webdataset_names(here: Here) -> None:
    """Dots in the names of members, and labels in JSON members, are understood."""
    shards: dict[str, dict[str, bytes]] = {"dots": {}, "json": {}}
    for number in range(9):
        label = number % 3
        shards["dots"] |= {f"img.v2.{number:03d}.png": png(label), f"img.v2.{number:03d}.cls": b"%d" % label}
        shards["json"] |= {f"{number:03d}.json": b'{"label": %d}' % label, f"{number:03d}.png": png(label)}
    for name, members in shards.items():
        with tarfile.open(here.path / f"{name}.tar", "w") as tar:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        images = open_source(f"wds:{name}.tar")
        assert images.classes == ("0", "1", "2")
        assert images.labels is not None
        assert images.labels.tolist() == [number % 3 for number in range(9)]


def mistyped_loss(here: Here) -> None:
    """A mistyped loss is known before there is a run directory."""
    pictures(here.path / "data", four(6))
    ended = here.distil("--data", "data", "loss.name=klx")
    assert ended.code == 2
    (line,) = ended.lines
    assert "did you mean kl" in line
    assert not Path("runs").exists()


def optimizer_that_cannot_be_used(here: Here) -> None:
    """One of second order, and one with settings that do not fit together, are refused with the reason."""
    pictures(here.path / "data", four(6))
    for words, reason in (
        (["train.optimizer=adahessian"], "cannot take a step from gradients alone"),
        (["train.optimizer=sgd", "train.momentum=0"], "Nesterov"),
    ):
        ended = here.distil("--data", "data", *words)
        assert (ended.code, len(ended.lines)) == (2, 1)
        assert reason in ended.lines[0]
    assert not Path("runs").exists()


def copies_in_train_and_test(here: Here) -> None:
    """Copies of test images are left out of train, counted and named."""
    pictures(here.path / "train", {"a": 20, "b": 20, "c": 20}, "jpg")
    taken = sorted((here.path / "train").rglob("*.jpg"))[::3]
    for number, path in enumerate(taken):
        copy = here.path / "test" / path.parent.name / f"copy-{number}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    splits = make_splits(DataRecipe(train="folder:train", test="folder:test"))
    (note,) = splits.notes
    assert "20 copies of val or test images left out: a/0000.jpg = a/copy-0.jpg" in note
    left = {*splits.train.ids, *splits.val.ids}
    assert len(left) == 40
    assert not left & {path.relative_to(here.path / "train").as_posix() for path in taken}


def unbalanced_classes(here: Here) -> None:
    """Each class counts alike in the recall, has an interval, and may have too few images to tell."""
    pictures(here.path / "data", {"a": 60, "b": 5, "c": 1, "d": 30}, side=16)
    ended = here.distil("--data", "data", "data.test_fraction=0.4", page=True)
    assert (ended.code, ended.lines) == (0, [])
    rows = read_json(ended.run.comparison)["rows"]
    assert all(0 <= row["recall"] <= 100 for row in rows)
    page = ended.run.report.read_text()
    assert "Mean recall of classes" in page or "mean recall of classes" in page
    assert "95% interval" in page
    assert "too few to tell" in page
    assert "Of 1 class there is no test image, so that nothing is known:\nc." in page
    assert read_json(ended.run.comparison)["verdict"]["outcome"] == "not significantly different"


def flat_validation_folder(here: Here) -> None:
    """A val part with one folder of images and a list of their classes is Tiny ImageNet's layout."""
    pictures(here.path / "data/train", {"a": 6, "b": 6, "c": 6}, "jpg")
    pictures(here.path / "data/val", {"images": 10}, "jpg")
    lines = [f"{number:04d}.jpg\t{'abc'[number % 3]}\t0\t0\t39\t47\n" for number in range(10)]
    (here.path / "data/val/val_annotations.txt").write_text("".join(lines))
    splits = make_splits(DataRecipe(train="folder:data"))
    held = splits.test
    assert splits.classes == ("a", "b", "c")
    assert len(held) == 10
    assert [splits.classes[label] for label in held.labels] == ["abc"[number % 3] for number in range(10)]


def files_of_a_mac(here: Here) -> None:
    """Files of the system, and a broken picture beside the classes, are passed over with one note."""
    pictures(here.path / "data", {"a": 6, "b": 6, "c": 6}, "jpg")
    for name in (".DS_Store", "a/._0001.jpg", "b/Thumbs.db", "logo.gif"):
        (here.path / "data" / name).write_bytes(b"\0\5\26\7")
    (here.path / "data/c/album.jpg").mkdir()
    splits = make_splits(DataRecipe(train="folder:data"))
    assert splits.classes == ("a", "b", "c")
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 18
    (note,) = splits.notes
    assert "logo.gif" in note


# --- the table


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        what: what is given, and what must hold.
        check: does so and looks; or the tests that do.
        relatives: tests of other inputs of this kind; a parameter stands in brackets.
    """

    what: str
    check: Callable[[Here], None] | tuple[str, ...]
    relatives: tuple[str, ...] = field(default=())


PREDICTOR, EXPORT, CONVERT = (f"tests/deploy/test_{name}.py" for name in ("predictor", "export", "convert"))
ODD, AFTER, TRACKERS = "tests/test_odd.py", "tests/pipeline/test_after.py", "tests/pipeline/test_trackers.py"
FOLDERS, PHOTOS = "tests/data/test_odd_folders.py", "tests/data/test_odd_pictures.py"
DRY_RUN, WRAPPINGS = "tests/models/test_dry_run.py", "tests/models/test_wrappings.py"
BATCHNORM, CLASSES = "tests/models/test_batchnorm.py", "tests/evaluation/test_class_order.py"
SOURCES, COPIES, QUALITY = (
    f"tests/{name}.py" for name in ("data/test_sources", "data/test_duplicates", "evaluation/test_quality")
)
LAYOUTS, PAGE, RESUME = (
    "tests/data/test_layouts.py",
    "tests/report/test_run_page.py",
    "tests/pipeline/test_resume.py",
)


def these(file: str, *tests: str) -> tuple[str, ...]:
    """References to tests of one file."""
    return tuple(f"{file}::{test}" for test in tests)


CASES = {
    "01-predictor-threads": Case(
        "eight threads ask one predictor 2,000 times, in each runtime: each gets the answer to its own picture",
        these(PREDICTOR, "test_each_thread_gets_its_own_answer"),
        these(
            PREDICTOR,
            "test_threads_may_share_one_opened_picture",
            "test_a_picture_of_the_callers_is_left_as_it_is",
            "test_what_is_no_picture_is_one_clear_line",
        ),
    ),
    "02-two-heads": Case(
        "a student with a distillation head is trained",
        two_heads,
        these(
            DRY_RUN,
            "test_two_heads_are_averaged_and_both_learn[levit_128s]",
            "test_two_heads_are_averaged_and_both_learn[efficientformerv2_s0]",
            "test_two_heads_are_averaged_and_both_learn[swiftformer_xs]",
        )
        + these(
            "tests/models/test_heads.py",
            "test_a_new_head_learns_and_passes_a_gradient_on_from_the_second_step",
        ),
    ),
    "03-unreadable-training-image": Case(
        "a training image that is cut off is left out, counted and named, and the run ends",
        unreadable_image,
        these(FOLDERS, "test_what_is_no_readable_image_is_passed_over_and_named")
        + these(BATCHNORM, "test_images_that_cannot_be_decoded_are_left_out_and_counted")
        + these(
            "tests/pipeline/test_stages.py",
            "test_an_unreadable_training_image_is_counted_and_no_image_is_decoded_again_for_the_selection",
        ),
    ),
    "04-batch-of-one": Case(
        "BatchNorm statistics are measured again on 129 images",
        batch_of_one,
        these(
            BATCHNORM,
            "test_one_pixel_maps_and_one_image_too_many_for_a_batch_are_no_error",
            "test_a_single_image_changes_nothing",
            "test_a_sample_has_no_small_last_batch",
        ),
    ),
    "05-small-test-part": Case(
        "four test images: a page, digests, and a verdict that claims nothing",
        small_test_part,
        these(FOLDERS, "test_one_picture_a_class")
        + these("tests/deploy/test_small_run.py", "test_a_run_on_seven_images_ends_with_all_its_files")
        + these(
            "tests/evaluation/test_verdict.py", "test_the_outcome_needs_both_the_interval_and_mcnemars_test"
        ),
    ),
    "06-old-model-names": Case(
        "timm's deprecated names work as the new ones, which are told",
        these(DRY_RUN, "test_a_deprecated_name_works_as_the_current_one[tv_resnet34]"),
        these(
            DRY_RUN,
            "test_every_deprecated_name_has_its_current_one",
            "test_a_deprecated_name_works_as_the_current_one[xception]",
            "test_a_run_is_refused_before_it_has_a_directory[vit_base_patch32_224_sam]",
        ),
    ),
    "07-class-name-not-utf8": Case(
        "a class whose name is Latin-1 goes through a run, its page and a resume",
        name_that_is_no_utf8,
        these(
            FOLDERS,
            "test_names_that_are_no_utf8_are_read_and_can_be_written",
            "test_two_spellings_of_one_name_are_one_class",
        )
        + these(SOURCES, "test_classes_in_bytes_that_are_no_utf8_stay_apart")
        + these(PREDICTOR, "test_any_name_can_be_printed_in_any_encoding"),
    ),
    "08-long-thin-image": Case(
        "a picture of 60,000 x 10 pixels takes as much time and memory as any other",
        these(PHOTOS, "test_a_long_thin_image_is_not_resized_whole"),
        these(
            PHOTOS,
            "test_its_crop_shows_the_same_as_of_the_image_resized_whole",
            "test_a_huge_image_is_scaled_down_where_the_limit_is_raised",
            "test_of_a_huge_jpeg_only_a_part_is_decoded",
        ),
    ),
    "09-numbered-classes": Case(
        "of a head that names no classes, the order that is better on val is taken and told",
        these(CLASSES, "test_the_order_of_the_head_is_found_and_told[numbers]"),
        these(
            CLASSES,
            "test_the_order_of_the_head_is_found_and_told[padded in part]",
            "test_the_order_of_the_head_is_found_and_told[capitals]",
            "test_a_run_takes_the_order_that_is_right_on_val",
            "test_a_list_of_classes_settles_the_order",
        ),
    ),
    "10-own-thousand-classes": Case(
        "a user's own head of 1,000 classes is kept",
        these(CLASSES, "test_an_own_head_is_kept_whatever_its_size[1000]"),
        these(
            CLASSES,
            "test_an_own_head_is_kept_whatever_its_size[11221]",
            "test_an_own_head_is_kept_whatever_its_size[21843]",
            "test_imagenet_is_recognised_by_its_classes",
        ),
    ),
    "11-resolution-that-does-not-fit": Case(
        "a network of fixed resolution is refused with those that it takes",
        resolution_that_does_not_fit,
        these(
            DRY_RUN,
            "test_a_resolution_that_does_not_fit_is_refused_with_those_that_do[levit_128s]",
            "test_a_resolution_that_does_not_fit_is_refused_with_those_that_do[test_vit]",
            "test_a_resolution_that_does_not_fit_is_refused_with_those_that_do[inception_v3]",
        ),
    ),
    "12-mlflow-stores": Case(
        "a store that cannot be opened is one line, and the run goes on without the tracker",
        these(TRACKERS, "test_a_store_that_cannot_be_opened_is_one_line_and_the_run_goes_on"),
        these(
            TRACKERS,
            "test_a_tracker_that_does_not_answer_is_given_up",
            "test_a_tracker_that_fails_costs_no_training",
            "test_a_run_in_a_directory_with_signs_of_a_uri_has_its_store",
            "test_a_library_that_quiets_the_root_logger_hides_no_line",
            "test_mlflow_writes_where_the_environment_says",
        ),
    ),
    "13-onnx-over-2-gb": Case(
        "weights that are too large for one file lie beside it",
        these(CONVERT, "test_large_weights_lie_beside_the_file"),
        these(
            CONVERT,
            "test_small_weights_lie_in_the_file",
            "test_what_cannot_be_exported_is_one_line_with_the_cause",
        )
        + these(EXPORT, "test_an_export_that_breaks_leaves_the_old_files"),
    ),
    "14-edited-recipe-resumed": Case(
        "an edit that would mix two recipes is refused by its key",
        edited_recipe,
        these(
            AFTER,
            "test_an_edit_that_would_mix_two_recipes_is_refused_by_its_key[teacher.model]",
            "test_an_edit_that_would_mix_two_recipes_is_refused_by_its_key[selection.soup]",
            "test_an_edit_that_changes_no_figure_is_taken_and_recorded",
        )
        + these("tests/core/test_repeated_keys.py", "test_a_recipe_with_a_repeated_key_is_refused"),
    ),
    "15-predict-folder-with-mac-files": Case(
        "`predict FOLDER` passes over what training passes over",
        these(PREDICTOR, "test_folders_are_searched_as_in_training"),
        these(
            PREDICTOR,
            "test_bad_images_are_named_and_the_others_done",
            "test_broken_pictures_are_left_out_and_named",
            "test_files_folders_arrays_and_pictures_are_one",
        ),
    ),
    "17-folder-named-like-an-image": Case(
        "a folder whose name ends like an image's is a folder",
        folder_named_like_an_image,
        these(
            FOLDERS,
            "test_what_is_no_readable_image_is_passed_over_and_named",
            "test_a_folder_without_images_tells_what_it_has",
        )
        + these(SOURCES, "test_links_are_followed_but_not_in_a_circle"),
    ),
    "18-checkpoint-wrappings": Case(
        "checkpoints as common trainers write them are read",
        these(
            WRAPPINGS,
            *(
                f"test_a_wrapped_checkpoint_is_read[{kind}]"
                for kind in (
                    "compiled ddp",
                    "lightning",
                    "hugging face",
                    "fsdp",
                    "deepspeed",
                    "profiled",
                    "no counters",
                )
            ),
        ),
        these(
            WRAPPINGS,
            "test_a_wrapped_checkpoint_is_read[lightning, averaged]",
            "test_position_embeddings_of_another_resolution_are_resampled",
            "test_torchvisions_checkpoints_give_the_same_logits",
            "test_the_line_says_whose_names_they_look_like",
        ),
    ),
    "19-webdataset-names": Case(
        "dots in the names of members, and labels in JSON members, are understood",
        webdataset_names,
        these(
            SOURCES,
            "test_names_of_members_and_places_of_labels",
            "test_what_shards_do_not_give_is_told",
            "test_a_tree_in_a_tar_has_its_folders_as_classes",
        ),
    ),
    "21-late-refusals": Case(
        "a mistyped loss is known before there is a run directory",
        mistyped_loss,
        these(
            ODD,
            "test_a_missing_package_is_noticed_at_once[nncf]",
            "test_odd_recipes_are_refused_before_any_work[a mistyped term]",
            "test_what_is_wrong_with_the_data_is_known_without_pytorch",
            "test_a_full_disk_is_noticed_at_once",
        ),
    ),
    "22-optimizers": Case(
        "optimizers that cannot be used are refused with the reason, before any work",
        optimizer_that_cannot_be_used,
        these(
            ODD,
            "test_odd_recipes_are_refused_before_any_work[an unknown optimizer]",
            "test_odd_recipes_are_refused_before_any_work[an optimizer that needs a closure]",
            "test_odd_recipes_are_refused_before_any_work[a rate of zero]",
        ),
    ),
    "23-recalibrated-batchnorm": Case(
        "each image counts alike in the statistics, however the batches are cut",
        these(BATCHNORM, "test_each_image_counts_alike_however_the_batches_are_cut"),
        these(
            BATCHNORM,
            "test_deep_layers_have_nearly_the_statistics_of_one_batch_of_all_images",
            "test_images_that_lie_sorted_by_class_count_as_a_mixture",
            "test_a_sample_has_no_small_last_batch",
        ),
    ),
    "24-failed-resume-loses-digests": Case(
        "a resume that fails leaves a finished run finished",
        these(
            AFTER,
            "test_a_finished_run_stays_finished_when_a_resume_fails",
            "test_a_run_is_resumed_from_another_directory",
        ),
        these(
            AFTER,
            "test_each_station_may_fail_alone_and_resume_makes_what_is_missing",
            "test_a_missing_extra_after_the_training_costs_the_files_only",
            "test_a_new_run_that_is_refused_leaves_no_directory_but_one_with_work_stays",
        ),
    ),
    "25-onnx-fused-attention": Case(
        "attention that the exporter cannot follow is unfused in the copy",
        these(CONVERT, "test_attention_that_cannot_be_exported_is_unfused_in_the_copy"),
        these(
            CONVERT,
            "test_timms_networks_with_fused_attention_are_exported[nest_tiny]",
            "test_timms_networks_with_fused_attention_are_exported[hiera_tiny_224]",
            "test_what_cannot_be_exported_is_one_line_with_the_cause",
        ),
    ),
    "26-teacher-not-exportable": Case(
        "a teacher that cannot be exported keeps no file from the student",
        these(EXPORT, "test_a_teacher_that_cannot_be_exported_keeps_no_file_from_the_student"),
        these(
            EXPORT,
            "test_a_file_that_cannot_be_made_costs_no_other",
            "test_a_file_that_fails_is_put_aside_and_the_command_says_so",
            "test_an_export_that_breaks_leaves_the_old_files",
        ),
    ),
    "leak": Case(
        "copies of test images are left out of train, counted and named",
        copies_in_train_and_test,
        these(
            COPIES,
            "test_copies_within_one_folder_are_found_after_it_was_split",
            "test_unlabelled_copies_are_left_out_too",
            "test_copies_are_found_across_kinds_of_sources",
        )
        + these(FOLDERS, "test_two_links_to_one_image_are_copies_and_no_error"),
    ),
    "unbalanced": Case(
        "the recall counts each class alike; each class has an interval, and may have too few images to tell",
        unbalanced_classes,
        these(
            QUALITY,
            "test_macro_recall_counts_each_class_alike",
            "test_macro_recall_is_the_mean_of_the_recalls",
            "test_unbalanced_is_more_than_twice_as_many",
        ),
    ),
    "flat-val": Case(
        "a val part with a list of its images' classes is Tiny ImageNet's layout",
        flat_validation_folder,
        these(
            LAYOUTS,
            "test_a_published_layout_is_read",
            "test_images_that_a_list_names_and_that_are_missing_are_counted",
            "test_a_list_that_lacks_an_image_gives_no_labels",
        ),
    ),
    "mac": Case(
        "files of the system and a broken picture beside the classes are passed over with one note",
        files_of_a_mac,
        these(
            FOLDERS,
            "test_what_is_no_readable_image_is_passed_over_and_named",
            "test_many_images_beside_one_folder_are_not_dropped",
            "test_the_folders_of_a_zip_are_looked_through",
        ),
    ),
}
RUN = [name for name, case in CASES.items() if callable(case.check)]


@pytest.mark.parametrize("name", RUN)
def test_a_case_behaves_as_it_should(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    check = CASES[name].check
    assert callable(check)
    monkeypatch.chdir(tmp_path)
    check(Here(tmp_path, capsys, caplog))


@cache
def source_of(file: str) -> tuple[str, frozenset[str]]:
    """The text of a test file, and the names of its tests."""
    text = (ROOT / file).read_text()
    tests = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    return text, frozenset(name for name in tests if name.startswith("test_"))


@pytest.mark.parametrize("name", CASES)
def test_the_tests_that_a_case_names_are_there(name: str) -> None:
    """Each kind of fault has three relatives or more, in tests that exist."""
    case = CASES[name]
    own = case.check if isinstance(case.check, tuple) else ()
    assert len(set(case.relatives) - set(own)) >= 3
    for reference in (*own, *case.relatives):
        file, _, test = reference.partition("::")
        function, _, parameter = test.removesuffix("]").partition("[")
        text, tests = source_of(file)
        assert function in tests, reference
        assert parameter in text, reference


def test_the_table_has_every_case() -> None:
    numbers = [name.partition("-")[0] for name in CASES if name[0].isdigit()]
    assert numbers == [f"{number:02d}" for number in range(1, 27) if number not in {16, 20}]
    assert [name for name in CASES if not name[0].isdigit()] == ["leak", "unbalanced", "flat-val", "mac"]


@pytest.mark.skipif(not (ROOT.parent / "shared/cases").is_dir(), reason="needs the folder of the cases")
def test_the_cases_have_the_names_of_their_folders() -> None:
    there = {path.name for path in (ROOT.parent / "shared/cases").iterdir() if path.is_dir()}
    assert there == {name for name in CASES if name[0].isdigit()}
