"""Hostile files, offered as a user would offer them: refused in one line, and nothing of theirs runs or is written."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.data.decode import UnreadableImage, decode
from tutelage.data.sources.base import open_source


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


# --- checkpoints


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_create_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, how: str
) -> None:
    victim, checkpoint = tmp_path / "victim", tmp_path / f"evil{suffix}"
    content = {"state_dict": {"weight": torch.zeros(1)}, "extra": Trap(victim)}
    if how == "torch":
        torch.save(content, checkpoint)
    else:
        checkpoint.write_bytes(pickle.dumps(content))
    runs = tmp_path / "runs"
    words = [
        f"student.model=test_efficientnet@{checkpoint}",
        "teacher.model=test_resnet@none",
        "data.train=digits",
    ]
    line = refused(capsys, "distill", *words, "--runs", runs, "--progress", "none")
    assert str(checkpoint) in line
    assert not victim.exists()
    pickle.loads(pickle.dumps(Trap(victim)))  # the trap works where pickles are trusted
    assert victim.exists()


def test_a_pickle_in_the_place_of_a_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    from tutelage.distillation.checkpoint import load_checkpoint

    victim, checkpoint = tmp_path / "victim", tmp_path / "distill.safetensors"
    checkpoint.write_bytes(pickle.dumps(Trap(victim)))
    with pytest.raises(TutelageError, match="damaged checkpoint"):
        load_checkpoint(checkpoint)
    assert not victim.exists()


# --- recipes


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {victim}']",
        "name: !!python/object/apply:os.system ['touch {victim}']",
        "data: {{train: !!python/object/new:os.system ['touch {victim}']}}",
        "!!python/module:os",
    ],
)
def test_yaml_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    victim, recipe = tmp_path / "victim", tmp_path / "recipe.yaml"
    recipe.write_text(text.format(victim=victim))
    assert "not YAML" in refused(capsys, "distill", recipe, "--runs", tmp_path / "runs")
    line = refused(capsys, "distill", f"name={text.format(victim=victim).partition(': ')[2] or '!!x'}")
    assert "not YAML" in line
    assert not victim.exists()
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_unfolds_into_billions_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]" for i in range(12))
    (tmp_path / "recipe.yaml").write_text(levels)
    assert "unknown key" in refused(capsys, "distill", tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ["../x", "/tmp/tutelage-x", "a/../../x", "..", "a\\..\\x", "x\n", " "])
def test_a_run_name_that_is_a_path_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": name}))
    assert "run name" in refused(capsys, "distill", recipe, "--runs", tmp_path / "runs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


# --- images and shards


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_members_of_a_shard_that_lead_outside_write_and_read_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are read in place: a member's name is an identity, never a path to open."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(png("blue"))
    tar_of(
        inside / "0.tar",
        [
            (tarfile.TarInfo("../../outside.png"), png()),
            (tarfile.TarInfo("/tmp/absolute.png"), png()),
            (link("sym.png", tarfile.SYMTYPE, "../secret.png"), b""),
            (link("hard.png", tarfile.LNKTYPE, "../secret.png"), b""),
            (link("pipe.png", tarfile.FIFOTYPE, ""), b""),
            (tarfile.TarInfo("cat/0.png"), png()),
        ],
    )
    monkeypatch.chdir(inside)
    images = open_source(f"wds:{inside}/0.tar") if not _refuses(inside) else None
    if images is not None:
        colours = {images.image(i).getpixel((0, 0)) for i in range(len(images))}
        assert colours == {(255, 0, 0)}
        assert not {"0.tar/sym.png", "0.tar/hard.png", "0.tar/pipe.png"} & set(images.ids)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.tar", "inside", "secret.png"]


def _refuses(inside: Path) -> bool:
    """A class named .. may be refused outright, too."""
    try:
        open_source(f"wds:{inside}/0.tar")
    except TutelageError as error:
        return "is refused" in str(error)
    return False


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc", ".", "a/../b", "\x1b[2J"])
def test_a_class_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    members = []
    for key, label in (("0", name), ("1", "cat")):
        members += [
            (tarfile.TarInfo(f"{key}.png"), png()),
            (tarfile.TarInfo(f"{key}.cls.txt"), label.encode()),
        ]
    tar_of(tmp_path / "0.tar", members)
    with pytest.raises(TutelageError, match="is refused: it is empty, a path or unprintable"):
        open_source(f"wds:{tmp_path}/0.tar")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb_png(side: int) -> bytes:
    """A PNG that says it has side x side pixels, and holds some."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 50_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_before_it_unfolds(side: int) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableImage, match=r"bomb|cannot be decoded"):
        decode(bomb_png(side), "bomb.png")
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    )  # KiB: 10,000 x 10,000 takes 300 MB
