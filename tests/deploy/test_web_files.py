"""The folder of the page: where its runtime comes from, what is refused, and what an export writes. No network."""

import base64
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.conftest import Exported

from tutelage.cli import main
from tutelage.core.errors import TutelageError
from tutelage.core.recipe import parse_recipe
from tutelage.deploy import export
from tutelage.deploy.web import runtime
from tutelage.deploy.web.runtime import FILES, REGISTRY, cache_place, registry, web_runtime
from tutelage.pipeline.early import check_early

PAGE = {"index.html", "app.js", "preprocess.js", "style.css", "model.onnx", "labels.txt", "preprocess.json"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, no npm, and a registry that nothing listens at."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package that takes the place of the real one."""
    path = tmp_path / "elsewhere.tgz"
    with tarfile.open(path, "w:gz") as package:
        for name in FILES:
            content = f"content of {name}".encode()
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            package.addfile(entry, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(runtime, "INTEGRITY", f"sha512-{digest}")
    return path


@pytest.fixture
def served(tarball: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A registry that has the package, and the paths that it was asked for."""
    asked: list[str] = []

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(tarball.read_bytes())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/npm/")
        yield asked
        server.shutdown()


def test_the_registry_is_npms(tmp_path: Path) -> None:
    assert registry({}, tmp_path) == REGISTRY
    (tmp_path / ".npmrc").write_text(
        'fund=false\nregistry = "https://npm.example/all/"\n//npm.example/:x=y\n'
    )
    assert registry({}, tmp_path) == "https://npm.example/all"
    assert registry({"npm_config_registry": "http://near.example"}, tmp_path) == "http://near.example"
    assert registry({"NPM_CONFIG_REGISTRY": "http://near.example/"}, tmp_path) == "http://near.example"


def test_it_is_downloaded_once(served: list[str], tarball: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        assert web_runtime(["onnx"], say=said.append).read_bytes() == tarball.read_bytes()
    assert served == [f"/npm/onnxruntime-web/-/{runtime.TARBALL}"]
    assert said == [f"onnxruntime-web {runtime.VERSION} is downloaded from npm (33 MB, once)"]
    cache_place().write_bytes(b"damaged")
    web_runtime(["onnx"])
    assert len(served) == 2
    assert cache_place().read_bytes() == tarball.read_bytes()


def test_another_package_is_refused(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "INTEGRITY", "sha512-another")
    with pytest.raises(TutelageError, match=r"the registry gave another onnxruntime-web-.* than the one"):
        web_runtime(["onnx"])
    assert not cache_place().exists()


def test_npm_downloads_where_it_is_installed(
    tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\n"
        f'[ "$1 $2 $3" = "pack onnxruntime-web@{runtime.VERSION} --pack-destination" ] || exit 3\n'
        f'cp {tarball} "$4/{runtime.TARBALL}"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    assert web_runtime(["onnx"]).read_bytes() == tarball.read_bytes()
    cache_place().unlink()
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    with pytest.raises(TutelageError, match=r"cannot be downloaded \(code ENOTFOUND\)"):
        web_runtime(["onnx"])


def test_out_of_reach_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code, _, err = run(capsys, "export", "test_resnet@none", "--web", "--no-int8", "--out", str(out))
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert f"run `npm pack onnxruntime-web@{runtime.VERSION}`, and give the file with --web-runtime" in line
    assert str(cache_place()) in line
    assert not out.exists()
    recipe = {
        "teacher": {"model": "test_resnet"},
        "student": {"model": "test_resnet"},
        "data": {"train": "digits"},
    }
    with pytest.raises(TutelageError, match="npm pack"):
        check_early(parse_recipe(recipe | {"export": {"enabled": True, "web": True}}), tmp_path / "runs")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--web", "--web-runtime", "{here}/other.tgz"], "other.tgz: is not onnxruntime-web-"),
        (["--web", "--web-runtime", "{here}/none.tgz"], "none.tgz: cannot be read (No such file"),
        (["--web-runtime", "{here}/other.tgz"], "has no effect without --web"),
        (
            ["--web", "--format", "openvino"],
            "--web: runs the ONNX file, but the formats are openvino",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.tgz").write_bytes(b"another file")
    given = [word.format(here=tmp_path) for word in words]
    code, _, err = run(capsys, "export", "test_resnet@none", "--out", str(tmp_path / "out"), *given)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_an_export_writes_the_folder_and_the_next_one_removes_it(
    exported: Exported, tarball: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["export", exported.spec, "--no-int8", "--format", "onnx", "--out", str(out)]
    code, said, err = run(capsys, *words, "--web", "--web-runtime", str(tarball))
    assert code == 0, err
    assert f"{out / 'web'} is a page" in said
    files = {str(file.relative_to(out / "web")) for file in (out / "web").rglob("*") if file.is_file()}
    assert files == PAGE | {f"onnxruntime-web/{name}" for name in (*FILES.values(), "LICENSE")}
    for name in ("model.onnx", "labels.txt", "preprocess.json"):
        assert (out / "web" / name).read_bytes() == (out / name).read_bytes()
    for source, name in FILES.items():
        assert (out / "web/onnxruntime-web" / name).read_text() == f"content of {source}"
    code, said, _ = run(capsys, *words)
    assert code == 0
    assert "is a page" not in said
    assert not (out / "web").exists()


def test_a_rejected_file_gets_no_page(
    exported: Exported, tarball: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(export, "_rejects", lambda one: one.variant.file == "model.onnx")
    out = tmp_path / "out"
    code, _, err = run(
        capsys,
        "export",
        exported.spec,
        "--no-int8",
        "--web",
        "--web-runtime",
        str(tarball),
        "--out",
        str(out),
    )
    assert code == 1
    assert f"{out / 'web'}: cannot be made (model.onnx failed its checks)" in err
    assert json.loads((out / "deploy.json").read_text())["missing"] == {"web": "model.onnx failed its checks"}
    assert not (out / "web").exists()
