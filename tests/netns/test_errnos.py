# SPDX-License-Identifier: Apache-2.0
"""Whichever request the kernel refuses, with any errno: a clear message, and nothing is left.

Each verb is called once for every system call and every message to the kernel that it makes, and
for every way in which that one can fail (failing_plugin.py).
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from attaching import (
    MODES,
    PROTOCOL,
    Attached,
    Mode,
    attach,
    both_modes,
    network,
    reaches,
    silent,
)
from observe import difference, kernel_state

import mycelium_cni
from mycelium_lab.lab import Lab, Node

Verb = Literal["ADD", "DEL", "CHECK", "GC", "STATUS"]
FAILING_PLUGIN = Path(__file__).with_name("failing_plugin.py")
SOURCE = str(Path(mycelium_cni.__file__).parents[1])

pytestmark = pytest.mark.timeout(300)


def run_cases(
    lab: Lab, mode: Mode, verb: Verb, cases: list[list[Any]] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each case and its outcome, and what the node or the pod has afterwards that was not there
    before."""
    node = lab.node("a")
    lab.connect(node)
    conf = network(mode, defaultRoute=True)
    earlier = attach(node, "earlier", conf)
    pod = node.pod("pod")
    valid = [{"containerID": earlier.pod.container_id, "ifname": "eth0"}]
    job = {
        "verb": verb,
        "conf": {**conf, "cni.dev/valid-attachments": valid} if verb == "GC" else conf,
        "env": {
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
        },
        "cases": cases,
    }
    before = kernel_state(node, pod)
    env = {"PYTHONPATH": SOURCE}
    done = node.run(
        [sys.executable, str(FAILING_PLUGIN)], env=env, input=json.dumps(job), timeout_s=240
    )
    return [json.loads(line) for line in done.stdout.splitlines()], difference(
        before, kernel_state(node, pod)
    )


@pytest.mark.parametrize("modes", [*itertools.product(MODES, repeat=2)], ids="-".join)
def test_a_pod_of_two_interfaces_on_a_kernel_without_routes_for_one_source(
    node: Node, modes: tuple[Mode, Mode]
) -> None:
    """As Talos's kernel. There a rule is made instead, and is removed with its attachment."""
    pod = node.pod("pod")
    first = attach(node, pod, network(modes[0], name="first"), ifname="net0")
    conf = network(modes[1], name="second")
    env = {
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "net1",
    }
    job = {"verb": "ADD", "conf": conf, "env": env, "without": "IPV6_SUBTREES"}
    source = {"PYTHONPATH": SOURCE}
    done = node.run([sys.executable, str(FAILING_PLUGIN)], env=source, input=json.dumps(job))
    second = Attached(node, pod, conf, json.loads(done.stdout), "net1")
    (rule,) = [each for each in pod.ip("-6", "rule") if each.get("protocol") == PROTOCOL]
    assert rule["src"] == second.address
    for each in (first, second):
        assert reaches(node, each.address)
        assert reaches(pod, str(node.overlay_address), each.address)
        silent(each.check())
    silent(second.delete())
    assert not [each for each in pod.ip("-6", "rule") if each.get("protocol") == PROTOCOL]
    assert reaches(node, first.address)


def first_that_leaves_something(
    command: list[str], mode: Mode, verb: Verb, cases: list[list[Any]]
) -> list[str]:
    """The first of these cases that leaves something, and what."""
    while True:
        half = cases[: len(cases) // 2]
        with Lab(command) as lab:
            left = run_cases(lab, mode, verb, half or cases)[1]
        if not half:
            return [str(cases[0]), *left]
        cases = half if left else cases[len(half) :]


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@both_modes
def test_whichever_request_is_refused_the_answer_is_clear_and_nothing_is_left(
    command: list[str], lab: Lab, mode: Mode, verb: Verb
) -> None:
    played, left = run_cases(lab, mode, verb)
    assert len(played) > 40
    unclear = []
    for case in played:
        said = json.loads(case["stdout"]) if case["code"] == 1 else {}
        clear = case["code"] == 0 or (said["code"] != 999 and len(said["msg"]) > 20)
        # A failed DEL or GC has done all it could, so the next one does the rest.
        then = case["then"] is None or case["then"][0] == 0
        if not clear or not then or "Traceback" in case["stderr"]:
            unclear.append(case)
    assert not unclear
    if left:
        cases = [[case["number"], case["errno"]] for case in played]
        pytest.fail("\n".join(first_that_leaves_something(command, mode, verb, cases)))
