# SPDX-License-Identifier: Apache-2.0
"""install and uninstall: all of it or nothing half, and back to what was there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tool import Tool

from mycelium_lab.lab import Node

CONFLIST = "etc/cni/net.d/10-mycelium.conflist"
PLUGIN = "opt/cni/bin/mycelium-cni"
FLANNEL = {
    "cniVersion": "1.0.0",
    "name": "cbr0",
    "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": True}}],
}


@pytest.fixture
def root(tmp_path: Path, root: Path) -> Path:
    """A node with the reference plugins, and nothing of ours."""
    (root / CONFLIST).unlink()
    (root / PLUGIN).unlink()
    (root / "etc/systemd").mkdir()
    return root


def tree(root: Path) -> dict[str, bytes]:
    """Every file and link below a directory."""
    return {
        str(path.relative_to(root)): str(path.readlink()).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def done(tool: Tool, *argv: str) -> str:
    ran = tool(*argv)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_uninstall_takes_back_exactly_what_install_made(tool: Tool, root: Path) -> None:
    before = tree(root)
    done(tool, "install", "--dry-run")
    assert tree(root) == before
    done(tool, "install")
    assert {CONFLIST, PLUGIN, "usr/local/bin/mycelium-cni"} <= tree(root).keys()
    unit = (root / "etc/systemd/system/mycelium-cni-setup.service").read_text()
    assert f"ExecStart=/{PLUGIN} setup" in unit
    done(tool, "uninstall", "--dry-run")
    assert PLUGIN in tree(root)
    done(tool, "uninstall")
    assert tree(root) == before


def test_a_second_install_changes_nothing_and_says_so(tool: Tool, root: Path) -> None:
    done(tool, "install")
    before = {path: (root / path).lstat().st_ino for path in tree(root)}
    assert "nothing to do" in done(tool, "install")
    assert {path: (root / path).lstat().st_ino for path in tree(root)} == before


def test_a_configuration_stays_until_another_one_is_asked_for(tool: Tool, root: Path) -> None:
    done(tool, "install", "--ingress", "closed")
    done(tool, "install")
    assert json.loads((root / CONFLIST).read_text())["plugins"][0]["ingress"] == "closed"
    done(tool, "install", "--ingress", "cluster")
    assert json.loads((root / CONFLIST).read_text())["plugins"][0]["ingress"] == "cluster"


def test_another_plugin_of_the_name_and_an_operators_file_come_back(tool: Tool, root: Path) -> None:
    (root / PLUGIN).write_text("#!/bin/sh\nexit 1\n")
    (root / CONFLIST).write_text('{"cniVersion": "1.0.0", "name": "a", "plugins": []}')
    before = tree(root)
    done(tool, "install", "--primary", "--ingress", "open")
    assert tree(root)[PLUGIN] != before[PLUGIN]
    done(tool, "uninstall")
    assert tree(root) == before


def test_edits_survive_uninstall_beside_their_place(tool: Tool, root: Path) -> None:
    done(tool, "install")
    (root / CONFLIST).write_text("edited")
    done(tool, "uninstall")
    assert not (root / CONFLIST).exists()
    assert (root / f"{CONFLIST}.saved").read_text() == "edited"


def test_another_first_network_is_left_alone_without_primary(tool: Tool, root: Path) -> None:
    flannel = root / "etc/cni/net.d/10-flannel.conflist"
    flannel.write_text(json.dumps(FLANNEL))
    before = flannel.read_text()
    said = done(tool, "install")
    assert "config new --for multus" in said
    assert "--primary" in said
    assert [path.name for path in flannel.parent.iterdir()] == [flannel.name]
    done(tool, "install", "--primary")
    first, second = sorted(path.name for path in flannel.parent.iterdir())
    assert (first, second) == ("00-mycelium.conflist", flannel.name)
    done(tool, "uninstall")
    assert flannel.read_text() == before


def test_without_loopback_nothing_is_touched(tool: Tool, root: Path) -> None:
    (root / "opt/cni/bin/loopback").unlink()
    before = tree(root)
    refused = tool("install")
    assert refused.returncode == 1
    assert "loopback" in refused.stderr
    assert tree(root) == before


def test_uninstall_is_refused_where_nothing_was_installed_by_it(bare: Node, root: Path) -> None:
    before = tree(root)
    assert Tool(bare, root)("uninstall").stdout.startswith("nothing to do")
    assert tree(root) == before
