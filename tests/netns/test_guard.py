# SPDX-License-Identifier: Apache-2.0
"""The guard over a node's life: loaded, lost, restored, changed, refused, removed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

import pytest
import rawpackets as raw
from rawpackets import Capture, Wire
from sites import (
    LAN_HOST,
    LAN_NODE,
    NODE,
    OTHER_PEER,
    REMOTE,
    SUBNET,
    Site,
    answers,
    conf,
    connects,
)
from tool import Tool

from mycelium_cni import guard
from mycelium_cni.cni.config import Config, Network
from mycelium_cni.guard import rules as ruleset
from mycelium_cni.kernel import nftables
from mycelium_cni.node import marks
from mycelium_cni.node.subnet import Node
from mycelium_lab.lab import Lab, Pod, await_fact

both_modes = pytest.mark.parametrize("mode", ("routed", "bridge"))
OTHERS = """
table inet firewalld {
    chain forward {
        type filter hook forward priority 10; policy accept;
        counter accept
    }
}
table ip6 nat {
    chain PREROUTING {
        type nat hook prerouting priority -100; policy accept;
    }
}
table ip6 mangle {
    set s {
        type ipv6_addr
        elements = { ::1 }
    }
}
"""
IPV6_RECVERR = 25  # linux/in6.h: without it a UDP socket is told of hard errors only


@pytest.fixture
def site(lab: Lab) -> Site:
    return Site(lab)


def guarded(site: Site) -> bool:
    """Whether the LAN host is safe from the overlay."""
    return not site.delivers(site.lan, [raw.udp(REMOTE, LAN_HOST, os.urandom(16))], "under0")


def rules(site: Site) -> list[Any]:
    """Everything in the packet filter but handles, counters, and elements that time out."""
    shown = json.loads(site.node.run(["nft", "-s", "-j", "list", "ruleset"]).stdout)["nftables"]
    for entry in shown:
        for value in entry.values():
            value.pop("handle", None)
            if "timeout" in value:
                value.pop("elem", None)
    return [entry for entry in shown if "metainfo" not in entry]


@both_modes
def test_it_is_up_with_the_first_pod_and_gone_with_none(site: Site, mode: str) -> None:
    assert site.status(conf(mode=mode)).code == 0, "nothing to guard yet"
    site.attach(conf(mode=mode))
    assert guarded(site)
    assert site.status(conf(mode=mode)).code == 0


@both_modes
@pytest.mark.parametrize(
    "policy", [{}, {"ingress": "closed"}, {"ingress": "cluster", "ipMasq": True}]
)
def test_the_first_pod_makes_each_chain_once(site: Site, mode: str, policy: dict[str, Any]) -> None:
    """A second message about a chain would be an update, whose end ADD has to wait for."""
    monitor = site.node.start(["nft", "monitor", "new", "chains"])

    def made() -> list[str]:
        return [line for line in monitor.output().splitlines() if line.startswith("add chain")]

    def monitored(number: int) -> bool:
        site.node.run(["nft", "add", "table", "inet", f"t{number}"])
        site.node.run(["nft", "add", "chain", "inet", f"t{number}", "c"])
        return bool(made())

    numbers = itertools.count()
    await_fact(lambda: monitored(next(numbers)), "nft monitor reports a chain")
    site.attach(conf(mode=mode, **policy))
    site.node.run(["nft", "add", "chain", "inet", "t0", "last"])
    await_fact(lambda: any("t0 last" in line for line in made()), "the last chain is reported")
    ours = [line.partition("{")[0] for line in made() if "mycelium-cni" in line]
    assert len(ours) > 10
    assert len(ours) == len(set(ours))


@both_modes
@pytest.mark.parametrize(
    "flush",
    [
        ["flush", "ruleset"],
        ["flush", "table", "inet", "mycelium-cni"],
        ["delete", "table", "inet", "mycelium-cni"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_flushed_rules_are_noticed_and_restored(site: Site, mode: str, flush: list[str]) -> None:
    closed = conf(mode=mode, ingress="closed")
    pod, address = site.attach(closed)
    site.node.run(["nft", *flush])
    assert not guarded(site)
    call = site.status(closed)
    assert (call.code, call.result["code"]) == (1, 50)
    assert "guard" in call.result["msg"]
    assert "setup" in call.result["msg"]
    second, there = site.attach(closed)
    assert guarded(site)
    assert site.status(closed).code == 0
    # Pods that lived through it may send, and are protected, as before.
    assert pod.ping(NODE) is not None
    assert second.ping(NODE) is not None
    assert site.node.ping(address) is not None
    for live, its in ((pod, address), (second, there)):
        assert not site.reaches(live, its, REMOTE)


def with_chains(group: int) -> list[str]:
    """What can be done to a chain or a table. `group` is that of a network with prefixes."""
    number = guard.RULES
    inet = [
        *("prerouting", "bridged", "overlay-mycelium", "transit", "transit-mycelium", "forward"),
        *("arrival", "translated"),
        *(f"{name}-{number}" for name in ("pods", "errors", "others", "peering", "tunnels")),
        *(f"{name}-{number}" for name in ("common-pods", "common-bridged", "own", "new")),
        f"to-{group}",
    ]
    bridge = [
        *("prerouting", "input", "from-pods", "forward", "to-closed", f"icmpv6-{number}"),
        *(f"{name}-{number}" for name in ("solicitation", "advertisement", "unspecified")),
    ]
    places = [f"inet mycelium-cni {name}" for name in inet]
    places += [f"bridge mycelium-cni {name}" for name in bridge]
    return [
        *(f"flush chain {place}" for place in places),
        *(f"insert rule {place} accept" for place in places[::4]),
        *(
            f"flush chain {family} mycelium-cni forward; delete chain {family} mycelium-cni forward"
            for family in ("inet", "bridge")
        ),
        *(f"add table {family} mycelium-cni {{ flags dormant; }}" for family in ("inet", "bridge")),
    ]


def with_elements(group: int, address: str, index: int) -> list[str]:
    """What can be done to a set or a map. `address` is that of a pod of that network, whose host
    link has that index."""
    return [
        *(f"flush map inet mycelium-cni {name}" for name in ("overlays", "to-network", "transit")),
        f"add element inet mycelium-cni allow-{group} {{ 4bb::/16 }}",
        f"flush set inet mycelium-cni allow-{group}",
        "flush set inet mycelium-cni tunnel-ports",
        "delete element inet mycelium-cni tunnel-protocols { gre }",
        "flush set bridge mycelium-cni closed",
        *(f"flush set bridge mycelium-cni {name}" for name in ("ports", "macs")),
        *(f"flush map inet mycelium-cni {name}" for name in ("to-address", "from-address")),
        'add element inet mycelium-cni overlays { "under0" : accept }',
        "flush map inet mycelium-cni overlays; "
        'add element inet mycelium-cni overlays { "mycelium" : goto bridged }',
        "flush map inet mycelium-cni to-network; "
        f"add element inet mycelium-cni to-network {{ {group} : accept }}",
        f"flush map inet mycelium-cni to-address; "
        f"add element inet mycelium-cni to-address {{ {address} : accept }}",
        f"add element bridge mycelium-cni ports {{ {index} . 02:00:00:00:00:09 . {NODE} }}",
        f"add element bridge mycelium-cni macs {{ {index} . 02:00:00:00:00:09 }}",
    ]


def with_two_networks(site: Site, root: Path) -> tuple[Tool, list[dict[str, Any]], str]:
    """A node with a file and a pod for each of two networks, and the address of the first's."""
    tool = Tool(site.node, root)
    networks = [
        conf("club", "bridge", ingress="cluster", allowFrom=["4aa::/16"]),
        conf("shut", "bridge", ingress="closed"),
    ]
    (root / "etc/cni/net.d/10-mycelium.conflist").unlink()
    for network in reversed(networks):
        _, address = site.attach(network)
        plugin = {key: value for key, value in network.items() if key not in ("name", "cniVersion")}
        file = {"cniVersion": "1.0.0", "name": network["name"], "plugins": [plugin]}
        tool.conf(file, name=f"10-{network['name']}.conflist")
    return tool, networks, address


