# SPDX-License-Identifier: Apache-2.0
"""Who may open connections to a pod: `ingress` and `allowFrom`, in both modes."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from pathlib import Path
from typing import Literal

import pytest
import rawpackets as raw
from sites import LAN_HOST, NODE, OTHER_PEER, REMOTE, SUBNET, Site, answers, conf, connects

from mycelium_lab.lab import Lab, await_fact

Ingress = Literal["open", "cluster", "closed"]
both_modes = pytest.mark.parametrize("mode", ("routed", "bridge"))
# By whom a pod can be reached, per policy; REMOTE is in allowFrom, OTHER_PEER is not.
REACHED_BY = {
    "open": {"node", "pod", "REMOTE", "OTHER_PEER", "lan"},
    "cluster": {"node", "pod", "REMOTE"},
    "closed": {"node"},
}
every_policy = pytest.mark.parametrize("ingress", REACHED_BY)


@pytest.fixture
def site(lab: Lab) -> Site:
    return Site(lab)


def policy(ingress: str, mode: str, name: str = "net") -> dict[str, object]:
    allowed = {"allowFrom": ["4aa:1::/32"]} if ingress == "cluster" else {}
    return conf(name, mode, ingress=ingress, defaultRoute=True, **allowed)


@both_modes
@every_policy
def test_who_reaches_a_pod(site: Site, mode: str, ingress: Ingress) -> None:
    pod, address = site.attach(policy(ingress, mode))
    other, _ = site.attach(policy("open", mode, "other"))
    reached = set()
    if site.node.ping(address) is not None and connects(pod, address, site.node):
        reached.add("node")
    if connects(pod, address, other) and answers(pod, address, other):
        reached.add("pod")
    if connects(pod, address, site.lan):
        reached.add("lan")
    for who, source in {"REMOTE": REMOTE, "OTHER_PEER": OTHER_PEER}.items():
        if site.reaches(pod, address, source):
            reached.add(who)
    assert reached == REACHED_BY[ingress]


@both_modes
@every_policy
def test_what_a_pod_asks_for_is_answered(site: Site, mode: str, ingress: Ingress) -> None:
    pod, address = site.attach(policy(ingress, mode))
    other, there = site.attach(policy("open", mode, "other"))
    assert connects(other, there, pod)
    assert pod.ping(there) is not None
    assert pod.ping(NODE) is not None
    # An answer from the overlay, to a question that left by the TUN.
    with pod.inside():
        asking = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    asking.sendto(b"question", (OTHER_PEER, 53))
    own = asking.getsockname()[1]
    asking.close()
    token = bytes(range(16))
    assert site.delivers(pod, [raw.udp(OTHER_PEER, address, token, sport=53, dport=own)])
    # Path MTU discovery of that flow, by a node that may open nothing.
    quoted = raw.udp(address, OTHER_PEER, token, sport=own, dport=53)
    assert site.delivers(pod, [raw.error("4cc:1::", address, 2, quoted, word=1280)])


@pytest.mark.parametrize("ingress", ["cluster", "closed"])
def test_forged_answers_open_no_connection(site: Site, ingress: Ingress) -> None:
    pod, address = site.attach(policy(ingress, "routed"))
    token = bytes(range(16))
    assert not site.delivers(pod, [raw.tcp(OTHER_PEER, address, token, flags=0x10)]), "bare ACK"
    assert not site.delivers(pod, [raw.tcp(OTHER_PEER, address, token, flags=0x12)]), "SYN ACK"
    assert not site.delivers(pod, [raw.tcp(OTHER_PEER, address, token, flags=0x04)]), "RST"
    assert not site.delivers(pod, [raw.icmpv6(OTHER_PEER, address, 129, token)]), "echo reply"
    quoted = raw.udp(address, OTHER_PEER, token, sport=1, dport=2)  # never sent
    assert not site.delivers(pod, [raw.error(OTHER_PEER, address, 1, quoted)]), "error"
    # A LAN host that pretends to be a pod of the node.
    lan = raw.Wire(site.lan, "under0")
    shown = site.node.link("under0")
    assert shown
    capture = raw.Capture()
    capture.watch_wire("pod", raw.Wire(pod, "eth0"))
    lan.send([raw.udp(f"{SUBNET}:ff0f::77", address, token)], raw.mac(shown["address"]))
    capture.look()
    assert not capture.places(token)
    capture.close()
    lan.socket.close()


@both_modes
def test_policies_of_two_networks_do_not_mix(site: Site, mode: str) -> None:
    closed, at_closed = site.attach(policy("closed", mode, "one"))
    open_, at_open = site.attach(policy("open", mode, "two"))
    third, at_third = site.attach(policy("cluster", mode, "three"))
    assert not site.reaches(closed, at_closed, REMOTE)
    assert site.reaches(open_, at_open, OTHER_PEER)
    assert site.reaches(third, at_third, REMOTE)
    assert not site.reaches(third, at_third, OTHER_PEER)


@both_modes
def test_a_changed_policy_holds_for_live_pods(site: Site, mode: str) -> None:
    pod, address = site.attach(policy("open", mode))
    assert site.reaches(pod, address, OTHER_PEER)
    for ingress in ("closed", "open", "cluster", "closed"):
        site.attach(policy(ingress, mode))  # `setup` calls the same function
        assert site.reaches(pod, address, OTHER_PEER) == (ingress == "open")
        assert site.reaches(pod, address, REMOTE) == (ingress != "closed")
        assert site.node.ping(address) is not None
        other, _ = site.attach(policy("open", mode, "other"))
        assert connects(pod, address, other) == (ingress != "closed")


@pytest.mark.parametrize("former", ["closed", "open"])
@both_modes
def test_an_address_comes_without_the_connections_of_its_last_owner(
    site: Site, mode: str, former: str
) -> None:
    """Whichever side opened them, and whether or not they were answered."""
    tracked = policy("closed", mode, "tracked")
    site.attach(tracked)
    address = f"{SUBNET}:ff0f::77"
    before = policy(former, mode, "before")
    pod, _ = site.attach(before, address)
    with pod.inside():
        owner = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    owner.bind(("::", 4242))
    owner.sendto(b"question", (OTHER_PEER, 53))
    if former == "open":
        assert site.delivers(pod, [raw.udp(REMOTE, address, bytes(range(16)), sport=99)])
        owner.sendto(b"answer", (REMOTE, 99))
    owner.close()
    site.node.plugin("DEL", before, pod).succeeded()
    pod, _ = site.attach(tracked, address)
    for source, port in ((OTHER_PEER, 53), (REMOTE, 99)):
        assert not site.delivers(pod, [raw.udp(source, address, os.urandom(16), sport=port)]), (
            source
        )


@both_modes
def test_what_a_pod_leaves_in_connection_tracking_ends_soon_after_it(site: Site, mode: str) -> None:
    """Its entries would fill the node's table, those of TCP for five days. Others' stay."""
    tracked = policy("closed", mode)
    pods = [site.attach(tracked) for _ in range(3)]
    for pod, _ in pods:
        with pod.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as owner:
            owner.sendto(b"question", (OTHER_PEER, 53))

    def remembered() -> list[str]:
        with site.node.inside():
            table = Path("/proc/thread-self/net/nf_conntrack").read_text()
        return [address for _, address in pods if ipaddress.ip_address(address).exploded in table]

    assert remembered() == [address for _, address in pods]
    site.node.plugin("DEL", tracked, pods[0][0]).succeeded()
    await_fact(lambda: remembered() == [address for _, address in pods[1:]], "DEL ends them")
    valid = [{"containerID": pods[2][0].container_id, "ifname": "eth0"}]
    site.node.plugin("GC", {**tracked, "cni.dev/valid-attachments": valid}).succeeded()
    await_fact(lambda: remembered() == [pods[2][1]], "GC ends them")


@both_modes
def test_a_tightened_policy_ends_what_it_would_not_have_allowed(site: Site, mode: str) -> None:
    site.attach(policy("closed", mode, "tracked"))
    pod, address = site.attach(policy("open", mode))
    site.translate(f"udp dport 30080 dnat to [{address}]:4242")
    with pod.inside():
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", 4242))

    def arrives(source: str, *, dport: int = 4242, to: str = address, sport: int = 99) -> bool:
        packet = raw.udp(source, to, os.urandom(16), sport=sport, dport=dport)
        return site.delivers(pod, [packet])

    # To the pod, to a port of the node, and one of the pod's own.
    for source in (OTHER_PEER, REMOTE):
        assert arrives(source)
        server.sendto(b"answer", (source, 99))
        assert arrives(source, dport=30080, to=NODE, sport=98)
        server.sendto(b"answer", (source, 98))
    server.sendto(b"question", (OTHER_PEER, 53))
    # What the node translates is so only as long as the connection lasts.
    site.node.run(["nft", "flush", "chain", "ip6", "services", "prerouting"])
    for ingress in ("cluster", "closed"):
        site.attach(policy(ingress, mode))
        assert not arrives(OTHER_PEER), ingress
        assert not arrives(OTHER_PEER, dport=30080, to=NODE, sport=98), ingress
        assert arrives(REMOTE) == (ingress == "cluster")
        assert arrives(REMOTE, dport=30080, to=NODE, sport=98) == (ingress == "cluster")
        assert arrives(OTHER_PEER, sport=53), f"{ingress}: the pod has asked"
    server.close()


def test_what_could_not_be_ended_is_ended_by_the_next_add(site: Site) -> None:
    """The first one fails after it has loaded the new policy."""
    site.attach(policy("closed", "routed", "tracked"))
    pod, address = site.attach(policy("open", "routed"))
    packet = raw.udp(OTHER_PEER, address, os.urandom(16), sport=99)
    assert site.delivers(pod, [packet])
    with pod.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", raw.PORT))
        server.sendto(b"answer", (OTHER_PEER, 99))
    new = site.node.pod("new")
    table = ["-P", "/proc/sys/net/netfilter/nf_conntrack_count"]
    strace = ["strace", "-qq", "-o", "/dev/null", *table, "-e", "inject=open,openat:error=EACCES"]
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": new.container_id, "CNI_IFNAME": "eth0"}
    tightened = json.dumps(policy("closed", "routed"))
    argv = [*strace, *site.lab.command]
    failed = site.node.run(argv, env={**env, "CNI_NETNS": new.path}, input=tightened, check=False)
    assert failed.returncode == 1, failed
    assert site.delivers(pod, [packet]), "it goes on"
    site.attach(policy("closed", "routed"))
    assert not site.delivers(pod, [packet])


@both_modes
def test_forwarded_ports_are_judged_by_their_real_source(site: Site, mode: str) -> None:
    pod, address = site.attach(policy("cluster", mode))
    site.node.run(
        ["nft", "-f", "-"],
        input=f"""table ip6 hostport {{
            chain prerouting {{
                type nat hook prerouting priority -100;
                fib daddr type local udp dport 30080 dnat to [{address}]:4242
            }}
            chain postrouting {{
                type nat hook postrouting priority 100;
                ct status dnat masquerade
            }}
        }}""",
    )
    for source, passes in ((REMOTE, True), (OTHER_PEER, False)):
        token = os.urandom(16)
        assert site.delivers(pod, [raw.udp(source, NODE, token, dport=30080)]) == passes
    assert not answers(pod, "2001:db8::1", site.lan, port=30080)


def test_prefixes_of_every_kind(site: Site) -> None:
    anybody = conf(ingress="cluster", allowFrom=["::/0", "4aa::/16"], defaultRoute=True)
    pod, address = site.attach(anybody)
    assert site.reaches(pod, address, OTHER_PEER)
    assert connects(pod, address, site.lan)
    edges = ["4aa::/16", "4aa:1::/32", "4aa:1:2::9/128", "4ab::/16", "5ff::/16", f"{LAN_HOST}/128"]
    pod, address = site.attach(conf("edges", ingress="cluster", allowFrom=edges, defaultRoute=True))
    for source in (REMOTE, "4aa::", "4ab:ffff::", "5ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
        assert site.reaches(pod, address, source), source
    assert connects(pod, address, site.lan)
    for source in (OTHER_PEER, "4a9:ffff::1", "4ac::", "5fe:ffff::1"):
        assert not site.reaches(pod, address, source), source
    many = [f"4{n // 256:02x}:{n % 256:x}::/32" for n in range(1024)]
    pod, address = site.attach(conf("many", ingress="cluster", allowFrom=many))
    assert site.reaches(pod, address, "403:ff::1")
    assert not site.reaches(pod, address, "404::1")
