# SPDX-License-Identifier: Apache-2.0
"""Each check of doctor: a node on which it fails, one on which it passes, and what --fix does."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attaching import reaches
from tool import NODE, OTHER_NODE, SUBNET, Tool, state

from mycelium_ctl.checks import NAMES
from mycelium_lab.lab import Lab, Node, await_fact


def said(finding: dict[str, Any]) -> str:
    """All texts of a finding."""
    return "\n".join([finding["found"], *finding["run"], finding["advice"] or ""])


def passes(tool: Tool, check: str) -> None:
    finding = tool.doctor(check)
    assert finding["state"] == "ok", finding


def fails(tool: Tool, check: str, *words: str, mark: str = "fail") -> dict[str, Any]:
    finding = tool.doctor(check)
    assert finding["state"] == mark, finding
    for word in words:
        assert word in said(finding), finding
    return finding


def fixes(tool: Tool, check: str) -> None:
    """--fix fixes it, and says so."""
    assert tool.doctor(check)["fixable"]
    done = json.loads(tool("doctor", check, "--fix", "--json").stdout)[0]
    assert done["state"] == "ok", done
    assert done["fixed"]
    passes(tool, check)


def sysctl(node: Node, *settings: str) -> None:
    node.run(["sysctl", "-qw", *settings])


@pytest.mark.timing("two commands within three seconds")
def test_a_good_node_passes_every_check(node: Node, root: Path, lab: Lab) -> None:
    other = lab.node("other")
    other.start_overlay([node])
    tool = Tool(node, root)
    tool("setup")
    tool.attach("web")
    findings = tool.json("doctor")
    assert [finding["name"] for finding in findings] == list(NAMES)
    assert {finding["state"] for finding in findings} <= {"ok", "skip"}, findings
    assert tool("doctor").returncode == 0
    # Without daemon: it says so, and does not wait.
    before = state(node)
    node.stop_overlay()
    start = time.monotonic()
    fails(tool, "daemon", "systemctl enable --now mycelium")
    fails(tool, "interface", "start the Mycelium daemon")
    assert time.monotonic() - start < 3
    assert before != state(node)  # it did go away


def test_daemon_interface_of_another_name(tool: Tool) -> None:
    passes_or_hidden = tool.doctor("daemon")
    assert passes_or_hidden["state"] == "skip"  # the interface is there, its process is not
    tool.node.configure("link set mycelium down", "link set mycelium name my0", "link set my0 up")
    tool.node.configure(f"address add {NODE}/7 dev my0")
    fails(tool, "daemon", "my0", '"myceliumInterface": "my0"')


def test_interface(tool: Tool) -> None:
    fails(tool, "interface", "persistent TUN", "ip tuntap del mycelium", mark="warn")
    tool.node.configure(f"address add {OTHER_NODE}/7 dev mycelium")
    fails(tool, "interface", OTHER_NODE)
    tool.node.configure("address flush dev mycelium")
    fails(tool, "interface", "no global IPv6 address")
    tool.node.configure("link set mycelium down")
    fails(tool, "interface", "ip link set mycelium up")


@pytest.mark.timing("a command within two and a half seconds")
def test_api_that_hangs_costs_a_second(tool: Tool) -> None:
    assert tool.doctor("api")["state"] == "skip"
    hang = "import socket,time; s=socket.create_server(('127.0.0.1', 8989)); print(1,flush=True)"
    hanging = tool.node.start([sys.executable, "-c", f"{hang}; time.sleep(60)"])
    await_fact(lambda: "1" in hanging.output(), "a server that hangs")
    start = time.monotonic()
    findings = tool.json("doctor", "api", "peers")
    assert time.monotonic() - start < 2.5
    assert [finding["state"] for finding in findings] == ["skip", "skip"]
    assert "1 s" in findings[0]["found"]


ANSWERS = """
import http.server, json, socket, sys
pages = json.loads(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = pages.get(self.path.removeprefix("/api/v1/"))
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write((body or "").encode())
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
Server((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
"""


def serve(node: Node, pages: dict[str, Any], address: str = "127.0.0.1", port: int = 8989) -> None:
    texts = {
        path: page if isinstance(page, str) else json.dumps(page) for path, page in pages.items()
    }
    node.start([sys.executable, "-c", ANSWERS, json.dumps(texts), address, str(port)])

    def listening() -> bool:
        return f":{port} " in node.run(["ss", "-Hltn"]).stdout

    await_fact(listening, "the server")


def peer(state: str) -> dict[str, Any]:
    where = {"proto": "tcp", "addr": {"socket": "192.0.2.1:9651"}}
    return {"endpoint": where, "type": "static", "connectionState": state}


def test_peers(tool: Tool) -> None:
    admin = {"nodeSubnet": f"{SUBNET}::/64", "nodePubkey": "00" * 32}  # as v0.6.1: no nodeIp
    serve(tool.node, {"admin": admin, "admin/peers": [peer("dead"), peer("connecting")]})
    passes(tool, "api")
    fails(tool, "peers", "none of 2 peers", "tcp://192.0.2.1:9651")
    serve(tool.node, {"admin": admin, "admin/peers": [peer("alive")]}, port=8988)
    assert tool.doctor("peers", "--api", "127.0.0.1:8988")["state"] == "ok"
    serve(tool.node, {"admin": admin, "admin/peers": []}, port=8987)
    assert tool.doctor("peers", "--api", "127.0.0.1:8987")["state"] == "fail"


@pytest.mark.parametrize(
    "answer", ["", "[1, 2", '"\\u001b[31m"', "[]", '{"nodeSubnet": 7}', "null"]
)
def test_an_api_with_invalid_answers_is_no_api(tool: Tool, answer: str) -> None:
    serve(tool.node, {"admin": answer, "admin/peers": answer, "admin/routes/selected": answer})
    findings = tool.json("doctor", "api", "peers")
    assert findings[0]["state"] == "skip"
    assert findings[1]["state"] in ("skip", "fail")  # an empty list has no peers


@pytest.mark.parametrize("answer", ["SSH-2.0-OpenSSH_9\\r\\n", "HTTP/1.1 two hundred", ""])
def test_what_speaks_no_http_is_no_api(tool: Tool, answer: str) -> None:
    lines = (
        "import socket",
        "s = socket.create_server(('127.0.0.1', 8989))",
        "print(1, flush=True)",
        f"c, _ = s.accept(); c.recv(999); c.sendall(b'{answer}')",
    )
    server = tool.node.start([sys.executable, "-c", "\n".join(lines)])
    await_fact(lambda: "1" in server.output(), "a server")
    assert "not a Mycelium daemon" in tool.doctor("api")["found"]


def test_api_exposed(tool: Tool) -> None:
    passes(tool, "api-exposed")
    for address in ("::1", "::ffff:127.0.0.2"):
        serve(tool.node, {}, address=address)
        passes(tool, "api-exposed")
    serve(tool.node, {}, address="::", port=8988)
    found = tool.doctor("api-exposed", "--api", "127.0.0.1:8988")["found"]
    assert "8988 is open on every address" in found
    serve(tool.node, {}, address="0.0.0.0", port=8990)  # noqa: S104 - that is the trap
    fails(tool, "api-exposed", "8990", "--jsonrpc-addr 127.0.0.1:8990")


def test_identity(tool: Tool) -> None:
    assert tool.doctor("identity")["state"] == "skip"  # routed mode
    tool("setup", "--mode", "bridge")
    passes(tool, "identity")
    (tool.root / "netseed").write_bytes(bytes(32))
    fails(tool, "identity", "netseed", "--key-file")
    (tool.root / "netseed").write_bytes(b"short")
    fails(tool, "identity", "5 bytes")
    (tool.root / "netseed").unlink()
    tool.node.configure(
        f"address del {NODE}/7 dev mycelium", f"address add {OTHER_NODE}/7 dev mycelium"
    )
    fails(tool, "identity", "the daemon's key has changed")
    fixes(tool, "identity")


def test_subnet_changed_under_live_pods(tool: Tool) -> None:
    tool.attach("web")
    passes(tool, "subnet")
    tool.node.configure(
        f"address del {NODE}/7 dev mycelium", f"address add {OTHER_NODE}/7 dev mycelium"
    )
    fails(tool, "subnet", "default/web", "delete")


def test_ipv6(tool: Tool) -> None:
    passes(tool, "ipv6")
    sysctl(tool.node, "net.ipv6.conf.default.disable_ipv6=1")
    fails(tool, "ipv6", "net.ipv6.conf.default.disable_ipv6=0")
    fixes(tool, "ipv6")


def test_forwarding(tool: Tool) -> None:
    fails(tool, "forwarding", " setup", mark="warn")  # no pods yet
    tool.attach("web")
    passes(tool, "forwarding")
    sysctl(tool.node, "net.ipv6.conf.all.forwarding=0")
    fails(tool, "forwarding", "reset")
    fixes(tool, "forwarding")


def test_ra_routes(tool: Tool) -> None:
    passes(tool, "ra-routes")
    tool.node.configure("route add 2001:db8:9::/64 dev under0 proto ra")
    sysctl(tool.node, "net.ipv6.conf.under0.accept_ra=1")
    fails(tool, "ra-routes", "under0", mark="warn")
    sysctl(tool.node, "net.ipv6.conf.all.forwarding=1")
    tool.node.configure("route replace 2001:db8:9::/64 dev under0 proto ra")
    fails(tool, "ra-routes", "sysctl -w net.ipv6.conf.under0.accept_ra=2")
    fixes(tool, "ra-routes")


def test_mtu(tool: Tool) -> None:
    pod = tool.attach("web")
    passes(tool, "mtu")
    pod.configure("link set eth0 mtu 1300")
    fails(tool, "pods", "default/web", "in the pod link eth0 mtu 1400")
    fixes(tool, "pods")
    assert pod.ip("link", "show", "eth0")[0]["mtu"] == 1400
    pod.configure("link set eth0 mtu 1500")
    tool.node.configure(f"link set {tool.host_link('web')} mtu 1500")
    fails(tool, "mtu", "1500", mark="warn")


def test_bridge(tool: Tool) -> None:
    assert tool.doctor("bridge")["state"] == "skip"
    assert tool.doctor("bridge", "--mode", "bridge")["state"] == "warn"
    tool.node.configure("link add mycelium-br type bridge", "link set mycelium-br up")
    # network_setup.sh was faster than the daemon; ADD would fix it
    fails(tool, "bridge", f"missing: address {SUBNET}::1/64", mark="warn")
    fixes(tool, "bridge")
    tool.node.configure("link set mycelium-br down")
    fails(tool, "bridge", "missing: link", "mycelium-br up", mark="warn")
    fixes(tool, "bridge")
    tool.node.configure("link del mycelium-br", "link add mycelium-br type veth peer name other0")
    fails(tool, "bridge", "not a bridge")


def test_bridge_ports(tool: Tool) -> None:
    assert tool.doctor("bridge-ports")["state"] == "skip"
    tool("setup", "--mode", "bridge")
    passes(tool, "bridge-ports")
    tool.node.configure(
        *(f"link add p{n} master mycelium-br type veth peer name q{n}" for n in range(512)),
        *(f"link set q{n} master mycelium-br" for n in range(310)),
    )
    fails(tool, "bridge-ports", "822 of 1023", '"mode": "routed"', mark="warn")
    tool.node.configure(*(f"link set q{n} master mycelium-br" for n in range(310, 511)))
    fails(tool, "bridge-ports", "1023 of 1023")


def test_standing(tool: Tool) -> None:
    fails(tool, "standing", "must not leave unencrypted", mark="warn")
    fixes(tool, "standing")
    tool.node.configure("route del unreachable 400::/7 metric 4294967295")
    fails(tool, "standing", mark="warn")


def test_guard(tool: Tool) -> None:
    fails(tool, "guard", "first pod loads it", mark="warn")
    tool("setup")
    passes(tool, "guard")
    tool.node.run(["nft", "delete table inet mycelium-cni"])
    fails(tool, "guard", "mycelium-cni is missing")
    fixes(tool, "guard")
    tool.attach("web", ingress="closed")
    fails(tool, "guard", "rules differ", mark="warn")


def test_overlay_routes(tool: Tool) -> None:
    tool("setup", "--mode", "bridge")
    tool.attach("web")
    tool.attach("db", mode="bridge")
    passes(tool, "overlay-routes")
    tool.node.configure(
        "tuntap add my1 mode tun", "link set my1 up", f"address add {OTHER_NODE}/7 dev my1"
    )
    fails(tool, "overlay-routes", "my1")


def test_pod_routes(tool: Tool) -> None:
    pods = [tool.attach("web"), tool.attach("db", mode="bridge")]
    passes(tool, "pod-routes")
    for pod in pods:
        pod.configure("tuntap add mycelium mode tun", "link set mycelium up")
        pod.configure(f"address add {OTHER_NODE}/7 dev mycelium")
        fails(tool, "pod-routes", f"default/{pod.pod_name}", "400::/7")
        pod.configure("link del mycelium")


def test_each_of_many_pods_is_looked_into(tool: Tool, tmp_path: Path) -> None:
    """Two processes share them."""
    pods = [tool.attach(f"p{number}") for number in range(10, 46)]
    trace = tmp_path / "trace"
    # So slowly that the other process begins before this one has looked into all.
    slowly = ("-e", "inject=setns:delay_enter=2000")
    strace = ["strace", "-f", "-o", str(trace), "-e", "trace=setns", *slowly]
    doctor = [*tool.node.lab.command, "doctor", "pods", "--root", str(tool.root)]
    tool.node.run([*strace, *doctor])
    entered = set(re.findall(r"^(\d+) +setns", trace.read_text(), re.MULTILINE))
    assert len(entered) == 2
    assert tool.doctor("pod-routes")["found"].startswith("36 pods looked into")
    for pod in pods[19:22]:
        pod.configure("route add unreachable 4ff::/16")
    told = [found["found"] for found in tool.json("doctor", "pod-routes")]
    assert told == [
        f"default/{pod.pod_name} has a route that refuses 4ff::/16" for pod in pods[19:22]
    ]
    pods[30].configure("link set eth0 down")
    told = [found["found"] for found in tool.json("doctor", "pods")]
    assert len(told) == 1
    assert told[0].startswith("default/p40: missing: in the pod link eth0 up")


def test_pod_links(tool: Tool) -> None:
    tool.attach("web")
    passes(tool, "pods")
    link = tool.host_link("web")
    address = tool.json("list")[0]["address"]
    tool.node.configure(f"route del {address}/128 dev {link}")
    found = fails(tool, "pods", f"missing: route {address}", f"dev {link}")
    for command in found["run"]:
        tool.node.run(["sh", "-c", command])
    passes(tool, "pods")
    before = tool.node.ip("-6", "route", "show", address)
    tool.node.configure(f"route del {address}/128 dev {link}")
    fixes(tool, "pods")
    after = tool.node.ip("-6", "route", "show", address)
    assert [route["dev"] for route in after] == [route["dev"] for route in before]
    assert after[0]["prefsrc"] == NODE
    tool.node.configure(f"link property del dev {link} altname {address}")
    fixes(tool, "pods")
    tool.node.configure(f"link set {link} down")
    fails(tool, "pods", f"ip link set dev {link} up")
    fixes(tool, "pods")
    assert reaches(tool.node, address)


def test_a_link_without_name_alias_and_group_is_still_known_by_its_address(tool: Tool) -> None:
    tool.attach("web")
    link, address = tool.host_link("web"), tool.json("list")[0]["address"]
    tool.node.configure(
        f"link set {link} down",
        f'link set {link} alias "" group 0 name other0',
        "link set other0 up",
    )
    found = tool.doctor("pods")
    assert (found["state"], found["found"][:28]) == ("warn", "other0 has lost its alias: n")
    assert address in found["advice"]
    assert tool("doctor", "reach").returncode == 1  # its addresses went when it was down


def test_a_link_that_says_nowhere_which_address_it_has_is_reported(tool: Tool) -> None:
    tool.attach("web")
    link, address = tool.host_link("web"), tool.json("list")[0]["address"]
    tool.node.configure(
        f"link property del dev {link} altname {address}",
        f'link set {link} alias "mycelium-cni v=2 pod=default/web"',
    )
    fails(tool, "pods", f"{link} of default/web has lost its address")


def test_pods_of_a_large_bridge_leave_room_in_the_neighbour_table(tool: Tool) -> None:
    """All network namespaces of the machine share it, and it has 1,024 entries by default."""
    pods = [tool.attach(f"p{number}", mode="bridge") for number in range(160)]
    passes(tool, "reach")
    entries = [entry for pod in pods for entry in pod.ip("-6", "neigh")]
    assert sum("PERMANENT" not in entry["state"] for entry in entries) <= 256


def test_route_limit(tool: Tool) -> None:
    passes(tool, "route-limit")
    sysctl(tool.node, "net.ipv6.route.max_size=10")
    fails(tool, "route-limit", "of 10 IPv6 routes")
    fixes(tool, "route-limit")


def test_neighbour_limit(tool: Tool) -> None:
    assert tool.doctor("neighbour-limit")["state"] == "skip"
    limit = tool.root / "proc/sys/net/ipv6/neigh/default/gc_thresh3"
    table = tool.root / "proc/net/stat/ndisc_cache"
    for path in (limit, table):
        path.parent.mkdir(parents=True)
    limit.write_text("1024\n")
    table.write_text("entries  allocs\n00000010  00000020\n")
    passes(tool, "neighbour-limit")
    table.write_text("entries  allocs\n000003e6  00000020\n")
    fails(tool, "neighbour-limit", "998 of 1024", "gc_thresh3")


@pytest.mark.parametrize(
    "chain",
    [
        "type filter hook forward priority 0; policy drop;",
        "type filter hook forward priority 0; policy accept; ct state established accept;"
        " counter reject with icmpx type admin-prohibited;",
    ],
    ids=["policy", "last rule"],
)
def test_firewall(tool: Tool, chain: str) -> None:
    passes(tool, "firewall")
    rules = f"table inet theirs {{ chain theirs {{ {chain} }}\n}}"
    tool.node.run(["nft", "-f", "-"], input=rules)
    found = fails(tool, "firewall", "inet theirs theirs")
    for command in found["run"]:
        tool.node.run(["sh", "-c", command])
    passes(tool, "firewall")


def test_managers(tool: Tool) -> None:
    passes(tool, "managers")
    for directory in (
        "run/systemd/netif",
        "run/NetworkManager",
        "etc/systemd",
        "etc/NetworkManager",
    ):
        (tool.root / directory).mkdir(parents=True)
    found = fails(tool, "managers", "systemd-networkd and NetworkManager", mark="warn")
    assert not found["fixable"]  # a file is written when asked for by name
    assert tool("setup", "--install-units").returncode == 0
    passes(tool, "managers")
    (tool.root / "etc").rename(tool.root / "old")
    fails(tool, "managers", mark="warn")
    (tool.root / "usr").mkdir()
    (tool.root / "old").rename(tool.root / "usr/lib")  # where a package has them
    passes(tool, "managers")


def test_managers_keep_off_links_of_other_names(tool: Tool) -> None:
    """Files for the usual names only do not help a node with others."""
    for directory in ("run/systemd/netif", "run/NetworkManager"):
        (tool.root / directory).mkdir(parents=True)
    for directory in ("etc/systemd", "etc/NetworkManager"):
        (tool.root / directory).mkdir()
    tool("setup", "--install-units")
    passes(tool, "managers")
    names = {"myceliumInterface": "my0", "bridge": "br-overlay"}
    plugin = {"type": "mycelium-cni", **names}
    tool.conf({"cniVersion": "1.0.0", "name": "mycelium", "plugins": [plugin]})
    fails(tool, "managers", "systemd-networkd and NetworkManager", mark="warn")
    assert len(tool.json("setup", "--install-units")["steps"]) == 2
    passes(tool, "managers")
    networkd = tool.root / "etc/systemd/network/05-mycelium-cni.network"
    assert "Name=myc* my0 br-overlay" in networkd.read_text()
    manager = tool.root / "etc/NetworkManager/conf.d/05-mycelium-cni.conf"
    assert "interface-name:myc*;interface-name:my0;interface-name:br-overlay" in manager.read_text()


@pytest.mark.parametrize(
    "written", ["", "denyinterfaces veth*\nhostname\ninterface eth0\ndenyinterfaces myc*\n"]
)
def test_dhcpcd_keeps_off_our_links(tool: Tool, written: str) -> None:
    (tool.root / "run/dhcpcd").mkdir(parents=True)
    conf = tool.root / "etc/dhcpcd.conf"
    conf.write_text(written)
    found = fails(tool, "managers", "dhcpcd", "restart dhcpcd", mark="warn")
    for command in found["run"]:
        tool.node.run(["sh", "-c", command])
    passes(tool, "managers")
    assert conf.read_text().endswith(written)
    conf.write_text("allowinterfaces eth0 wlan0\n")
    passes(tool, "managers")


def test_conf_of_kubelet(tool: Tool) -> None:
    passes(tool, "conf")
    other = tool.conf(
        {"cniVersion": "1.0.0", "name": "f", "plugins": [{"type": "flannel"}]}, "05-f.conflist"
    )
    fails(tool, "conf", "flannel", "comes before", "00-mycelium.conflist")
    other.unlink()
    tool.conf({"cniVersion": "1.0.0", "name": "m", "type": "multus"}, "00-multus.conf")
    assert "called by 00-multus.conf" in tool.doctor("conf")["found"]
    (tool.root / "etc/cni/net.d/00-multus.conf").unlink()
    tool.conf("{", "00-broken.conf")
    fails(tool, "conf", "00-broken.conf", "config check")
    for path in (tool.root / "etc/cni/net.d").iterdir():
        path.unlink()
    command = fails(tool, "conf", "no network configuration")["run"][0].split()
    tool(*command[1:], looks=False)
    passes(tool, "conf")


def test_a_configuration_where_the_clusters_runtime_does_not_look(tool: Tool) -> None:
    config = tool.root / "var/snap/microk8s/current/args/containerd.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        '[plugins."io.containerd.grpc.v1.cri".cni]\nconf_dir = "${SNAP_DATA}/args/cni-network"\n'
    )
    confs = config.parent / "cni-network"
    confs.mkdir()
    command = fails(tool, "conf", "microk8s finds nothing", "cp ")["run"][0].split()
    tool.node.run(command)
    passes(tool, "conf")
    assert (confs / "10-mycelium.conflist").is_file()


def test_k3s_without_flannel_looks_in_the_usual_directories(tool: Tool) -> None:
    k3s, loopback = tool.root / "var/lib/rancher/k3s", tool.root / "opt/cni/bin/loopback"
    (k3s / "agent/etc/containerd").mkdir(parents=True)
    (k3s / "agent/etc/containerd/config.toml").write_text("version = 3\n")
    (k3s / "agent/etc/cni/net.d").mkdir(parents=True)
    (k3s / "agent/etc/cni/net.d/10-flannel.conflist").write_text('{"name": "cbr0"}')
    passes(tool, "conf")
    (k3s / "data/cni").mkdir(parents=True)
    loopback.rename(k3s / "data/cni/loopback")
    command = fails(tool, "chain", "loopback", "ln -s ")["run"][0].split()
    tool.node.run(command)
    passes(tool, "chain")
    assert loopback.is_symlink()


def test_dirs_that_containerd_names(tool: Tool) -> None:
    config = tool.root / "etc/containerd/config.toml"
    config.parent.mkdir()
    config.write_text('[plugins."io.containerd.cri.v1.runtime".cni]\nconf_dir = "/my/cni/conf"\n')
    (tool.root / "my/cni/conf").mkdir(parents=True)
    path = tool.root / "my/cni/conf/1.conf"
    path.write_text('{"name": "x", "type": "bridge"}')
    fails(tool, "conf", str(path))


def test_before_our_network_exists_the_directories_that_containerd_names_count(tool: Tool) -> None:
    """As on a k3s with flannel, where ours is to come through Multus."""
    config = tool.root / "etc/containerd/config.toml"
    config.parent.mkdir()
    names = 'conf_dir = "/my/cni/conf"\nbin_dirs = ["/my/cni/bin"]\n'
    config.write_text(f'[plugins."io.containerd.cri.v1.runtime".cni]\n{names}')
    (tool.root / "my/cni/conf").mkdir(parents=True)
    (tool.root / "etc/cni/net.d/10-mycelium.conflist").unlink()
    (tool.root / "opt/cni/bin").rename(tool.root / "my/cni/bin")
    passes(tool, "plugin")
    passes(tool, "chain")


def test_conf_valid(tool: Tool) -> None:
    passes(tool, "conf-valid")
    tool.conf({"cniVersion": "0.4.0", "name": "mycelium", "type": "mycelium-cni"})
    fails(tool, "conf-valid", "line 1", "has no plugins", "config check")
    tool.conf({"cniVersion": "1.0.0", "name": "m", "plugins": [{"type": "mycelium-cni", "mtu": 9}]})
    fails(tool, "conf-valid", "line 7", "mtu")


def test_plugin(tool: Tool) -> None:
    passes(tool, "plugin")
    path = tool.root / "opt/cni/bin/mycelium-cni"
    path.chmod(0o644)
    fails(tool, "plugin", "chmod 755")
    path.chmod(0o755)
    good = path.read_text()
    path.write_text(
        good.replace("exec", '[ "$1" = --version ] && echo mycelium-cni 0.0.1 && exit\nexec')
    )
    fails(tool, "plugin", "0.0.1", "install -m 755 ", mark="warn")
    path.write_bytes(Path("/bin/true").read_bytes()[:1000])
    fails(tool, "plugin", "is it complete?")
    path.write_text("#!/bin/sh\n")
    fails(tool, "plugin", "is it complete?")
    path.unlink()
    fails(tool, "plugin", "there is no")


def test_chain(tool: Tool) -> None:
    passes(tool, "chain")
    tool.conf(
        {
            "cniVersion": "1.0.0",
            "name": "m",
            "plugins": [{"type": "mycelium-cni"}, {"type": "portmap"}],
        }
    )
    fails(tool, "chain", 'failed to find plugin "portmap"')
    (tool.root / "opt/cni/bin/loopback").unlink()
    fails(tool, "chain", 'failed to find plugin "loopback"')


def test_a_check_that_does_not_exist(tool: Tool) -> None:
    done = tool("doctor", "mut")
    assert done.returncode == 1
    assert "mtu" in done.stderr


def test_in_a_pipe_a_fact_is_a_line(tool: Tool) -> None:
    printed = tool("doctor").stdout
    assert "\x1b" not in printed
    lines = printed.splitlines()
    marked = [line.split() for line in lines if line.split()[0] in ("ok", "warn", "fail", "skip")]
    assert list(dict.fromkeys(words[1] for words in marked)) == list(NAMES)


def test_a_pod_is_told_by_any_of_its_names(tool: Tool) -> None:
    tool.attach("db")
    pod = tool.attach("web", namespace="shop")
    attached = next(each for each in tool.json("list") if each["pod"] == "web")
    for name in ("shop/web", "web", pod.container_id, attached["address"], attached["hostLink"]):
        told = tool.json("doctor", name)
        assert told["address"] == attached["address"]
        assert {each["state"] for each in told["findings"]} <= {"ok", "warn"}, told
    sections = {each["section"] for each in told["findings"]}
    assert sections == {"On the node", "In the pod", "There and back", "Packets"}
    answered = [each["found"] for each in told["findings"] if "answered after" in each["found"]]
    assert [found.partition(":")[0] for found in answered] == [
        "node → pod",
        "pod → node",
        "pod → pod default/db",
    ]
    done = tool("doctor", "nobody")
    assert done.returncode == 1
    assert "there is no pod and no check 'nobody'" in done.stderr


def test_a_pod_is_told_where_its_packets_are_lost(tool: Tool) -> None:
    pod = tool.attach("web")
    tool.attach("db")
    for line in (
        "add table inet theirs",
        "add chain inet theirs c { type filter hook forward priority 0; }",
        "add rule inet theirs c meta length 64 counter drop comment lossy",
    ):
        tool.node.run(["nft", line])
    done = tool("doctor", "web", "--json")
    assert done.returncode == 1
    packets = [f for f in json.loads(done.stdout)["findings"] if f["section"] == "Packets"]
    lost = [each["found"] for each in packets if each["state"] == "fail"]
    assert len(lost) == 1
    assert lost[0].startswith("pod → pod default/db: no answer")
    assert "rule `lossy` of chain theirs c +3" in lost[0]
    tool.node.run(["nft", "delete", "table", "inet", "theirs"])
    pod.configure("address flush dev eth0")
    told = tool("doctor", "web", "--json", "--fix")
    assert told.returncode == 0, told.stdout
    assert pod.ip("-6", "address", "show", "dev", "eth0")[0]["addr_info"]


def test_a_daemon_that_hangs(node: Node, root: Path) -> None:
    tool = Tool(node, root)
    tool("setup")
    assert node.overlay is not None
    os.kill(node.overlay.pid, signal.SIGSTOP)
    try:
        fails(tool, "api", "does not answer: it hangs", "systemctl restart mycelium")
        assert "not ready" not in tool("status").stdout
        assert "all is well" not in tool("doctor").stdout
    finally:
        os.kill(node.overlay.pid, signal.SIGCONT)


def test_a_host_link_that_is_gone_while_the_runtime_has_the_pod(tool: Tool) -> None:
    pod = tool.attach("web", namespace="shop")
    link = tool.host_link("web")
    conflist = {"cniVersion": "1.0.0", "name": "mycelium", "plugins": [{"type": "mycelium-cni"}]}
    cached = {  # as libcni writes it
        "kind": "cniCacheV1",
        "containerId": pod.container_id,
        "config": base64.b64encode(json.dumps(conflist).encode()).decode(),
        "ifName": "eth0",
        "networkName": "mycelium",
        "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web"]],
        "result": {"interfaces": [{"name": link}, {"name": "eth0", "sandbox": pod.path}]},
    }
    results = tool.root / "var/lib/cni/results"
    results.mkdir(parents=True)
    (results / f"mycelium-{pod.container_id}-eth0").write_text(json.dumps(cached))
    (results / "of-somebody-else").write_text('{"config": 7, "result": []}')
    passes(tool, "pods")
    tool.node.ip("link", "del", link)
    fails(tool, "pods", "shop/web has no network", link, "delete the pod")
    cached["result"] = {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/before-a-reboot"}]}
    (results / f"mycelium-{pod.container_id}-eth0").write_text(json.dumps(cached))
    passes(tool, "pods")
