# SPDX-License-Identifier: Apache-2.0
"""What a call of the static executable may cost: instructions, look-ups, and no module is loaded.

Milliseconds depend on the machine and its load, instructions hardly: the executable uses the same
string functions on every amd64. The budget is what the last deliberate change cost; a call may cost
a little more, because the kernel's answers vary. `make budget` records a new one, and its diff says
in review what a change costs every pod.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from protocol.calls import attachment_env
from protocol.hosts import Host, mycelium_host

ROOT = Path(__file__).resolve().parents[2]
UNSTRIPPED = ROOT / "build/launcher/objects-amd64/mycelium-cni"
BUDGET = Path(__file__).with_name("budget.json")
TOLERANCE = 1.03
CONF = json.dumps({"cniVersion": "1.1.0", "name": "overlay", "type": "mycelium-cni"})


class Cost(NamedTuple):
    """What one call took, and the functions of CPython that loaded a module in it."""

    instructions: int
    loaders: list[str]


@pytest.fixture
def host() -> Iterator[Host]:
    """A node of this test's own, so that the kernel's answers have the same length every time."""
    with mycelium_host() as host:
        yield host


def call(host: Host, verb: str, *prefix: str) -> None:
    """Call the plugin on that node and for a new pod of it."""
    if not UNSTRIPPED.is_file():
        pytest.fail(f"{UNSTRIPPED} is not there: make dist")
    pod = host.pod()
    done = subprocess.run(
        host.argv(*prefix, str(UNSTRIPPED)),
        env={"PATH": os.environ["PATH"], "CNI_COMMAND": verb, **attachment_env(pod)},
        input=CONF,
        capture_output=True,
        text=True,
        check=False,
    )
    pod.remove()
    assert done.returncode == 0, done.stdout + done.stderr


def cost_of_call(host: Host, verb: str, folder: Path) -> Cost:
    """The same under callgrind."""
    profile = folder / "callgrind.out"
    call(host, verb, "valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}")
    text = profile.read_text()
    total = re.findall(r"(?m)^summary: (\d+)$", text)[0]
    functions = set(re.findall(r"(?m)^c?fn=\(\d+\) (\w+)", text))
    # What starts a module written in C, and what reads the code of one written in Python.
    loaders = re.compile(r"PyInit_\w+|PyMarshal_Read\w+")
    return Cost(int(total), sorted(filter(loaders.fullmatch, functions)))


@pytest.mark.parametrize("what", ["VERSION", "the first ADD of a node", "ADD"])
def test_a_call_stays_within_its_budget(host: Host, tmp_path: Path, what: str) -> None:
    if what == "ADD":
        call(host, "ADD")
    cost = cost_of_call(host, "VERSION" if what == "VERSION" else "ADD", tmp_path)
    assert not cost.loaders, f"{what} imports what launcher/main.c has not: {cost.loaders}"
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if os.environ.get("MYCELIUM_CNI_RECORD_BUDGET"):
        budget[what] = cost.instructions
        BUDGET.write_text(json.dumps(budget, indent=2, sort_keys=True) + "\n")
        return
    assert cost.instructions <= budget[what] * TOLERANCE, (
        f"{what} takes {cost.instructions:,} instructions,"
        f" {cost.instructions / budget[what] - 1:+.1%} of what it took;"
        " if every pod needs that: make budget"
    )


def test_an_add_looks_up_the_switches_of_each_namespace_once(host: Host, tmp_path: Path) -> None:
    """The kernel searches for that directory among those of all namespaces."""
    call(host, "ADD")
    trace = tmp_path / "trace"
    call(host, "ADD", "strace", "-f", "-e", "trace=openat,setns", "-o", str(trace))
    called = re.findall(r'(setns|"/proc/sys/net)', trace.read_text())
    assert called == ["setns", '"/proc/sys/net', "setns", '"/proc/sys/net']