@pytest.mark.parametrize("part", ["chains", "elements"])
def test_tampering_is_noticed_and_undone_by_setup(site: Site, root: Path, part: str) -> None:
    tool, networks, address = with_two_networks(site, root)
    before = rules(site)
    group, index = marks.group("club"), site.node.ip("link", "show", address)[0]["ifindex"]
    for words in with_chains(group) if part == "chains" else with_elements(group, address, index):
        site.node.run(["nft", words])
        assert any(site.status(network).code for network in networks), words
        assert tool("setup").returncode == 0, words
        assert [site.status(network).code for network in networks] == [0, 0], words
    assert sorted(map(str, rules(site))) == sorted(map(str, before))


def test_doctor_reads_the_tables_once_for_several_networks_and_checks(
    site: Site, root: Path
) -> None:
    """Of what one question to them finds, the next must not take anything for repaired."""
    tool, _, _ = with_two_networks(site, root)
    group = marks.group("club")
    site.node.run(
        [
            *("nft", "flush map inet mycelium-cni to-network; "),
            f"add element inet mycelium-cni to-network {{ {group} : accept }}",
        ]
    )
    found = tool.json("doctor", "standing", "guard")
    assert [each["state"] for each in found] == ["ok", "fail"], found
    assert "element of to-network that leads to" in found[1]["found"]


def test_a_deleted_rule_that_leads_to_others_is_noticed(site: Site) -> None:
    """What is left could be taken for the rules of another release, which are no fault."""
    network = conf(mode="bridge")
    site.attach(network)
    for place in ("inet mycelium-cni prerouting", "bridge mycelium-cni from-pods"):
        listed = ["nft", "-a", "list", "chain", *place.split()]
        handles = re.compile(r"goto .* # handle (\d+)")
        for number in range(len(handles.findall(site.node.run(listed).stdout))):
            handle = handles.findall(site.node.run(listed).stdout)[number]
            site.node.run(["nft", "delete", "rule", *place.split(), "handle", handle])
            call = site.status(network)
            assert call.code, (place, number)
            assert call.result["code"] == 50
            site.attach(network)
            assert site.status(network).code == 0


@both_modes
def test_a_link_that_is_moved_to_another_group_is_noticed_and_brought_back(
    site: Site, root: Path, mode: str
) -> None:
    tool, network = Tool(site.node, root), conf(mode=mode, ingress="closed")
    pod, address = site.attach(network)
    tool.conf({"cniVersion": "1.0.0", "name": "net", "plugins": [network]})
    name = site.node.ip("link", "show", address)[0]["ifname"]
    for group in ("0", "5", str(marks.group("another"))):
        site.node.configure(f"link set {name} group {group}")
        call = site.status(network)
        assert call.result["code"] == 50
        assert name in call.result["msg"]
        assert tool("setup").returncode == 0
        assert site.status(network).code == 0
        assert not site.reaches(pod, address, OTHER_PEER)


@both_modes
def test_a_link_is_guarded_until_it_is_gone(site: Site, mode: str) -> None:
    """GC moves links to a group of their own before it deletes them; a killed one leaves them."""
    pod, address = site.attach(conf("shut", mode, ingress="closed"))
    other, there = site.attach(conf("wide", mode))
    link = site.node.ip("link", "show", address)[0]
    site.node.configure(f"link set {link['ifname']} group {0x70000001}")
    assert not site.reaches(pod, address, OTHER_PEER)
    to = link if mode == "routed" else other.link("eth0")
    assert to
    sender, capture = Wire(pod, "eth0"), Capture()
    capture.watch_wire("other", Wire(other, "eth0"))
    false, true = os.urandom(16), os.urandom(16)
    packets = [raw.udp(LAN_HOST, there, false), raw.udp(address, there, true)]
    sender.send(packets, raw.mac(to["address"]))
    assert capture.find(true)
    assert not capture.places(false)
    capture.close()
    sender.socket.close()


