# SPDX-License-Identifier: Apache-2.0
"""Without root, or in a container: commands say what they cannot see, and never take it for
missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_doctor import passes
from tool import Tool

from mycelium_lab.lab import Node

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.fixture
def public(node: Node, root: Path) -> Iterator[Tool]:
    """A prepared node with two live pods, and files that everybody may read."""
    folder = Path(tempfile.mkdtemp(prefix="public-"))  # tmp_path is root's alone
    shutil.copytree(root, folder, dirs_exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    network = folder / "etc/cni/net.d/10-mycelium.conflist"
    network.write_text(network.read_text().replace(str(root), str(folder)))
    tool = Tool(node, folder)
    tool("setup")
    for name in ("web", "db"):
        tool.attach(name).start(["sleep", "60"])
    yield tool
    shutil.rmtree(folder)


def run(tool: Tool, who: tuple[str, ...], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [*who, *tool.node.lab.command, *argv, "--root", str(tool.root)]
    return tool.node.run(command, check=False)


def test_an_unprivileged_user_sees_no_dead_pods(public: Tool) -> None:
    listed = run(public, NOBODY, "list", "--json")
    assert listed.returncode == 0
    assert {one["state"] for one in json.loads(listed.stdout)} == {"skip"}
    assert "gone" not in run(public, NOBODY, "list").stdout
    findings = {
        one["name"]: one for one in json.loads(run(public, NOBODY, "doctor", "--json").stdout)
    }
    for check in ("pods", "pod-routes", "reach", "guard", "firewall"):
        assert findings[check]["state"] == "skip", findings[check]
    assert "root" in findings["pods"]["found"]
    # The node has no peer, and the executable under test may be in a folder of root's alone.
    failed = {one["name"] for one in findings.values() if one["state"] == "fail"}
    assert failed <= {"peers", "plugin"}
    assert not any("gc" in command for one in findings.values() for command in one["run"])
    for argv in (["gc", "--dry-run"], ["gc"], ["doctor", "web"], ["setup"], ["test"]):
        done = run(public, NOBODY, *argv)
        assert done.returncode == 1, argv
        assert "root" in done.stderr, argv
        assert len(done.stderr.splitlines()) == 1, argv
    assert (
        "only root can read the packet filter" in run(public, NOBODY, "setup", "--dry-run").stdout
    )
    (public.root / "opt/cni/bin/mycelium-cni").chmod(0o700)
    status = json.loads(run(public, NOBODY, "status", "--json").stdout)
    assert status["ready"] is None
    assert status["attachments"] == {"total": 2, "gone": None, "oldSubnet": 0}
    assert "only root can tell" in run(public, NOBODY, "status").stdout
    assert public("list").returncode == 0


def test_a_container_without_the_machines_processes_sees_no_dead_pods(public: Tool) -> None:
    assert run(public, CONTAINER, "list").returncode == 0
    (found,) = json.loads(run(public, CONTAINER, "doctor", "pods", "--json").stdout)
    assert found["state"] == "ok"
    assert "hostPID" in run(public, CONTAINER, "gc").stderr
    assert "in what can be seen: " in run(public, CONTAINER, "doctor", "pods").stdout


def test_directories_that_only_root_may_list_are_skipped(public: Tool) -> None:
    confs = public.root / "etc/cni/net.d"
    (confs / "10-mycelium.conflist").chmod(0o600)
    for closed in (confs / "10-mycelium.conflist", confs):
        (found,) = json.loads(run(public, NOBODY, "doctor", "conf", "--json").stdout)
        assert found["state"] == "skip", found
        assert str(closed) in found["found"]
        assert run(public, NOBODY, "list").returncode == 0
        confs.chmod(0o700)
    passes(public, "conf")


def test_list_gc_and_doctor_agree_about_a_pod_that_is_gone(tool: Tool) -> None:
    pod, _ = tool.attach("gone"), tool.attach("lives")
    tool("setup")
    holder = os.open(pod.path, os.O_RDONLY)
    pod.remove()
    try:
        states = {one["pod"]: one["verdict"] for one in tool.json("list")}
        assert states == {"gone": "gone", "lives": "eth0"}
        assert tool("list").returncode == 1
        assert [one["pod"] for one in tool.json("gc", "--dry-run")["attachments"]] == ["gone"]
        assert tool.json("status")["attachments"]["gone"] == 1
        assert "1 attachment without a pod: default/gone" in tool.doctor("pods")["found"]
    finally:
        os.close(holder)


def test_other_programs_links_are_never_collected(tool: Tool) -> None:
    """Any program may use our group number, and most of a host link's name."""
    for number, name in enumerate(("their0", "mycbridge0", "myc0123456789ag")):
        group = (0x60000123, 0x70000123)[number % 2]
        tool.node.configure(
            f"link add {name} type veth peer name p{number}", f"link set {name} group {group}"
        )
    tool.node.configure("link add their-br type bridge", f"link set their-br group {0x70000001}")
    assert tool.json("list") == []
    assert tool("gc").stdout.startswith("nothing to do")
    names = {link["ifname"] for link in tool.node.ip("link")}
    assert names >= {"their0", "mycbridge0", "myc0123456789ag", "their-br"}
