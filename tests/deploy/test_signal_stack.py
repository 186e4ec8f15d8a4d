"""Runtimes in one process with signal handlers, which loader processes and Ctrl-C need."""

import signal
import subprocess
import sys

import pytest
from tests.deploy.conftest import Exported

SIGNALLED = """
import gc
import signal
from pathlib import Path
import numpy as np
import openvino
from openvino import opset13
from tutelage.deploy.runtimes.openvino import signal_stack_kept
from tutelage.deploy.runtimes.registry import open_session

def sessions_of_the_package():
    sessions = [open_session(Path({path!r})) for _ in range(2)]
    while sessions:
        del sessions[0]  # the older one first

def cores_of_others():
    image = opset13.parameter([1, 3, 8, 8], np.float32)
    model = openvino.Model([opset13.relu(image)], [image])
    with signal_stack_kept():
        compiled = [openvino.Core().compile_model(model, "CPU") for _ in range(2)]
        while compiled:
            del compiled[0]
            gc.collect()

{what}()
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
@pytest.mark.parametrize("what", ["sessions_of_the_package", "cores_of_others"])
def test_a_signal_is_handled_after_sessions_are_closed(exported: Exported, what: str) -> None:
    """OpenVINO's cores may leave the thread with a stack for signal handlers that is no longer there."""
    code = SIGNALLED.format(path=str(exported.path / "model.xml"), what=what)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