def test_the_bridge_table_alone_is_noticed_and_restored(site: Site) -> None:
    network = conf(mode="bridge")
    pod, _ = site.attach(network)
    site.node.run(["nft", "delete", "table", "bridge", "mycelium-cni"])
    assert site.status(network).result["code"] == 50
    other, there = site.attach(network)
    assert site.status(network).code == 0
    assert pod.ping(there) is not None
    assert other.ping(NODE) is not None


def test_check_says_that_it_is_gone(site: Site) -> None:
    network = conf()
    pod = site.node.pod("checked")
    result = site.node.plugin("ADD", network, pod).succeeded()
    assert site.node.plugin("CHECK", {**network, "prevResult": result}, pod).code == 0
    site.node.run(["nft", "flush", "ruleset"])
    call = site.node.plugin("CHECK", {**network, "prevResult": result}, pod)
    assert (call.code, "guard" in call.result["msg"]) == (1, True)


def test_a_pod_that_it_does_not_know_is_told_of_by_that_pods_check_alone(site: Site) -> None:
    network = conf(mode="bridge")
    pods = [site.node.pod(name) for name in ("unknown", "well")]
    results = [site.node.plugin("ADD", network, pod).succeeded() for pod in pods]
    address = results[0]["ips"][0]["address"].partition("/")[0]
    own, mac = (
        site.node.ip("link", "show", address)[0]["ifindex"],
        results[0]["interfaces"][1]["mac"],
    )
    inet, bridge = "delete element inet mycelium-cni", "delete element bridge mycelium-cni"
    site.node.run(
        ["nft", "-f", "-"],
        input=f"""
            {bridge} ports {{ {own} . {mac} . {address} }}
            {bridge} macs {{ {own} . {mac} }}
            {inet} to-address {{ {address} }}
            {inet} from-address {{ {address} }}
        """,
    )
    unknown, well = (
        site.node.plugin("CHECK", {**network, "prevResult": result}, pod)
        for pod, result in zip(pods, results, strict=True)
    )
    assert (unknown.code, "does not know" in unknown.result["msg"]) == (1, True)
    assert well.code == 0
    assert site.status(network).code == 0


def reading(site: Site, network: dict[str, Any], pod: Pod, name: str) -> int:
    """At which of its system calls of that kind a CHECK reads this set of the guard."""
    done, trace = traced(site, network, pod, verb="CHECK", kind="sendto")
    assert done.returncode == 0, done
    sent = [line for line in trace.splitlines() if "sendto(" in line]
    shown = "".join(f"\\x{octet:02x}" for octet in f"{name}\0".encode())
    return next(number for number, line in enumerate(sent, 1) if f'"{shown}' in line)


def stopped(
    site: Site,
    network: dict[str, Any],
    pod: Pod,
    verb: str,
    *,
    number: int,
    then: Callable[[], object],
) -> subprocess.CompletedProcess[str]:
    """A call that is stopped when the kernel has answered its `number`-th question, until `then` is
    done."""
    trace = site.lab.directory / "trace"
    trace.write_text("")
    stop = ("-e", f"inject=sendto:signal=STOP:when={number}")

    def pids() -> list[str]:
        return re.findall(r"(?m)^(\d+) .*stopped by SIGSTOP", trace.read_text())

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(traced, site, network, pod, *stop, verb=verb, kind="sendto")
        await_fact(pids, "it stops")
        then()

        def ended() -> bool:
            for pid in pids():  # DEL's child is another
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGCONT)
            return call.done()

        await_fact(ended, "its end")
        return call.result()[0]


@pytest.mark.parametrize("name", ["to-address", "ports"])
def test_a_pod_that_another_replaces_while_it_is_read_is_no_fault(site: Site, name: str) -> None:
    network, standing = conf(mode="bridge"), site.node.pod("standing")
    result = site.node.plugin("ADD", network, standing).succeeded()
    pod, address = site.attach(network)

    def replace() -> None:
        assert site.node.plugin("DEL", network, pod).code == 0
        site.attach(network, address)

    checked = {**network, "prevResult": result}
    number = reading(site, checked, standing, name)
    call = stopped(site, checked, standing, "CHECK", number=number, then=replace)
    assert call.returncode == 0, call


@both_modes
def test_a_policy_that_changes_while_it_is_read_is_no_fault(site: Site, mode: str) -> None:
    network, other, standing = conf(mode=mode), conf("other", mode), site.node.pod("standing")
    result = site.node.plugin("ADD", network, standing).succeeded()
    site.attach(other)
    checked = {**network, "prevResult": result}
    number = reading(site, checked, standing, "overlays")
    closed = {**other, "ingress": "closed"}
    call = stopped(
        site, checked, standing, "CHECK", number=number, then=lambda: site.attach(closed)
    )
    assert call.returncode == 0, call


def test_entries_of_pods_go_all_at_once(site: Site) -> None:
    """Also where a killed call has left a pod without some of them: nobody sees a pod with half."""
    network = conf(mode="bridge")
    for _ in range(2):
        _, address = site.attach(network)
    site.node.run(
        ["nft", "delete", "element", "inet", "mycelium-cni", "attached", f"{{{address}}}"]
    )
    monitor = site.node.start(["nft", "monitor"])
    add, delete = (["nft", verb, "table", "inet", "first"] for verb in ("add", "delete"))

    def monitored() -> bool:
        site.node.run(add)
        site.node.run(delete)
        return "table inet first" in monitor.output()

    await_fact(monitored, "nft monitor reports a table")
    assert site.node.plugin("GC", {**network, "cni.dev/valid-attachments": []}).code == 0
    site.node.run(["nft", "add", "table", "inet", "last"])
    await_fact(lambda: "table inet last" in monitor.output(), "the last table is reported")
    generations = re.split("(?m)^# new generation.*", monitor.output())
    deleting = [each.count("delete element") for each in generations if "delete element" in each]
    assert deleting == [9]


