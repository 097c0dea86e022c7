# SPDX-License-Identifier: Apache-2.0
"""setup and teardown do exactly what they print, and teardown undoes all of setup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tool import NODE, OTHER_NODE, SUBNET, Tool, command_lines, state

from mycelium_lab.lab import Lab, Node, await_fact

MODES = pytest.mark.parametrize("mode", ["routed", "bridge"])


@MODES
def test_dry_run_prints_what_setup_does_and_changes_nothing(
    lab: Lab, bare: Node, root: Path, mode: str
) -> None:
    before = state(bare)
    dry = Tool(bare, root)("setup", "--mode", mode, "--dry-run")
    assert dry.returncode == 0
    assert state(bare) == before
    lines = command_lines(dry.stdout)
    assert command_lines(Tool(bare, root)("setup", "--mode", mode).stdout) == lines
    # The printed lines, run in a shell on a node like it, leave nothing for setup to do there.
    twin = lab.node("twin")
    twin.configure(
        "tuntap add mycelium mode tun",
        "link set mycelium mtu 1400 up",
        f"address add {NODE}/7 dev mycelium",
    )
    twin.run(["sh", "-e", "-c", "\n".join(lines)])
    left = Tool(twin, root).json("setup", "--mode", mode)["changes"]
    assert [change["command"][:12] for change in left] == ["# load table"]


@MODES
def test_a_second_run_changes_nothing_and_says_so(tool: Tool, mode: str) -> None:
    assert tool.json("setup", "--mode", mode)["changed"]
    before = state(tool.node)
    again = tool("setup", "--mode", mode)
    assert again.returncode == 0
    assert again.stdout.startswith("nothing to do")
    assert state(tool.node) == before


@MODES
def test_teardown_takes_back_what_setup_made_and_nothing_else(tool: Tool, mode: str) -> None:
    tool.node.configure(
        "route add unreachable 4aa::/64",  # somebody else's
        "address add 2001:db8:5::1/128 dev lo",
        "link add mine type bridge",
    )
    # Forwarding has no mark and stays: not the subject of this test.
    tool.node.run(["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])
    tool.node.run(["nft", "add table inet theirs"])
    before = state(tool.node)
    tool("setup", "--mode", mode)
    assert state(tool.node) != before
    dry = tool("teardown", "--dry-run")
    done = tool("teardown")
    assert command_lines(done.stdout) == command_lines(dry.stdout)
    assert state(tool.node) == before
    assert tool("teardown").stdout.startswith("nothing to do")


def test_teardown_refuses_while_pods_are_attached(tool: Tool) -> None:
    tool("setup")
    tool.attach("web")
    before = state(tool.node)
    refused = tool("teardown")
    assert refused.returncode == 1
    assert "default/web" in refused.stderr
    assert state(tool.node) == before
    assert tool("teardown", "--force").returncode == 0


def test_setup_after_add_has_nothing_to_do(tool: Tool) -> None:
    tool.attach("web")
    assert tool.json("setup")["changes"] == []


def test_the_bridges_mac_stays_when_pods_come_and_go(tool: Tool) -> None:
    tool("setup", "--mode", "bridge")
    macs = set()
    for name in ("a", "b", "c"):
        tool.attach(name, mode="bridge")
        macs.add(tool.node.ip("link", "show", "mycelium-br")[0]["address"])
        tool.node.run(["ip", "link", "del", tool.host_link(name)])
        macs.add(tool.node.ip("link", "show", "mycelium-br")[0]["address"])
    assert len(macs) == 1


def test_a_foreign_bridge_is_completed_and_stays(tool: Tool) -> None:
    """As the grid's network_setup.sh leaves it when it is faster than the daemon."""
    tool.node.configure("link add mycelium-br type bridge", "link set mycelium-br up")
    done = tool.json("setup")
    assert done["mode"] == "bridge"
    assert not any("link add" in change["command"] for change in done["changes"])
    link = tool.node.link("mycelium-br")
    assert link is not None
    assert f"{SUBNET}::1" in [entry["local"] for entry in link["addr_info"]]
    tool("teardown")
    link = tool.node.link("mycelium-br")
    assert link is not None
    assert f"{SUBNET}::1" not in [entry["local"] for entry in link["addr_info"]]


