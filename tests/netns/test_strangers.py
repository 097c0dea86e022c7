# SPDX-License-Identifier: Apache-2.0
"""What others than root leave lying about never decides what the operator's command runs, opens or
waits for."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool import Tool

from mycelium_lab.lab import Node, Process, await_fact

# On a usual machine everybody may open /dev/net/tun; in a container only root may.
AS_NOBODY = """
mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


class Stranger:
    """A program of an unprivileged user, made to pass for the daemon; `loot` is what it writes when
    it is asked for its version."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "mycelium"
        self.loot = folder / "open-to-all" / "loot"
        self.loot.parent.mkdir()
        self.loot.parent.chmod(0o777)
        source = Path(__file__).with_name("stranger.c")
        subprocess.run(
            ["gcc", "-O1", "-Wall", "-Werror", f'-DLOOT="{self.loot}"', source, "-o", self.program],
            check=True,
        )

    def hold_a_tun(self, node: Node, name: str = "mycelium") -> Process:
        """Run in the node's namespace, as nobody, with a TUN of this name from elsewhere."""
        shell = ["unshare", "--mount", "sh", "-ec", AS_NOBODY, "sh"]
        process = node.start([*shell, str(self.program), name])
        await_fact(lambda: "ready" in process.output(), what="the stranger holds its TUN")
        return process


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    folder = Path(tempfile.mkdtemp(prefix="stranger-"))  # tmp_path is root's alone
    folder.chmod(0o755)
    yield Stranger(folder)
    shutil.rmtree(folder)


def test_a_stranger_with_a_tun_of_the_same_name_is_not_the_daemon(
    node: Node, root: Path, stranger: Stranger
) -> None:
    tool = Tool(node, root)
    node.stop_overlay()
    stranger.hold_a_tun(node)
    alone = tool.json("status")["daemon"]
    tool("doctor")
    node.start_overlay()
    assert node.overlay
    beside = tool.json("status")["daemon"]
    assert not stranger.loot.exists(), stranger.loot.read_text()
    assert alone["process"] is None
    assert beside["process"] == node.overlay.pid


def install_daemon(stranger: Stranger, node: Node, path: Path) -> Process:
    """The program, as root's, with the node's own TUN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(stranger.program, path)
    process = node.start([str(path), "mycelium"])
    await_fact(lambda: "ready" in process.output(), what="the daemon holds its TUN")
    return process


@pytest.mark.parametrize("place", ["usr/bin/mycelium", "opt/overlay/daemon"])
def test_the_daemon_that_root_installed_tells_its_version(
    tool: Tool, stranger: Stranger, place: str
) -> None:
    """And no longer once others may write where it is, or when another file is there by now."""
    unit = tool.root / "etc/systemd/system/mycelium.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(f"[Service]\nExecStart=/{place} --tun-name mycelium\n")
    path = tool.root / place
    process = install_daemon(stranger, tool.node, path)
    shown = tool.json("status")["daemon"]
    assert (shown["process"], shown["version"]) == (process.pid, "6.6.6")
    stranger.loot.unlink()
    for changed in (path, path.parent):
        mode = changed.stat().st_mode
        changed.chmod(0o777)
        assert tool.json("status")["daemon"]["version"] is None
        changed.chmod(mode)
    path.rename(path.with_name("old"))
    shutil.copy(stranger.program, path)
    shown = tool.json("status")["daemon"]
    assert (shown["process"], shown["version"]) == (process.pid, None)
    assert not stranger.loot.exists()


def test_a_daemon_from_anywhere_is_not_asked_for_its_version(
    tool: Tool, stranger: Stranger
) -> None:
    process = install_daemon(stranger, tool.node, tool.root / "home/somebody/mycelium")
    shown = tool.json("status")["daemon"]
    assert (shown["process"], shown["version"]) == (process.pid, None)
    assert not stranger.loot.exists()


def trap(path: Path, loot: Path) -> None:
    path.write_text(f"#!/bin/sh\nid >>{loot}\n")
    path.chmod(0o755)


def test_programs_in_a_directory_that_others_may_write_are_not_run(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loot, open_to_all = tmp_path / "loot", tmp_path / "open-to-all"
    open_to_all.mkdir()
    for name in ("nft", "ip", "mycelium", "mycelium-cni"):
        trap(open_to_all / name, loot)
    monkeypatch.setenv("PATH", f"{open_to_all}:{os.environ['PATH']}")
    tool("doctor", "firewall")
    assert "uid=0" in loot.read_text()  # so it would be, were the directory root's
    loot.unlink()
    open_to_all.chmod(0o777)
    assert tool.doctor("firewall")["state"] == "ok"
    assert not loot.exists()


def test_a_plugin_that_others_may_replace_is_not_run(tool: Tool, tmp_path: Path) -> None:
    loot, bins = tmp_path / "loot", tool.root / "opt/cni/bin"
    trap(bins / "mycelium-cni", loot)
    tool.doctor("plugin")
    assert "uid=0" in loot.read_text()
    loot.unlink()
    for changed in (bins / "mycelium-cni", bins, tool.root / "opt"):
        mode = changed.stat().st_mode
        changed.chmod(0o775)
        os.chown(changed, 0, 65534)
        finding = tool.doctor("plugin")
        assert finding["state"] == "warn"
        assert str(changed) in finding["found"]
        os.chown(changed, 0, 0)
        changed.chmod(mode)
        os.chown(changed, 65534, 0)
        assert "belongs to user 65534" in tool.doctor("plugin")["found"]
        os.chown(changed, 0, 0)
    # The same behind a symbolic link of a stranger.
    real = bins.rename(tool.root / "real")
    bins.symlink_to(real)
    os.chown(bins, 65534, 0, follow_symlinks=False)
    assert "belongs to user 65534" in tool.doctor("plugin")["found"]
    assert not loot.exists()