def test_a_second_del_leaves_the_entries_of_the_addresss_next_owner(site: Site) -> None:
    network, address = conf(mode="bridge", ingress="closed"), f"{SUBNET}:ff0f::7"
    pod, _ = site.attach(network, address)
    heirs = []

    def replace() -> None:
        assert site.node.plugin("DEL", network, pod).code == 0
        heirs.append(site.attach(network, address)[0])

    call = stopped(site, network, pod, "DEL", number=1, then=replace)
    assert call.returncode == 0, call
    assert site.status(network).code == 0
    assert not site.reaches(heirs[0], address, REMOTE)
    assert heirs[0].ping(NODE) is not None


def test_gc_leaves_the_entries_of_an_address_that_is_used_again_meanwhile(site: Site) -> None:
    network, address = conf(mode="bridge", ingress="closed"), f"{SUBNET}:ff0f::7"
    collecting = {**network, "cni.dev/valid-attachments": []}
    heirs: list[Pod] = []

    def leave() -> Pod:
        pod, _ = site.attach(network, address)
        lose(site, pod, address)
        return pod

    done, trace = traced(site, collecting, leave(), verb="GC", kind="sendto")
    assert done.returncode == 0, done
    sent = [line for line in trace.splitlines() if "sendto(" in line]
    # The last time that it lists links, before it has the entries deleted.
    number = max(n for n, line in enumerate(sent, 1) if re.search("RTM_GETLINK.*DUMP", line))
    call = stopped(
        *(site, collecting, leave(), "GC"),
        number=number,
        then=lambda: heirs.append(site.attach(network, address)[0]),
    )
    assert call.returncode == 0, call
    assert site.status(network).code == 0
    assert not site.reaches(heirs[0], address, REMOTE)


@both_modes
def test_it_survives_a_restart_of_the_daemon(site: Site, mode: str) -> None:
    pod, address = site.attach(conf(mode=mode))
    for _ in range(3):
        before = rules(site)
        site.remake_tun(NODE)
        assert rules(site) == before
        assert guarded(site)
        assert site.reaches(pod, address, REMOTE)


def test_it_follows_a_changed_subnet(site: Site) -> None:
    site.attach(conf())
    site.remake_tun("5b2:2222:3333:4444:1:2:3:4")
    site.node.configure(f"address del {NODE}/128 dev lo")
    pod, address = site.attach(conf())
    assert address.startswith("5b2:2222:3333:4444:")
    assert site.reaches(pod, address, REMOTE)
    assert guarded(site)
    assert not site.reaches(pod, address, address), "the new subnet is the node's own"
    assert SUBNET not in site.table()


@both_modes
def test_rules_of_other_programs_stay(site: Site, mode: str) -> None:
    site.node.run(["nft", "-f", "-"], input=OTHERS)
    before = rules(site)
    network = conf(mode=mode, ingress="cluster", allowFrom=["4aa::/16"], ipMasq=True)
    pod, _ = site.attach(network)
    ours = [entry for entry in rules(site) if entry not in before]
    assert [entry for entry in rules(site) if entry not in ours] == before
    assert ours
    site.node.plugin("DEL", network, pod)
    with site.node.inside():
        assert guard.remove()
        assert not guard.remove()
    assert rules(site) == before


def test_it_needs_no_program(site: Site, lab: Lab) -> None:
    empty = lab.directory / "bin"
    empty.mkdir()
    site.attach(conf(), PATH=str(empty))
    assert guarded(site)


def test_a_packet_passes_no_hook_that_no_network_asks_for(site: Site) -> None:
    hooked = "type filter hook forward"
    site.attach(conf("routed"))
    site.attach(conf("bridged", mode="bridge"))
    assert hooked not in site.table() + site.table("bridge")
    site.attach(conf("tracked", mode="bridge", ingress="cluster"))
    assert (
        f"{hooked} priority filter; policy accept;\n\t\tct state ! established,related"
        in site.table()
    )
    assert hooked not in site.table("bridge")
    site.attach(conf("strict", mode="bridge", ingress="closed"))
    assert hooked in site.table("bridge")


def test_nft_lists_it_with_comments(site: Site) -> None:
    site.attach(conf("front", ingress="cluster", allowFrom=["4aa:1::/32"], ipMasq=True))
    site.attach(conf("back", mode="bridge", ingress="closed"))
    inet, bridge = site.table(), site.table("bridge")
    for words in (
        f'"mycelium" comment "subnet {SUBNET}::/64, rules {guard.RULES}"',
        'comment "front: ingress cluster, 1 prefixes allowed',
        'comment "back: ingress closed, bridge mycelium-br, rules',
        'fib saddr . iif oif missing counter drop comment "not the pod\'s address"',
        f'ip6 daddr != {SUBNET}::/64 counter drop comment "not for this node\'s subnet"',
        'ip6 saddr != 400::/7 counter drop comment "source is not on the overlay"',
        'comment "ipMasq"',
    ):
        assert words in inet
    assert "iif . ether saddr . ip6 saddr != @ports counter drop" in bridge
    # nft can read what it prints; elements that rules added have a remaining time.
    site.node.run(["nft", "flush", "set", "inet", "mycelium-cni", "own-address"])
    inet = site.table()
    site.node.run(["nft", "delete", "table", "inet", "mycelium-cni"])
    site.node.run(["nft", "-f", "-"], input=inet)
    assert site.table() == inet


def learned(site: Site) -> set[tuple[str, str]]:
    """Links, and the sources that the rules have matched to them."""
    listed = ["nft", "-j", "list", "set", "inet", "mycelium-cni", "own-address"]
    shown = json.loads(site.node.run(listed).stdout)["nftables"]
    (found,) = (entry["set"] for entry in shown if "set" in entry)
    return {tuple(each["elem"]["val"]["concat"]) for each in found.get("elem", [])}


def test_what_it_remembers_of_a_pod_helps_no_other(site: Site) -> None:
    (rogue, own), (other_pod, other) = (site.attach(conf()) for _ in range(2))
    assert answers(site.node, NODE, rogue)
    assert answers(site.node, NODE, other_pod)
    links = {entry["altnames"][0]: entry for entry in site.node.ip("link") if "altnames" in entry}
    theirs = {(links[address]["ifname"], address) for address in (own, other)}
    assert {pair for pair in learned(site) if pair[1] in (own, other)} == theirs
    capture = Capture()
    capture.watch_sockets("node", site.node)
    wire = raw.Wire(rogue, "eth0")
    for source, arrives in ((other, False), (NODE, False), (own, True)):
        token = os.urandom(16)
        wire.send([raw.udp(source, NODE, token)], raw.mac(links[own]["address"]))
        assert capture.find(token) is arrives, source
    capture.close()
    wire.socket.close()
    assert {pair for pair in learned(site) if pair[1] in (own, other, NODE)} == theirs


