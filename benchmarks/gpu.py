"""One command for a machine with a CUDA GPU: is everything right there, and how fast is it. At most nine minutes.

make gpu

It needs no network and no data. Each part runs in a process of its own with a share of the time, so that one that fails
or takes too long does not keep the others from running. What does not fit into its time is named as left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESERVE = 15.0  # seconds of a part's time in which it can write its result
SECONDS = {
    "losses": 70,
    "fold": 30,
    "resume": 45,
    "waits": 25,
    "stations": 60,
    "deployed": 70,
    "b3-b1": 120,
    "lite2-lite0": 100,
}
FIGURES = ("b3-b1", "lite2-lite0")
BATCH, MOST_WORKERS = 256, 12


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def packages() -> tuple[list[str], list[str]]:
    """Return what tutelage needs and is not installed, and what is older than it asks for; nothing is imported."""
    missing, old = [], []
    for line in _project()["dependencies"]:
        name, least = re.split(r">=", line)
        found = _version(name)
        if found is None:
            missing.append(name)
        elif _numbers(found) < _numbers(least):
            old.append(f"{name} {found} (tutelage asks for {least})")
    return missing, old


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def refusal(device: str) -> str | None:
    """Return one line that says why nothing can run here; None where it can."""
    missing, old = packages()
    if missing:
        return (
            f"make gpu: not installed for {sys.executable}: {', '.join(missing)}; install all with `make run`, or "
            "without a network run `make gpu-wheels` elsewhere (WHEELS='...' names packages) and copy .wheels/"
        )
    if old:
        print(f"make gpu: it goes on with {', '.join(old)}", file=sys.stderr)
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return (
            f"make gpu: torch {torch.__version__} of {sys.executable} finds no CUDA GPU; run it on a machine with "
            "one, or try its logic with `python -m benchmarks.gpu --device cpu --small`"
        )
    return None


# --- one part, in a process of its own


def run_part(name: str, device: str, small: bool, directory: Path, seconds: float, result: Path) -> None:
    """Run a part, and write its result as JSON; figures are written after each block too."""
    import torch

    from benchmarks.gpu_checks import CHECKS
    from tutelage.core.files import write_json

    until = time.monotonic() + seconds
    on = torch.device(device)
    found = figures(name, on, small, directory, until, result) if name in FIGURES else CHECKS[name](on, small)
    if on.type == "cuda":
        found["peak_gpu_memory_of_process_mb"] = torch.cuda.max_memory_allocated() / 2**20
    write_json(result, found)


def figures(
    name: str, device: Any, small: bool, directory: Path, until: float, result: Path
) -> dict[str, Any]:
    """Measure a pair as `benchmarks.speed` does; it passes if tutelage's own loops and limits could be measured."""
    from benchmarks.scene import PAIRS, Setting
    from benchmarks.speed import measure
    from tutelage.core.files import write_json

    pair, setting = replace(PAIRS[name], batch=BATCH), Setting(device, rounds=3)
    if small:
        pair, setting = replace(PAIRS["small"], resolution=32, batch=4), Setting(device, steps=2, rounds=1)
    else:
        workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2))
        setting = replace(setting, workers=workers, steps=2 * workers)

    def judged(found: dict[str, Any]) -> dict[str, Any]:
        own = [one for one in found["errors"] if one.startswith(("tutelage", "labels"))]
        return {"passed": not own, "failed": own} | found

    return judged(
        measure(
            pair,
            setting,
            directory,
            compiled=not small,
            until=until,
            on_result=lambda found: write_json(result, judged(found)),
        )
    )


# --- all parts


