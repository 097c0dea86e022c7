# SPDX-License-Identifier: Apache-2.0
"""status: its exit code says whether ADD would work, its last lines what to do."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from test_list import on_terminal
from tool import SUBNET, Tool

from mycelium_ctl.lab import Node


def test_ready_with_everything(node: Node, root: Path) -> None:
    tool = Tool(node, root)
    tool("setup")
    tool.attach("web")
    found = tool.json("status")
    assert found["ready"]
    assert found["daemon"]["address"] == node.overlay_address
    assert found["daemon"]["apiReachable"]
    assert found["daemon"]["peers"] == 0
    assert found["node"] == {
        "mode": "routed",
        "forwarding": True,
        "guard": True,
        "bridge": None,
        "mtu": 1400,
    }
    assert found["attachments"] == {"total": 1, "gone": 0, "oldSubnet": 0}
    assert found["configuration"] == str(root / "etc/cni/net.d/10-mycelium.conflist")
    # A node alone is no overlay: that is not well, and yet ADD works.
    assert found["state"] == "warn"
    assert "--peers" in found["nextStep"]
    assert tool("status").returncode == 0


def break_interface(tool: Tool) -> None:
    tool.node.configure("link set mycelium down")


def break_conf(tool: Tool) -> None:
    tool.conf("{")


def break_plugin(tool: Tool) -> None:
    (tool.root / "opt/cni/bin/mycelium-cni").unlink()


def break_bridge(tool: Tool) -> None:
    tool.node.configure(
        "link add mycelium-br type bridge", "address add 4aa:1:2:3::1/64 dev mycelium-br"
    )


def nothing(tool: Tool) -> None:
    pass


@pytest.mark.parametrize(
    "breaking", [nothing, break_interface, break_conf, break_plugin, break_bridge]
)
def test_the_exit_code_is_what_add_would_do(tool: Tool, breaking: Any) -> None:
    breaking(tool)
    done = tool("status")
    assert (done.returncode == 0) == (breaking is nothing)
    lines = done.stdout.splitlines()
    assert "# Next step" in lines
    assert lines[lines.index("# Next step") + 1].split(": ", 1)[1]
    if breaking in (break_interface, break_bridge):
        conf = {"cniVersion": "1.1.0", "name": "n", "type": "mycelium-cni"}
        assert tool.node.plugin("ADD", conf, tool.node.pod("p")).code != 0


def test_without_api_it_works_from_the_kernel_and_at_once(tool: Tool) -> None:
    start = time.monotonic()
    found = tool.json("status")
    assert time.monotonic() - start < 3
    assert found["ready"]
    assert found["daemon"]["subnet"] == f"{SUBNET}::/64"
    assert not found["daemon"]["apiReachable"]
    assert found["daemon"]["apiTrouble"]
    assert found["daemon"]["peers"] is None


@pytest.mark.parametrize("columns", [60, 120])
def test_on_a_terminal_no_line_is_too_long(tool: Tool, columns: int) -> None:
    shown = on_terminal(tool, "status", columns=columns)
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= columns
    assert "persistent TUN" in plain


def test_no_color_in_a_pipe(tool: Tool) -> None:
    argv = [*tool.node.lab.command, "status", "--root", str(tool.root)]
    env = {"PATH": os.environ["PATH"], "TERM": "dumb"}
    printed = tool.node.run(argv, check=False, env=env).stdout
    assert "\x1b" not in printed


def test_json_and_words_agree(tool: Tool) -> None:
    found = tool.json("status")
    printed = tool("status").stdout
    for name, state in found["checks"].items():
        assert f"{state:4}  {name}" in printed or state in ("ok", "skip")
