# SPDX-License-Identifier: Apache-2.0
"""The bench runs and yields every figure. No test asserts how fast: machines differ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mycelium_lab.lab import await_fact, find_daemon

ROOT = Path(__file__).parent.parent.parent
STATIC = ROOT / "dist/mycelium-cni-linux-amd64"
BENCH = [sys.executable, "-m", "bench", "--quick"]

OURS, PIP = "mycelium-cni, static", "mycelium-cni, pip"
BRIDGE_MODE = "mycelium-cni, static, bridge mode"
FLOOR, FLOOR_BRIDGE = "C floor", "C floor, bridge mode"
BRIDGE, PTP = "bridge + host-local", "ptp + host-local"
GRID = {"the grid's Go plugin"} if find_daemon() and "MYCELIUM_GRID_CNI" in os.environ else set()
ALL = {OURS, PIP, BRIDGE_MODE, FLOOR, FLOOR_BRIDGE, BRIDGE, PTP} | GRID
BURST = {OURS, PIP, FLOOR, BRIDGE}
ENDS = {OURS, BRIDGE_MODE, FLOOR, FLOOR_BRIDGE, BRIDGE}

FIGURES = {
    "ADD": ALL,
    "DEL": ALL,
    "peak memory of ADD": ALL,
    "VERSION": {OURS, PIP, BRIDGE, "loopback"},
    "peak memory of VERSION": {OURS, PIP, BRIDGE, "loopback"},
    "size": {OURS, BRIDGE, "loopback"},
    "STATUS": {OURS, PIP, BRIDGE},
    "first packet": {OURS, BRIDGE, PTP},
    **{f"8 ADDs, {parallel} at a time": BURST for parallel in (1, 4, 16)},
    **{f"one ADD of {parallel} at a time": BURST for parallel in (1, 4, 16)},
    "GC of 12 stale": {OURS, "the kernel alone"},
    "ADD of pod 1": ENDS,
    "DEL of pod 1": ENDS,
    "ADD of pod 4": {OURS},
    "DEL of pod 4": {OURS},
    "ADD of pod 150": ENDS,
    "DEL of pod 150": ENDS,
    **{
        f"{what}, {mode}{policy}": {"with the guard", "without the guard", *more}
        for what in ("TCP", "packet", "ICMPv6 error")
        for mode in ("routed", "bridge")
        for policy, more in (("", ()), (", cluster + ipMasq", ("connection tracking alone",)))
    },
    **{
        f"{command} with {pods} pods": {OURS}
        for command in ("list", "status", "doctor")
        for pods in (4, 150)
    },
    **({"TCP over the overlay": {"pod to pod", "host to host"}} if find_daemon() else {}),
    "the node's first ADD": ALL - {FLOOR, FLOOR_BRIDGE},
    "the guard's part of an ADD": {OURS, BRIDGE_MODE},
}

pytestmark = [
    pytest.mark.xdist_group("bench"),  # one at a time: both use the same built programs
    pytest.mark.timeout(300),
]


@pytest.fixture(autouse=True)
def _static_executable() -> None:
    if not STATIC.exists():
        pytest.fail(f"{STATIC} is missing: run `make dist` first")


def test_the_bench_yields_every_figure(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [*BENCH, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    figures = report["figures"]
    assert {measure: set(by_candidate) for measure, by_candidate in figures.items()} == FIGURES
    for measure, by_candidate in figures.items():
        assert measure in done.stdout
        for figure in by_candidate.values():
            assert 0 < figure["p10"] <= figure["median"] <= figure["p90"]
    assert len(report["targets"]) == 16
    assert all(report["machine"].values())
    assert all(report["versions"].values())
    assert "mycelium_cni.verbs" in [each["name"] for each in report["imports"]]


@pytest.mark.usefixtures("ctrl_c")
def test_the_bench_leaves_nothing_after_ctrl_c() -> None:
    with subprocess.Popen(
        BENCH,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as bench:
        assert bench.stderr is not None
        assert "first pods" in bench.stderr.readline()  # in the middle of its work
        os.killpg(bench.pid, signal.SIGINT)
        assert bench.wait(10) == 130
    # Only its processes hold its namespaces: it never made anything in the machine's own.
    await_fact(partial(_group_is_gone, bench.pid), "the end of all that the bench has started")
    assert not list(Path("/run/netns").glob("node*-00000"))


def _group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