def test_a_bridge_of_another_subnet_is_refused(tool: Tool) -> None:
    tool.node.configure(
        "link add mycelium-br type bridge", "address add 4aa:1:2:3::1/64 dev mycelium-br"
    )
    before = state(tool.node)
    refused = tool("setup")
    assert refused.returncode == 1
    assert "ip address del 4aa:1:2:3::1/64 dev mycelium-br" in refused.stderr
    assert state(tool.node) == before


def test_what_is_no_bridge_is_refused(tool: Tool) -> None:
    tool.node.configure("link add mycelium-br type veth peer name other0")
    refused = tool("setup")
    assert refused.returncode == 1
    assert "mycelium-br is a veth, not a bridge" in refused.stderr


def test_a_key_of_another_node_is_refused(tool: Tool) -> None:
    (tool.root / "netseed").write_bytes(bytes(range(32)))
    before = state(tool.node)
    refused = tool("setup", "--mode", "bridge")
    assert refused.returncode == 1
    assert "netseed" in refused.stderr
    assert state(tool.node) == before


def test_the_bridge_answers_for_the_node_at_once(tool: Tool) -> None:
    """To pods of the Go plugin the node's address is on-link."""
    tool("setup", "--mode", "bridge")
    pod = tool.attach("web", mode="bridge")
    pod.configure(f"route del {NODE}/128")
    took = pod.ping(NODE)
    assert took is not None
    assert took < 200  # with the kernel's delay it would be up to 800


RA = """
import socket, struct
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("router0"))
s.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0))
"""


def test_routes_from_router_advertisements_survive(lab: Lab, tool: Tool) -> None:
    node, router = tool.node, lab.node("router")
    node.configure(f"link add up.7 type veth peer name router0 netns {router.netns}")
    router.configure("link set router0 addrgenmode eui64", "link set router0 up")
    node.run(["sysctl", "-qw", "net/ipv6/conf/up.7/accept_ra=1"])
    node.configure("link set up.7 up")

    def learned() -> bool:
        router.run([sys.executable, "-c", RA], check=False)
        return bool(node.ip("-6", "route", "show", "default", "proto", "ra"))

    await_fact(learned, "a default route from an advertisement", within_s=10)
    plan = tool.json("setup", "--dry-run")["changes"]
    assert "sysctl -w net/ipv6/conf/up.7/accept_ra=2" in [change["command"] for change in plan]
    assert tool("setup").returncode == 0
    assert node.ip("-6", "route", "show", "default", "proto", "ra")
    assert node.run(["sysctl", "-n", "net.ipv6.conf.all.forwarding"]).stdout == "1\n"
    assert tool("setup").stdout.startswith("nothing to do")


def test_setup_waits_for_a_daemon_that_comes_late(lab: Lab, root: Path) -> None:
    node = lab.node("late")
    tool = Tool(node, root)
    early = tool("setup")
    assert early.returncode == 1
    assert "failed to find interface mycelium" in early.stderr
    argv = [*lab.command, "setup", "--wait", "20", "--root", str(root)]
    waiting = node.start(argv)
    time.sleep(0.5)
    assert waiting.running
    node.start_overlay([])
    await_fact(lambda: not waiting.running, "setup to end")
    assert "the node is ready" in waiting.output()
    start = time.monotonic()
    node.stop_overlay()
    assert tool("setup", "--wait", "0.5").returncode == 1
    assert time.monotonic() - start < 10


