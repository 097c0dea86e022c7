# SPDX-License-Identifier: Apache-2.0
"""What the tests of the operator's commands share.

shared_nodes   two connected nodes for each mode, shared by the tests of a module
bridges_ask    whether bridges hand packets to the rules of inet too
checked_nodes  a node with two pods for each mode, which doctor or the agent looks at
root           a directory tree with the files that a command looks for on a good node
bare           a node with an interface as the daemon makes it, and no daemon
tool           the operator's command on that node, with that tree
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from attaching import SharedNodes
from checked_node import CheckedNodes
from observe import set_sysctl
from tool import NODE, Tool

from mycelium_lab.lab import Lab, Node

# Where packets between bridged pods are what is tested. A new namespace has 1; machines without
# br_netfilter are as those with 0, and every Kubernetes node has 1.
BOTH_KINDS_OF_BRIDGES = {
    *("test_attach", "test_chain", "test_check", "test_claims", "test_gc", "test_guard"),
    *("test_interfaces", "test_masq", "test_policy", "test_services"),
}
CALLS_IP6TABLES = "bridge/bridge-nf-call-ip6tables"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in BOTH_KINDS_OF_BRIDGES and "mode" in metafunc.fixturenames:
        metafunc.parametrize("bridges_ask", [True, False], ids=["asks", "alone"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a bridge there is one kind."""

    def is_repetition(item: pytest.Item) -> bool:
        params = getattr(getattr(item, "callspec", None), "params", {})
        return params.get("mode") == "routed" and not params.get("bridges_ask", True)

    config.hook.pytest_deselected(items=[item for item in items if is_repetition(item)])
    items[:] = [item for item in items if not is_repetition(item)]


@pytest.fixture(autouse=True)
def bridges_ask(request: pytest.FixtureRequest) -> Iterator[bool]:
    asks: bool = getattr(request, "param", True)
    make = Lab.node

    def node(lab: Lab, name: str) -> Node:
        made = make(lab, name)
        set_sysctl(made, CALLS_IP6TABLES, "0")
        return made

    # Not the fixture: a test's own patches are to end before its lab does.
    with pytest.MonkeyPatch.context() as patch:
        if not asks:
            patch.setattr(Lab, "node", node)
        yield asks


@pytest.fixture(scope="module")
def shared_labs(command: list[str]) -> Iterator[SharedNodes]:
    shared_nodes = SharedNodes(command)
    yield shared_nodes
    shared_nodes.close()


@pytest.fixture
def shared_nodes(shared_labs: SharedNodes, bridges_ask: bool) -> SharedNodes:
    for node in shared_labs.nodes:
        set_sysctl(node, CALLS_IP6TABLES, f"{bridges_ask:d}")
    return shared_labs


@pytest.fixture(scope="module")
def checked_nodes(command: list[str]) -> Iterator[CheckedNodes]:
    nodes = CheckedNodes(command)
    yield nodes
    nodes.close()


@pytest.fixture
def root(tmp_path: Path, command: list[str]) -> Path:
    confs, bins = tmp_path / "etc/cni/net.d", tmp_path / "opt/cni/bin"
    for directory in (confs, bins):
        directory.mkdir(parents=True)
    for name in ("mycelium-cni", "loopback"):
        (bins / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (bins / name).chmod(0o755)
    plugin = {"type": "mycelium-cni", "netseed": str(tmp_path / "netseed")}
    network = {"cniVersion": "1.0.0", "name": "mycelium", "plugins": [plugin]}
    (confs / "10-mycelium.conflist").write_text(json.dumps(network, indent=2))
    return tmp_path


@pytest.fixture
def bare(lab: Lab) -> Node:
    node = lab.node("a")
    node.configure(
        "tuntap add mycelium mode tun",
        "link set mycelium mtu 1400 up",
        f"address add {NODE}/7 dev mycelium",
    )
    return node


@pytest.fixture
def tool(bare: Node, root: Path) -> Tool:
    return Tool(bare, root)