@both_modes
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"ipMasq": True},
        {"ingress": "closed", "ipMasq": True},
        {"ingress": "cluster"},
        {"ingress": "cluster", "allowFrom": ["4aa::/16"]},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())) or "open",
)
def test_what_is_in_place_is_not_loaded_again(site: Site, mode: str, keys: dict[str, Any]) -> None:
    def handles() -> list[tuple[str, str, int]]:
        shown = json.loads(site.node.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
        found = [entry["rule"] for entry in shown if "rule" in entry]
        return [(rule["family"], rule["chain"], rule["handle"]) for rule in found]

    site.attach(conf(mode=mode, **keys))
    before = handles()
    assert before
    site.attach(conf(mode=mode, **keys))
    assert handles() == before


def test_networks_share_it_and_a_burst_of_them_loses_none(site: Site) -> None:
    networks = [conf(f"net{n}", "routed", ingress="closed") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        attached = list(pool.map(site.attach, networks))
    assert all(site.status(network).code == 0 for network in networks)
    for pod, address in attached:
        assert not site.reaches(pod, address, REMOTE)
    for n in range(8):
        assert f"net{n}: ingress closed" in site.table()


def test_after_a_flush_the_first_add_brings_back_the_policy_of_every_network(site: Site) -> None:
    networks = [
        conf(f"net{n}", mode, ingress="cluster", allowFrom=["4cc::/16"], ipMasq=bool(n % 2))
        for n, mode in enumerate(("routed", "bridge") * 3)
    ]
    attached = [site.attach(network) for network in networks]
    before = [entry for entry in rules(site) if "rule" in entry]
    site.node.run(["nft", "flush", "table", "inet", "mycelium-cni"])
    assert {site.status(network).result.get("code") for network in networks} == {50}
    site.attach(networks[0])
    assert all(site.status(network).code == 0 for network in networks)
    for pod, address in attached:
        assert not site.reaches(pod, address, REMOTE)
        assert site.reaches(pod, address, "4cc::1")
    after = rules(site)
    assert all(rule in after for rule in before)


def test_networks_that_restore_it_at_once_lose_none(site: Site) -> None:
    networks = [conf(f"net{n}", "routed", ingress="closed") for n in range(8)]
    for network in networks:
        site.attach(network)
    for _ in range(5):
        site.node.run(["nft", "flush", "table", "inet", "mycelium-cni"])
        with ThreadPoolExecutor(len(networks)) as pool:
            list(pool.map(site.attach, networks))
        assert all(site.status(network).code == 0 for network in networks)
        assert site.table().count('comment "ingress: closed"') == len(networks)


def lose(site: Site, pod: Pod, address: str) -> None:
    """A pod that ends without DEL."""
    pod.remove()
    await_fact(
        lambda: all(address not in entry.get("altnames", []) for entry in site.node.ip("link")),
        "the kernel's tidying",
    )


def test_nothing_of_a_bridged_pod_stays(site: Site) -> None:
    network = conf(mode="bridge")
    site.attach(network)
    before = rules(site)
    pod, _ = site.attach(network)
    assert rules(site) != before
    assert site.node.plugin("DEL", network, pod).code == 0
    assert rules(site) == before
    lost, address = site.attach(network)
    lose(site, lost, address)  # the kernel removes the link, and GC the rest
    valid = {
        "cni.dev/valid-attachments": [{"containerID": f"{site.lab.name}-a-pod1", "ifname": "eth0"}]
    }
    assert site.node.plugin("GC", {**network, **valid}).code == 0
    assert rules(site) == before


def test_an_address_that_is_used_again_keeps_its_policy(site: Site) -> None:
    network, address = conf(mode="bridge", ingress="closed"), f"{SUBNET}:ff0f::7"
    lost, _ = site.attach(network, address)
    lose(site, lost, address)
    heir, _ = site.attach(network, address)
    kept = {"containerID": heir.container_id, "ifname": "eth0"}
    valid = {"cni.dev/valid-attachments": [kept]}
    assert site.node.plugin("GC", {**network, **valid}).code == 0
    assert heir.ping(NODE) is not None
    assert not site.reaches(heir, address, REMOTE)


@both_modes
def test_a_requested_mac_is_the_one_that_may_be_used(site: Site, mode: str) -> None:
    wish: dict[str, Any] = {
        "runtimeConfig": {"mac": "c2:11:22:33:44:55"},
        "capabilities": {"mac": True},
    }
    pod, _ = site.attach(conf(mode=mode, **wish))
    assert pod.ping(NODE) is not None
    pod.configure("link set eth0 down", "link set eth0 address c2:11:22:33:44:56")
    site.node.run(["nft", "flush", "ruleset"])
    site.attach(conf(mode=mode))  # what is restored is what ADD made


def test_real_flows(site: Site) -> None:
    """Probes, node ports and path MTU discovery, with everything switched on."""
    pod, address = site.attach(conf(ingress="cluster", ipMasq=True, defaultRoute=True))
    other, there = site.attach(conf(ingress="cluster", ipMasq=True, defaultRoute=True))
    assert connects(pod, address, site.node), "kubelet's probe"
    assert pod.ping(there, size=1352) is not None
    site.node.run(
        ["nft", "-f", "-"],
        input=f"""table ip6 services {{
            chain prerouting {{
                type nat hook prerouting priority -100;
                ip6 daddr fd00:10:96::1 dnat to {there}
                ip6 daddr {NODE} udp dport 30080 dnat to [{there}]:4242
            }}
        }}""",
    )
    assert answers(other, "fd00:10:96::1", pod) == address
    assert answers(other, NODE, pod, port=30080) == address
    # The LAN has a smaller MTU behind the node: the pod learns of it.
    for end in (site.node, site.lan):
        end.configure("link set under0 mtu 1300")
    assert pod.ping(LAN_HOST, size=1300) is None
    assert pod.run(["ip", "route", "get", LAN_HOST]).stdout.count("mtu 1300") == 1
    assert pod.ping(LAN_HOST, size=1300) is not None, "in fragments"


def test_an_unreachable_peer_is_an_error_and_no_timeout(site: Site) -> None:
    pod, address = site.attach(conf())
    with pod.inside():
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with client:
        client.connect((OTHER_PEER, 53))
        client.settimeout(1)
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        client.send(b"question")
        capture = Capture()
        capture.watch_tun("tun", site.tun)
        capture.look(0.1)
        asked = next(p for p in capture.seen["tun"] if b"question" in p)
        capture.close()
        site.tun.write([raw.error(address, address, 1, asked)])  # as the daemon writes it
        with pytest.raises(OSError, match="unreachable"):
            client.recv(100)


# A node looks for few addresses on its bridge that nobody has.


def test_a_peer_cannot_fill_the_neighbour_table_through_a_bridge(site: Site) -> None:
    """All namespaces of the machine share the table's limit of 1,024. Pods are reached meanwhile,
    and so is a guest that another program put on the bridge, once it has been heard."""
    pod, address = site.attach(conf(mode="bridge"))
    guest, there = site.node.pod("guest"), f"{SUBNET}::9"
    site.node.configure(
        f"link add tap0 master mycelium-br type veth peer name eth0 netns {guest.netns}",
        "link set tap0 up",
    )
    guest.configure("link set eth0 up", f"address add {there}/64 dev eth0 nodad")
    await_fact(lambda: site.node.ping(there) is not None, "the guest answers")

    def looked_for(prefix: int) -> int:
        """How many of 400 addresses are in the table once a packet to each has come."""
        free = [f"{SUBNET}:{prefix:x}::{n:x}" for n in range(400)]
        site.tun.write([raw.udp(REMOTE, each, b"?") for each in free])
        assert site.reaches(pod, address, REMOTE)
        shown = site.node.ip("-6", "neigh", "show", "dev", "mycelium-br", "nud", "all")
        return sum(each["dst"].startswith(f"{SUBNET}:{prefix:x}:") for each in shown)

    assert looked_for(0xA) == 128
    site.node.configure(f"neigh del {there} dev mycelium-br")
    assert site.reaches(guest, there, REMOTE)
    assert looked_for(0xB) == 0, "while it looks for the first ones"
    site.node.run(["nft", "delete", "table", "inet", "mycelium-cni"])
    assert looked_for(0xC) == 400


def test_a_free_address_is_looked_for_again_later(site: Site) -> None:
    """As many as the node may look for at once, and those of a while ago do not count."""
    site.attach(conf(mode="bridge"))
    site.tun.write([raw.udp(REMOTE, f"{SUBNET}:a::{n:x}", b"?") for n in range(200)])
    guest, there = site.node.pod("guest"), f"{SUBNET}::9"
    site.node.configure(
        f"link add tap0 master mycelium-br type veth peer name eth0 netns {guest.netns}",
        "link set tap0 up",
    )
    guest.configure("link set eth0 up", f"address add {there}/64 dev eth0 nodad")
    await_fact(lambda: site.reaches(guest, there, REMOTE), "the guest is reached", within_s=20)


# Traffic from the overlay ends at this node, unless the configuration says `transit`.

NODE_PORTS = f"""
table ip6 services {{
    chain prerouting {{
        type nat hook prerouting priority -100;
        ip6 daddr {NODE} udp dport 30081 dnat to [{LAN_HOST}]:4242
    }}
}}"""


def carries(site: Site, pod: Pod) -> set[str]:
    """By what the overlay, or the pod, gets into networks behind the node."""
    site.node.run(
        ["nft", "-f", "-"], input=f"table ip6 services\ndelete table ip6 services{NODE_PORTS}"
    )
    if site.node.link("vx0") is None:
        site.node.configure(
            f"link add vx0 type vxlan id 7 dstport 4789 local {NODE}", "link set vx0 up"
        )
    inner = raw.udp("fd00::1", "fd00::2", os.urandom(16))
    frame = b"\xff" * 6 + b"\2peer!" + struct.pack("!H", raw.ETH_P_IPV6) + inner
    tunnelled = struct.pack("!II", 1 << 27, 7 << 8) + frame
    found = set()
    if site.delivers(site.lan, [raw.udp(REMOTE, NODE, os.urandom(16), dport=30081)], "under0"):
        found.add("node port")
    if site.delivers(site.node, [raw.udp(REMOTE, NODE, tunnelled, dport=4789)], "vx0"):
        found.add("tunnel")
    capture = Capture()
    capture.watch_wire("tunnel", Wire(site.node, "vx0"))
    with pod.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(tunnelled, (NODE, 4789))
    if capture.find(frame[-16:]):
        found.add("tunnel from a pod")
    capture.close()
    return found


@both_modes
def test_transit_is_for_one_network_to_ask_and_for_all_to_have(site: Site, mode: str) -> None:
    plain, asking = conf("plain", mode), conf("asking", mode, transit=True)
    everything = {"node port", "tunnel", "tunnel from a pod"}
    pod, _ = site.attach(plain)
    assert carries(site, pod) == set()
    site.attach(asking)
    assert carries(site, pod) == everything
    site.attach(plain)
    assert carries(site, pod) == everything
    assert [site.status(network).stdout for network in (plain, asking)] == ["", ""]
    site.attach(conf("asking", mode))
    assert carries(site, pod) == set()
    assert [site.status(network).code for network in (plain, conf("asking", mode))] == [0, 0]


def test_what_is_open_to_transit_unasked_is_a_fault(site: Site) -> None:
    pod, _ = site.attach(conf())
    site.node.run(["nft", "flush", "chain", "inet", "mycelium-cni", "transit-mycelium"])
    assert carries(site, pod) == {"node port"}
    assert site.status(conf()).result["code"] == 50


def test_answers_reach_those_whom_the_node_translates_for(site: Site) -> None:
    """A router for its LAN: there is one flow, from the LAN host to the overlay and back."""
    site.attach(conf())
    site.lan.configure(f"route add 400::/7 via {LAN_NODE}")
    site.node.run(
        ["nft", "-f", "-"],
        input="""table ip6 router {
            chain postrouting {
                type nat hook postrouting priority 100;
                oifname mycelium masquerade
            }
        }""",
    )
    capture = Capture()
    capture.watch_tun("overlay", site.tun)
    with site.lan.inside():
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with client:
        client.settimeout(2)
        client.sendto(b"question from the LAN", (REMOTE, 53))
        assert capture.find(b"question from the LAN")
        asked = next(p for p in capture.seen["overlay"] if b"question" in p)
        port = int.from_bytes(asked[40:42], "big")
        assert asked[8:24] == raw.packed(NODE)
        site.tun.write([raw.udp(REMOTE, NODE, b"answer", dport=port, sport=53)])
        assert client.recv(100) == b"answer"
    capture.close()


# Pods cannot be peers of the node's daemon, unless the configuration says `peering`.


@both_modes
def test_peering_is_for_one_network_to_ask_and_for_all_to_have(site: Site, mode: str) -> None:
    plain, asking = conf("plain", mode), conf("asking", mode, peering=True)
    pod, _ = site.attach(plain)
    assert not connects(site.node, NODE, pod, port=9651)
    other, _ = site.attach(asking)
    assert connects(site.node, NODE, other, port=9651)
    site.attach(plain)
    assert connects(site.node, NODE, pod, port=9651)
    assert [site.status(network).code for network in (plain, asking)] == [0, 0]
    site.attach(conf("asking", mode))
    assert not connects(site.node, NODE, other, port=9651)
    assert [site.status(network).code for network in (plain, conf("asking", mode))] == [0, 0]
    assert connects(site.node, NODE, other, port=9652)


def test_a_pod_on_a_bridge_that_somebody_else_made_is_no_peer_either(site: Site) -> None:
    site.node.configure("link add mycelium-br type bridge", "link set mycelium-br up")
    pod, _ = site.attach(conf(mode="bridge"))
    assert not connects(site.node, NODE, pod, port=9651)
    assert connects(site.node, NODE, pod, port=9652)


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_a_pod_does_not_fill_a_bridges_table_of_groups(site: Site, whose: str) -> None:
    """It has room for 4,096 groups, for all pods together, and then floods everything. Our bridge
    keeps none; on one that somebody else made, and that snoops, a pod gets a small part."""
    if whose == "another's":
        site.node.configure("link add mycelium-br type bridge", "link set mycelium-br up")
    pod, _ = site.attach(conf(mode="bridge"))
    groups = [f"ff05::{number:x}" for number in range(0x1000, 0x1080)]
    with pod.inside():
        member = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        eth0 = struct.pack("i", socket.if_nametoindex("eth0"))

    def kept() -> int:
        return site.node.run(["bridge", "-d", "mdb", "show"]).stdout.count(" grp ff05::1")

    with member:
        for group in groups:
            wish = raw.packed(group) + eth0
            member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, wish)
        if whose == "another's":
            await_fact(kept, "the bridge learns from reports")
            assert pod.ping(NODE) is not None, "behind them all"
            assert kept() <= 64
        else:
            capture = Capture()
            capture.watch_wire("bridge", Wire(site.node, "mycelium-br"))
            assert capture.find(raw.packed(groups[0]), within_s=3), "the kernel repeats a report"
            capture.close()
            assert not kept()


@both_modes
def test_a_pod_sends_few_errors(site: Site, mode: str) -> None:
    """200 at once, and 100 in each further second; those of other pods do not count."""
    reached: list[int] = []
    other, there = site.attach(conf(mode=mode))
    for _ in range(2):
        pod, address = site.attach(conf(mode=mode))
        sender, capture = Wire(pod, "eth0"), Capture()
        capture.watch_wire("there", Wire(other, "eth0"))
        gateway = (
            other.link("eth0") if mode == "bridge" else site.node.ip("link", "show", address)[0]
        )
        assert gateway
        token, start = os.urandom(16), time.monotonic()
        for _ in range(20):
            error = raw.error(address, there, 1, raw.udp(there, address, token))
            sender.send([error] * 50, raw.mac(gateway["address"]))
            capture.look(0.01)
        capture.look()
        reached.append(sum(token in each for each in capture.seen["there"]))
        assert reached[-1] <= 201 + 100 * (time.monotonic() - start)
        capture.close()
        sender.socket.close()
    assert min(reached) >= 200


def test_a_pod_has_few_link_local_neighbours_made(site: Site) -> None:
    """Each sender of a solicitation is an entry of the node's table."""
    pod, address = site.attach(conf())
    link = site.node.ip("link", "show", address)[0]["ifname"]
    sender, start = Wire(pod, "eth0"), time.monotonic()
    for number in range(200):
        body = bytes(4) + raw.packed("fe80::1") + bytes((1, 1)) + sender.mac
        ask = raw.icmpv6(f"fe80::5:{number:x}", "ff02::1:ff00:1", 135, body, hops=255)
        sender.send([ask], raw.multicast_mac("ff02::1:ff00:1"))
    assert site.node.ping(address) is not None, "behind them all"
    shown = site.node.ip("-6", "neigh", "show", "dev", link, "nud", "all")
    made = sum(each["dst"].startswith("fe80::5:") for each in shown)
    assert 10 <= made <= 11 + 2 * (time.monotonic() - start)
    sender.socket.close()


# Where the guard cannot be loaded.


def add_without_nf_tables(site: Site, network: dict[str, Any]) -> tuple[int, Any, Pod]:
    """ADD on a fresh node with a kernel that refuses nf_tables: exit code, document, pod."""
    first, second = site.node.pod("probe"), site.node.pod("unguarded")
    _, trace = traced(site, network, first)
    sockets = [line for line in trace.splitlines() if "socket(" in line]
    number = next(n for n, line in enumerate(sockets, 1) if "NETLINK_NETFILTER" in line)
    site.node.plugin("DEL", network, first)
    with site.node.inside():
        guard.remove()
    site.node.run(["sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"])
    fault = f"inject=socket:error=EPROTONOSUPPORT:when={number}"
    done, trace = traced(site, network, second, "-e", fault)
    assert "NETLINK_NETFILTER) = -1" in trace
    return done.returncode, json.loads(done.stdout), second


def traced(
    site: Site,
    network: dict[str, Any],
    pod: Pod,
    *options: str,
    verb: str = "ADD",
    kind: str = "socket",
) -> tuple[subprocess.CompletedProcess[str], str]:
    """A call under strace, and its system calls of that kind."""
    env = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
    }
    trace = site.lab.directory / "trace"
    argv = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={kind}", *options]
    done = site.node.run(
        [*argv, *site.lab.command], env=env, input=json.dumps(network), check=False
    )
    return done, trace.read_text()


