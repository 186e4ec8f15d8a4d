"""Memory that was freed is used again, without page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from tutelage.core.runtime import Runtime

if {start}:
    Runtime.start("cpu")
network = torch.nn.Sequential(*(torch.nn.Conv2d(3 if n == 0 else 16, 16, 3) for n in range(4)))
images = torch.ones(32, 3, 128, 128)  # 32 MiB for each layer's outputs
network(images).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    network(images).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have their own ways")
def test_freed_memory_is_used_again() -> None:
    def faults(start: bool) -> int:
        code = FAULTS.format(start=start)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(start=True) < 0.3 * faults(start=False)


RESIDENT = """
import torch
from tutelage.core.out_of_memory import halve_until_it_fits
from tutelage.core.runtime import Runtime

Runtime.start("cpu")

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

def step(count):
    if count == 8:
        outputs = [torch.ones(2 * 2**20) for _ in range(32)]  # 8 MiB each
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    return resident()

before = resident()
print(halve_until_it_fits(step, 8)[1] - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have their own ways")
def test_freed_memory_is_given_back_where_memory_ran_out() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 128 * 1024  # KiB, of 256 MiB
