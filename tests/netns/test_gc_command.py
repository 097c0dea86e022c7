# SPDX-License-Identifier: Apache-2.0
"""gc removes what is left of ended pods, and nothing of live ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tool import Tool

from mycelium_ctl.node.namespaces import PodNetns
from mycelium_lab.lab import Pod, await_fact

MODES = pytest.mark.parametrize("mode", ["routed", "bridge"])


def forget(pod: Pod) -> int:
    """Remove the pod's name; only the returned descriptor holds its namespace."""
    fd = os.open(pod.path, os.O_RDONLY)
    pod.remove()
    return fd


def names(tool: Tool) -> set[str]:
    return {attached["pod"] for attached in tool.json("list")}


@MODES
def test_a_pod_that_nobody_knows_any_more_is_removed(tool: Tool, mode: str) -> None:
    pods = {name: tool.attach(name, mode=mode) for name in ("gone", "lives")}
    pods["lives"].start(["sleep", "60"])
    assert tool("gc").stdout.startswith("nothing to do")
    fd = forget(pods["gone"])
    try:
        assert names(tool) == {"gone", "lives"}  # the kernel still has it
        dry = tool("gc", "--dry-run")
        assert "default/gone" in dry.stdout
        assert "default/lives" not in dry.stdout
        assert names(tool) == {"gone", "lives"}
        done = tool.json("gc")
        assert [one["pod"] for one in done["attachments"]] == ["gone"]
        assert done["removed"]
        assert names(tool) == {"lives"}
    finally:
        os.close(fd)
    assert tool("gc").stdout.startswith("nothing to do")


def test_empty_takes_two_looks(tool: Tool) -> None:
    """A pod whose first process starts between the looks stays."""
    tool.attach("empty")
    starting = tool.attach("starting")
    argv = [*tool.node.lab.command, "gc", "--empty", "--grace", "2", "--root", str(tool.root)]
    collecting = tool.node.start(argv)
    starting.start(["sleep", "60"])
    await_fact(lambda: not collecting.running, "gc to end")
    assert "default/empty" in collecting.output()
    assert names(tool) == {"starting"}


def test_named_and_empty_stays_without_being_asked(tool: Tool) -> None:
    tool.attach("web")
    assert tool("gc").stdout.startswith("nothing to do")
    assert "default/web" in tool("gc", "--empty", "--grace", "0", "--dry-run").stdout
    assert names(tool) == {"web"}


def test_what_a_killed_deletion_left_is_removed(tool: Tool) -> None:
    tool.attach("web")
    tool.node.configure(f"link set {tool.host_link('web')} group {0x70000123}")
    assert "interrupted" in tool("gc").stdout
    assert tool.json("list") == []
    links = {link["ifname"] for link in tool.node.ip("link")}
    assert [name for name in links if name.startswith("myc")] == ["mycelium"]


def test_in_a_container_that_sees_no_processes_it_refuses(tool: Tool) -> None:
    tool.attach("web")
    argv = [*tool.node.lab.command, "gc", "--root", str(tool.root)]
    done = tool.node.run(["unshare", "--pid", "--fork", "--mount-proc", *argv], check=False)
    assert done.returncode == 1
    assert "hostPID" in done.stderr
    assert names(tool) == {"web"}


def test_a_namespace_is_entered_although_a_process_in_it_has_ended(tool: Tool) -> None:
    """An exec probe is in its pod for a moment: it was seen there, and is gone when it is used."""
    pod = tool.attach("web")
    inode = Path(pod.path).stat().st_ino
    ended = os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[0]
    by_mount, by_process = PodNetns(inode), PodNetns(inode)
    by_mount.paths.append(pod.path)
    by_mount.processes.append(ended)
    lives = pod.start(["sleep", "60"])
    way = f"/proc/{lives.pid}/ns/net"
    await_fact(lambda: Path(way).stat().st_ino == inode, "sleep in its pod")
    by_process.processes.extend((ended, lives.pid))
    for held in (by_mount, by_process):
        entered = held.open()
        assert os.fstat(entered).st_ino == inode
        os.close(entered)