def command(name: str, device: str, small: bool, directory: Path, seconds: float, result: Path) -> list[str]:
    """Return the command that runs a part."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--device", device, *(["--small"] if small else [])]
    words += ["--part", name, "--directory", str(directory), "--seconds", str(seconds)]
    return [*words, "--json", str(result)]


def run_all(device: str, small: bool, parts: list[str], directory: Path) -> dict[str, Any]:
    """Run parts one after the other; a part may also use the time that the parts before it left over."""
    environment = prepared(directory)
    started = time.monotonic()
    found: dict[str, Any] = {}
    end = started
    for name in parts:
        end += SECONDS[name]
        print(f"--- {name}, at most {end - time.monotonic():.0f} s", flush=True)
        found[name] = run_one(name, device, small, directory, end, environment)
    return {
        "passed": all(found[name]["passed"] for name in parts),
        "device": device,
        "small": small,
        "seconds": time.monotonic() - started,
        "left_out": left_out(found),
        **machine(),
        "parts": found,
    }


def run_one(
    name: str, device: str, small: bool, directory: Path, end: float, environment: dict[str, str]
) -> dict[str, Any]:
    """Run a part in a process, which is ended at `end` on the clock of `time.monotonic`; return its result.

    What was measured before a part was ended counts, but a check of correctness that has not ended has not passed.
    """
    result = directory / f"{name}.json"
    started = time.monotonic()
    words = command(name, device, small, directory, end - started - RESERVE, result)
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code: int | None = process.wait(timeout=end - started)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with its loader processes
            process.wait()
    found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {"passed": False}
    found["seconds"] = time.monotonic() - started
    if code is None:
        found["error"] = f"it was ended after {found['seconds']:.0f} s"
        found["passed"] = name in FIGURES and found.get("failed") == []
    elif code:
        found |= {"error": f"it failed with exit code {code}; its output is above", "passed": False}
    return found


def left_out(found: dict[str, Any]) -> dict[str, str]:
    """Return all that was not run or not measured, each with the reason."""
    reasons: dict[str, str] = {}
    for name, result in found.items():
        if "error" in result:
            reasons[f"{name}: what came after the last result"] = result["error"]
        reasons |= {
            f"{name}: {one}": reason
            for one, reason in (result.get("left_out", {}) | result.get("errors", {})).items()
        }
    return reasons


def machine() -> dict[str, Any]:
    """Return the GPU, its memory and the versions that figures depend on."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": gpu and {"name": gpu.name, "memory_mb": gpu.total_memory / 2**20},
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def prepared(directory: Path) -> dict[str, str]:
    """Return the environment of the parts: this checkout's code, and what deterministic mode needs.

    Where tutelage is not installed, its name and version are written to `directory`: a run records its version.
    """
    paths = [str(ROOT / "src"), str(ROOT)]
    if _version("tutelage") is None:
        version = _project()["version"]
        about = directory / "about" / f"tutelage-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: tutelage\nVersion: {version}\n", encoding="utf-8"
        )
        paths.append(str(about.parent))
    if already := os.environ.get("PYTHONPATH"):
        paths.append(already)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables of the figures, a line for each part, and what was left out."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.speed import table

    console = Console()
    for name in FIGURES:
        if result["parts"].get(name, {}).get("summary"):
            console.print(table(result["parts"][name]))
    shown = Table(title=f"make gpu on {result['gpu']['name'] if result['device'] == 'cuda' else 'a CPU'}")
    for column in ("part", "passed", "s", "what was found"):
        shown.add_column(column)
    for name, part in result["parts"].items():
        shown.add_row(name, "yes" if part["passed"] else "NO", f"{part['seconds']:.0f}", finding(name, part))
    console.print(shown)
    for one, reason in result["left_out"].items():
        console.print(f"left out: {one} ({reason})", markup=False, highlight=False)


def finding(name: str, part: dict[str, Any]) -> str:
    """Return the most important figures of a part in a few words."""
    if name == "losses" and "checks" in part:
        if part["failed"]:
            return "not as on the CPU: " + ", ".join(part["failed"])
        gradient = max(check["gradient_difference"] for check in part["checks"].values())
        return f"{len(part['checks'])} comparisons with the CPU; gradients differ by at most {gradient:.1e}"
    if name == "fold" and "differences" in part:
        return "; ".join(
            f"{teacher}: " + ", ".join(f"{value:.1e} {how}" for how, value in found.items())
            for teacher, found in part["differences"].items()
        )
    if name == "resume" and "differing" in part:
        return "; ".join(part["differing"][:3]) or "resumed runs end with the same weights, bit for bit"
    if name == "waits" and "counted" in part:
        return f"{part['waits_per_step']:.1f} waits a step" if part["counted"] else "not counted on a CPU"
    if name == "stations" and "top1" in part:
        return "files: " + (", ".join(part["deployed"]) or "none")
    if name == "deployed" and "rows" in part:
        singles = {row["run_by"]: row["ms"]["1"] for row in part["rows"] if "1" in row["ms"]}
        return "one image: " + ", ".join(f"{taken:.2f} ms {way}" for way, taken in singles.items())
    if part.get("cached_to_labels_only"):
        return f"cached targets at {part['cached_to_labels_only']:.2f} of labels only"
    return part.get("error", "")


def main() -> int:
    """Run all parts, or one; return 1 where a check fails and 2 where nothing can run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and few steps, to try the logic")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--json", type=Path, default=Path(os.environ.get("OUT") or ".") / "gpu.json")
    parser.add_argument("--part", choices=SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        run_part(asked.part, asked.device, asked.small, asked.directory, asked.seconds, asked.json)
        return 0
    if reason := refusal(asked.device):
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        result = run_all(asked.device, asked.small, asked.parts, Path(directory))
    asked.json.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    show(result)
    print(f"{'passed' if result['passed'] else 'FAILED'} in {result['seconds']:.0f} s; {asked.json}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
