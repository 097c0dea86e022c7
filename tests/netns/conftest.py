# SPDX-License-Identifier: Apache-2.0
"""What the tests of the operator's commands share.

labs           two connected nodes for each mode, shared by the tests of a module
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
from attaching import Labs
from checked_node import CheckedNodes
from tool import NODE, Tool

from mycelium_lab.lab import Lab, Node


@pytest.fixture(scope="module")
def labs(command: list[str]) -> Iterator[Labs]:
    labs = Labs(command)
    yield labs
    labs.close()


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
