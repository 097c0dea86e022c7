# SPDX-License-Identifier: Apache-2.0
"""list: who is attached, read from the kernel alone."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess

import pytest
from tool import NODE, OTHER_NODE, SUBNET, Tool

from mycelium_lab.lab import await_fact


def test_nobody_is_attached(tool: Tool) -> None:
    done = tool("list")
    assert done.returncode == 0
    assert done.stdout == "no pod is attached\n"
    assert tool.json("list") == []


def test_a_pod_with_its_traffic(tool: Tool) -> None:
    pod = tool.attach("web")
    before = tool.json("list")[0]
    for _ in range(3):
        assert pod.ping(NODE) is not None
    after = tool.json("list")[0]
    link = pod.link("eth0")
    assert link is not None
    address = link["addr_info"][0]["local"]
    words = ("namespace", "pod", "network", "ifname", "address", "podLink", "podAnswers", "state")
    expected = ("default", "web", "mycelium", "eth0", address, "eth0", True, "ok")
    assert tuple(after[word] for word in words) == expected
    assert after["container"] == pod.container_id
    assert tool.node.link(after["hostLink"]) is not None
    for way in ("received", "sent"):
        assert after[f"{way}Packets"] - before[f"{way}Packets"] >= 3
        assert after[f"{way}Bytes"] - before[f"{way}Bytes"] >= 3 * 104
    line = tool("list").stdout.splitlines()[1]
    assert line.split()[:3] == ["ok", "default/web", address]


def test_a_pod_is_not_taken_for_gone_where_descriptors_are_few(tool: Tool) -> None:
    for name in ("web", "db", "api"):
        tool.attach(name)
    few = ["prlimit", "--nofile=8", *tool.node.lab.command, "list", "--root", str(tool.root)]
    done = tool.node.run(few, check=False)
    assert done.returncode == 0, done
    assert done.stdout.count("\nok ") == 3


def test_what_is_not_well_shows(tool: Tool) -> None:
    pod = tool.attach("web")
    pod.configure("link set eth0 down")
    assert tool("list").returncode == 1
    assert tool.json("list")[0]["verdict"] == "eth0 down"
    pod.configure("link set eth0 up")
    tool.node.configure(f"link set {tool.host_link('web')} down")
    assert tool.json("list")[0]["verdict"] == "host link down"
    tool.node.configure(f"link set {tool.host_link('web')} up")
    tool.node.configure(
        f"address del {NODE}/7 dev mycelium", f"address add {OTHER_NODE}/7 dev mycelium"
    )
    found = tool.json("list")[0]
    assert (found["state"], found["verdict"]) == ("warn", "old subnet")


def test_other_peoples_links_are_not_listed(tool: Tool) -> None:
    tool.node.configure(
        "link add myc0123456789ab type veth peer name x",  # the name alone does not make it ours
        "link add name y group 1610612736 type veth peer name z",
    )
    assert tool.json("list") == []


def test_hostile_names_reach_no_terminal(tool: Tool) -> None:
    evil = "\x1b]0;owned\x07\x1b[31m\u202e"
    pod = tool.node.pod("evil")
    conf = {"cniVersion": "1.1.0", "name": "mycelium", "type": "mycelium-cni"}
    args = f"K8S_POD_NAMESPACE=[red]x[/];K8S_POD_NAME={evil}"
    tool.node.plugin("ADD", conf, pod, args=args).succeeded()
    # An alias may also be written by hand.
    by_hand = tool.attach("hand")
    link = tool.host_link("hand")
    alias = f"mycelium-cni address={SUBNET}::9 pod=a/b\x1b[41m\r\x9b container=c\x07"
    tool.node.run(["ip", "link", "set", link, "alias", alias])
    for printed in (tool("list").stdout, on_terminal(tool, "list", columns=60)):
        text = printed.replace("\r\n", "\n")
        for nasty in ("\x07", "\x9b", "\x1b]", "\x1b[41m", "\u202e", "\r"):
            assert nasty not in text
    assert "[red]x[/]" in tool("list").stdout
    assert by_hand.link("eth0") is not None


@pytest.mark.usefixtures("ctrl_c")
def test_watch_goes_on_until_ctrl_c(tool: Tool) -> None:
    tool.attach("web")
    argv = [*tool.node.lab.command, "list", "--watch", "0.2", "--root", str(tool.root)]
    watching = tool.node.start(argv)
    await_fact(lambda: watching.output().count("default/web") >= 2, "a second screen")
    assert watching.running
    assert "Traceback" not in watching.stop(signal.SIGINT)


def on_terminal(tool: Tool, *argv: str, columns: int) -> str:
    """What the command writes to a terminal of this width."""
    leader, follower = pty.openpty()
    command = [*tool.node.lab.command, *argv, "--root", str(tool.root)]
    env = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        ["nsenter", f"--net={tool.node.path}", *command],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=env,
    )
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 20)[0]:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not chunk:
            break
        seen += chunk
    process.wait()
    os.close(leader)
    return seen.decode()
