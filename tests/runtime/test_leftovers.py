# SPDX-License-Identifier: Apache-2.0
"""These tests clean up after themselves, even when they are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mycelium_lab.lab import Lab, await_fact

from . import machine

pytestmark = pytest.mark.xdist_group("podman")

VICTIM = """\
import sys, tempfile, time
from pathlib import Path
from runtime.criharness import Containerd
from runtime.images import Images
from runtime.machine import Machine, owned_lab

with owned_lab(sys.argv[1:], "stand-in") as lab, tempfile.TemporaryDirectory() as folder:
    node = lab.node("a")
    lab.connect(node)
    images = Images(Path(folder))
    containerd = Containerd(Machine(node, images.init), images)
    ours = {"type": "mycelium-cni", "mode": "routed"}
    containerd.configure({"cniVersion": "1.0.0", "name": "net", "plugins": [ours]})
    containerd.pod("web").serve("hello")
    print(lab.name, containerd.machine.pid, flush=True)
    time.sleep(600)
"""


def test_a_killed_run_leaves_names_that_the_next_one_removes(command: list[str]) -> None:
    tests = Path(machine.__file__).parent.parent
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, *command], stdout=subprocess.PIPE, text=True, cwd=tests
    )
    assert victim.stdout is not None
    with victim.stdout as output:
        name, first = output.readline().split()
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    # containerd, shims, pods and mounts have gone with the machine's first process …
    await_fact(lambda: ended(int(first)), "the end of the machine")
    # … and the names go with the next run, which may be that of another worker.
    machine.remove_abandoned()
    await_fact(lambda: name not in Lab.names() and not cgroups(name), "the end of the names")
    assert [line for line in mounts() if name in line] == []
    assert list(Path("/run/netns").glob(f"{name}*")) == []


def cgroups(name: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"*/{name}*"))


def ended(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()


def test_a_running_lab_is_not_removed(command: list[str]) -> None:
    with machine.owned_lab(command, "stand-in") as lab:
        done = subprocess.run(
            [sys.executable, "-c", "from runtime.machine import *; print(remove_abandoned())"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(machine.__file__).parent.parent,
        )
        assert lab.name not in done.stdout
        assert lab.name in Lab.names()
