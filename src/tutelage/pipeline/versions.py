"""The versions of the packages and the machine of a run, so that its figures can be reproduced."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tutelage.core.memory import machine_memory
from tutelage.core.runtime import gpu_name

PACKAGES = ("tutelage", "torch", "torchvision", "timm", "accelerate", "torchmetrics", "numpy", "pillow")


def versions(command: str, processes: int = 1) -> dict[str, Any]:
    """Return the versions of the packages that figures depend on, the machine, the time and the command.

    Args:
        command: the command that began the run.
        processes: the number of processes that a launcher started for it.
    """
    return {
        **{name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gb": round(machine_memory() / 2**30, 1),
            "gpu": gpu_name(),
            "processes": processes,
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