def test_a_restarted_daemon_needs_nothing_and_another_key_needs_setup(
    node: Node, root: Path
) -> None:
    tool = Tool(node, root)
    tool("setup", "--mode", "bridge")
    node.stop_overlay()
    node.start_overlay()
    assert tool.json("setup")["changes"] == []

    old = node.overlay_address
    tool.attach("web", mode="bridge")
    node.stop_overlay()
    node.key_file.unlink()
    node.start_overlay()
    new = node.overlay_address
    assert old != new
    done = tool.json("setup")
    assert done["stranded"] == ["default/web"]
    bridge = node.link("mycelium-br")
    assert bridge is not None
    prefixes = {entry["local"][:9] for entry in bridge["addr_info"] if entry["scope"] == "global"}
    assert len(prefixes) == 1
    assert not tool.json("setup")["changes"]
    tool.attach("next", mode="bridge")  # ADD works again
    # What was kept for the old pods is removed with the last one.
    tool.node.run(["ip", "link", "del", tool.host_link("web")])
    kept = tool.json("setup")["changes"]
    assert any(str(old) in change["command"] for change in kept)
    assert str(old) not in node.run(["ip", "-6", "address"]).stdout


def test_units_are_printed_and_installed_where_they_are_of_use(tool: Tool) -> None:
    printed = tool("setup", "--print-units").stdout
    for words in ("After=mycelium.service", "setup --mode bridge --wait 60", "Unmanaged=yes"):
        assert words in printed
    for directory in ("etc/systemd", "etc/NetworkManager"):
        (tool.root / directory).mkdir()
    planned = tool.json("setup", "--install-units", "--dry-run")["steps"]
    assert not list(tool.root.rglob("*.service"))
    assert tool.json("setup", "--install-units")["steps"] == planned
    assert len([step for step in planned if step.startswith("write ")]) == 4
    assert len([step for step in planned if step.startswith("link ")]) == 2
    assert not (tool.root / "etc/zinit").exists()
    assert tool.json("setup", "--install-units")["steps"] == []
    unit = tool.root / "etc/systemd/system/mycelium-cni-setup.service"
    start = re.search(r"ExecStart=(\S+) setup", unit.read_text())
    assert start is not None
    assert Path(start[1]).is_file()
    assert tool("uninstall").returncode == 0
    assert not list(tool.root.rglob("*mycelium-cni-setup*"))


def test_the_rules_of_every_network_of_the_node_come_back(tool: Tool) -> None:
    tool("setup")
    tool.attach("web")
    plugin = {"type": "mycelium-cni", "netseed": "/nonexistent", "ingress": "closed"}
    inner = {"cniVersion": "1.0.0", "name": "inner", "plugins": [plugin]}
    tool.conf(inner, "20-inner.conflist")
    pod = tool.node.pod("db")
    tool.node.plugin("ADD", {"cniVersion": "1.0.0", "name": "inner", **plugin}, pod).succeeded()

    def rules() -> list[str]:
        return sorted(tool.node.run(["nft", "-s", "list", "ruleset"]).stdout.splitlines())

    before = rules()
    tool.node.run(["nft", "flush", "ruleset"])
    assert tool.doctor("guard")["state"] == "fail"
    assert "network inner" in tool("setup").stdout
    assert rules() == before
    assert tool.doctor("guard")["state"] == "ok"


def test_without_root_setup_says_so(tool: Tool) -> None:
    argv = [*tool.node.lab.command, "setup", "--root", str(tool.root)]
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *argv]
    done = tool.node.run(drop, check=False)
    assert done.returncode == 1
    assert "run it as root" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_says_what_was_changed(tool: Tool) -> None:
    document = json.loads(tool("setup", "--json").stdout)
    assert document["mode"] == "routed"
    assert document["subnet"] == f"{SUBNET}::/64"
    assert {"why", "command"} == set(document["changes"][0])


def test_two_daemons_on_one_interface_are_an_error(tool: Tool) -> None:
    tool.node.configure(f"address add {OTHER_NODE}/7 dev mycelium")
    done: subprocess.CompletedProcess[str] = tool("setup")
    assert done.returncode == 1
    assert OTHER_NODE in done.stderr
