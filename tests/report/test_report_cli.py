"""The commands `report` and `watch`, as a user types them."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.core.run_dir import Run


def test_report_makes_the_page_again(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    copy.report.unlink()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(copy.path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(copy.report)
    assert copy.report.read_bytes().startswith(b"<!doctype html>")


def test_report_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    predictions = capsys.readouterr().err
    assert predictions.startswith("error: ")
    assert predictions.count("\n") == 1


def test_watch_serves_until_it_is_stopped(finished: Run) -> None:
    command = [sys.executable, "-m", "tutelage", "watch", str(finished.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        predictions = process.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+/", predictions)
        assert address
        with urllib.request.urlopen(f"{address[0]}main", timeout=60) as answer:
            assert b'id="verdict"' in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


def test_watch_of_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(tmp_path)])
    assert ended.value.code == 2
    assert "neither a run directory" in capsys.readouterr().err