def test_without_it_add_fails_and_changes_nothing(site: Site) -> None:
    code, document, pod = add_without_nf_tables(site, conf())
    assert (code, document["code"]) == (1, 100)
    assert "guard" in document["msg"]
    assert pod.link("eth0") is None
    read = site.node.run(["sysctl", "-n", "net.ipv6.conf.all.forwarding"]).stdout
    assert read.strip() == "0"


def test_without_it_add_works_where_the_configuration_says_so(site: Site) -> None:
    code, _, pod = add_without_nf_tables(site, conf(guard="optional"))
    assert code == 0
    assert pod.ping(NODE) is not None
    assert site.status(conf(guard="optional")).code == 0
    assert site.status(conf()).result["code"] == 50


@pytest.mark.parametrize("keys", [{"ingress": "closed"}, {"ingress": "cluster"}, {"ipMasq": True}])
def test_without_it_add_fails_where_only_it_can_do_what_the_configuration_says(
    site: Site, keys: dict[str, Any]
) -> None:
    code, document, pod = add_without_nf_tables(site, conf(guard="optional", **keys))
    assert (code, document["code"]) == (1, 100)
    assert pod.link("eth0") is None
    assert site.status(conf(guard="optional", **keys)).result["code"] == 50


# The edition of the rules


def test_the_rules_have_a_number(site: Site) -> None:
    """A change of a rule needs a new `guard.RULES`: only then do nodes load them again."""
    document = b'{"name": "net", "ingress": "cluster", "allowFrom": ["4aa::/16"], "ipMasq": true}'
    wanted = guard.Wanted(
        "net", Config(Network(document)), Node(raw.packed(NODE), 1400, True, None)
    )
    port = guard.Port(7, bytes(6), raw.packed(NODE), wanted.group)
    messages = [
        *ruleset.base(peers=False, confined=True, bridges=("mycelium-br",)),
        *ruleset.overlay(wanted, known=True, confined=True, bridged=True),
        *ruleset.network(wanted, known=("to-network", "from-network")),
        *ruleset.bridge_base(),
        *ruleset.bridge_network(wanted.group, closed=True),
        *ruleset.add_ports([port]),
    ]
    digest = hashlib.blake2b(digest_size=8)
    for message in messages:
        digest.update(bytes((message.kind & 0xFF,)) + message.body)
    assert (guard.RULES, digest.hexdigest()) == (9, "b604cd5197679bb1")


def written() -> dict[str, list[str]]:
    """What the source of the rules says that `nft` prints, chain by chain, with `$NAME` for what
    differs."""
    chains: dict[str, list[str]] = {}
    source = Path(ruleset.__file__).read_text()
    for folded in re.findall(r"^ *# nft: (.+(?:\n *#      .+)*)", source, re.MULTILINE):
        text = re.sub(r"\n *# +", " ", folded)
        if text.startswith("chain "):
            chain = chains[text] = []
        else:
            chain.append(text)
    return chains


def listed(site: Site) -> dict[str, list[str]]:
    """What `nft` prints, chain by chain."""
    return {
        f"chain {family} {name}": [line.strip() for line in lines.splitlines()]
        for family in ("inet", "bridge")
        for name, lines in re.findall(
            r"^\tchain (\S+) \{\n(.*?)^\t\}", site.table(family), re.MULTILINE | re.DOTALL
        )
    }


def test_beside_each_rule_stands_what_nft_prints_for_it(site: Site) -> None:
    policies: list[dict[str, Any]] = [
        {"name": "front", "ingress": "cluster", "allowFrom": ["4aa:1::/32"], "ipMasq": True},
        {"name": "back", "ingress": "closed", "mode": "bridge"},
        {"name": "plain", "ingress": "open"},
    ]
    for policy in policies:
        site.attach(conf(**policy))
    printed, texts_of = listed(site), written()
    unknown = set(printed)
    unused = {(chain, text) for chain, texts in texts_of.items() for text in texts}
    for policy in policies:
        names = {
            "RULES": str(guard.RULES),
            "INTERFACE": "mycelium",
            "BRIDGE": "mycelium-br",
            "SUBNET": f"{SUBNET}::/64",
            "SUBNET_NUMBER": hex(int.from_bytes(raw.packed(NODE)[:8], "big")),
            "GROUP": str(marks.group(policy["name"])),
            "INGRESS": policy["ingress"],
        }
        for chain, texts in texts_of.items():
            name = Template(chain).substitute(names)
            filled = {Template(text).substitute(names): (chain, text) for text in texts}
            # A policy has some rules of its chains, in their order; all else is there as a whole.
            assert printed[name] == [text for text in filled if text in printed[name]], name
            unused -= {filled[text] for text in printed[name]}
            unknown.discard(name)
    assert not unknown, "chains without a text"
    assert not unused, "texts without a rule"


def test_prefixes_are_cut_at_the_right_bits() -> None:
    every = nftables.prefixes([(bytes(16), 0)])
    assert len(every) == 1, "there is no address behind the last"
    assert len(nftables.prefixes([(raw.packed("4aa::"), 16), (raw.packed("ff00::"), 8)])) == 3
