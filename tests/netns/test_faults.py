# SPDX-License-Identifier: Apache-2.0
"""A table of faults of a live node: each is injected, seen by ping, named by doctor, and fixed.

For every fault that cuts a pod off, doctor fails and status does not call the node ready. What
doctor says it can fix, --fix fixes; what it says to run repairs the fault.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import pytest
from attaching import MODES, Mode
from checked_node import CheckedNode, CheckedNodes

from mycelium_lab.lab import await_fact

Heals = Literal["fix", "run", "neither"]
PING_S = 0.25
LONG_PING_S = 1.0  # before a lost answer counts against us: the machine may be busy


class Fault(NamedTuple):
    """A fault, as a person would make it in a shell of the node.

    $LINK, $ADDR and $MAC are the host link, the address and the MAC of a pod, $SUB the first four
    groups of its address; $IN enters it. `undo` takes back what --fix does not.
    """

    name: str
    inject: str
    check: str  # the check that must name it
    heals: Heals
    undo: str = ""
    modes: tuple[Mode, ...] = MODES


ROUTED: tuple[Mode, ...] = ("routed",)
BRIDGE: tuple[Mode, ...] = ("bridge",)

VPN = "ip link add vpn0 type veth peer name vpn1; ip link set vpn0 up; ip link set vpn1 up; "
NO_VPN = "ip link del vpn0"
# The kernel asks its own rules only where there is another one.
ANY_RULE = "rule add pref 90 fwmark 0x99 lookup main"
FILTER = "nft add table {0} x; nft add chain {0} x c '{{ type filter hook {1} priority 0; {2} }}'; "
NO_FILTER = "nft delete table {0} x"


def dropped(family: str, hook: str, *rules: str, policy: str = "") -> tuple[str, str]:
    """The lines that load and unload another program's chain."""
    lines = FILTER.format(family, hook, f"policy {policy};" if policy else "")
    lines += "; ".join(f"nft add rule {family} x c {rule}" for rule in rules)
    return lines.strip("; "), NO_FILTER.format(family)


def filtered(
    name: str,
    family: str,
    hook: str,
    *rules: str,
    policy: str = "",
    modes: tuple[Mode, ...] = MODES,
) -> Fault:
    inject, undo = dropped(family, hook, *rules, policy=policy)
    return Fault(name, inject, "firewall", "run", undo, modes)


FAULTS = [
    # In the pod
    Fault("pod address flushed", "$IN ip address flush dev eth0", "pods", "fix"),
    Fault("pod address deleted", "$IN ip -6 address flush dev eth0 scope global", "pods", "fix"),
    Fault("pod route deleted", "$IN ip -6 route del 400::/7", "pods", "fix"),
    Fault("pod routes flushed", "$IN ip -6 route flush dev eth0 proto 77", "pods", "fix"),
    Fault("pod link down", "$IN ip link set eth0 down", "pods", "fix"),
    Fault(
        "pod link down and up",
        "$IN ip link set eth0 down; $IN ip link set eth0 up",
        "pods",
        "fix",
        "",
        ROUTED,
    ),
    Fault("pod MTU", "$IN ip link set eth0 mtu 1300", "pods", "fix"),
    Fault("pod MAC", "$IN ip link set eth0 address 02:aa:bb:cc:dd:ee", "pods", "fix", "", BRIDGE),
    Fault("pod IPv6 off", "$IN sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1", "pods", "fix"),
    Fault(
        "pod IPv6 off everywhere",
        "$IN sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
        "pods",
        "fix",
        "$IN sysctl -qw net.ipv6.conf.default.disable_ipv6=0",
    ),
    Fault("pod lo without IPv6", "$IN sysctl -qw net.ipv6.conf.lo.disable_ipv6=1", "pods", "fix"),
    Fault(
        "pod refuses by a route",
        "$IN ip -6 route add blackhole 400::/8; $IN ip -6 route add blackhole 500::/8",
        "pod-routes",
        "neither",
        "$IN ip -6 route del 400::/8; $IN ip -6 route del 500::/8",
    ),
    Fault(
        "a second way in the pod",
        "$IN ip link add dd0 type veth peer name dd1; $IN ip link set dd0 up; $IN ip -6 "
        "route add 400::/8 dev dd0",
        "pod-routes",
        "neither",
        "$IN ip link del dd0",
    ),
    Fault(
        "pod address with another prefix length",
        "$IN ip address del $ADDR/$BITS dev eth0; $IN ip address add $ADDR/7 dev eth0 nodad",
        "pods",
        "fix",
    ),
    Fault("pod MTU below IPv6's", "$IN ip link set eth0 mtu 1000", "pods", "fix"),
    Fault(
        "gateway's MAC wrong for good",
        "$IN ip -6 neigh replace $GATEWAY lladdr 02:99:99:99:99:99 dev eth0 nud noarp",
        "pods",
        "fix",
    ),
    Fault(
        "pod route by another gateway",
        "$IN ip -6 route replace 400::/7 via fe80::99 dev eth0 proto 77",
        "pods",
        "fix",
    ),
    Fault(
        "a second address in the pod",
        "$IN ip address add $SUB:ff0f::99/$BITS dev eth0 nodad",
        "pod-routes",
        "neither",
        "$IN ip address del $SUB:ff0f::99/$BITS dev eth0",
    ),
    Fault(
        "a better route without gateway",
        "$IN ip -6 route add 400::/7 dev eth0 metric 1",
        "pod-routes",
        "neither",
        "$IN ip -6 route del 400::/7 dev eth0 metric 1",
    ),
    Fault(
        "a rule in the pod, to its node",
        "$IN ip -6 rule add pref 100 to $NODE prohibit",
        "pod-routes",
        "neither",
        "$IN ip -6 rule del pref 100",
    ),
    Fault(
        "a rule in the pod, for TCP",
        "$IN ip -6 rule add pref 100 ipproto tcp unreachable",
        "pod-routes",
        "neither",
        "$IN ip -6 rule del pref 100",
    ),
    Fault(
        "the kernel's rule deleted in the pod",
        f"$IN ip -6 {ANY_RULE}; $IN ip -6 rule del pref 0",
        "pod-routes",
        "run",
        "$IN ip -6 rule del pref 90",
    ),
    Fault(
        "packets end at the first hop",
        "$IN sysctl -qw net.ipv6.conf.eth0.hop_limit=1",
        "pod-routes",
        "neither",
        "$IN sysctl -qw net.ipv6.conf.eth0.hop_limit=64",
    ),
    # Behind those of neighbours: a while after, the kernel forgets the link's once more.
    Fault("pod without neighbour discovery", "$IN ip link set eth0 arp off", "pods", "fix"),
    # The host link
    Fault(
        "host link in another bridge",
        "ip link add br9 type bridge; ip link set br9 up; ip link set $LINK master br9",
        "pods",
        "fix",
        "ip link del br9",
    ),
    Fault("host link down", "ip link set $LINK down", "pods", "fix"),
    Fault(
        "host link down and up",
        "ip link set $LINK down; ip link set $LINK up",
        "pods",
        "fix",
        "",
        ROUTED,
    ),
    Fault(
        "host link renamed",
        "ip link set $LINK down; ip link set $LINK name other0; ip link set other0 up",
        "pods",
        "fix",
    ),
    Fault("host link MTU", "ip link set $LINK mtu 1300", "pods", "fix"),
    Fault(
        "host link without IPv6",
        "sysctl -qw net.ipv6.conf.$LINK.disable_ipv6=1",
        "pods",
        "fix",
        "",
        ROUTED,
    ),
    Fault(
        "host link IPv6 off and on",
        "sysctl -qw net.ipv6.conf.$LINK.disable_ipv6=1; sysctl -qw "
        "net.ipv6.conf.$LINK.disable_ipv6=0",
        "pods",
        "fix",
        "",
        ROUTED,
    ),
    Fault(
        "host link flushed",
        "ip -6 addr flush dev $LINK; ip neigh flush dev $LINK",
        "pods",
        "fix",
        "",
        ROUTED,
    ),
    Fault(
        "host link's address deleted", "ip -6 address flush dev $LINK", "pods", "fix", "", ROUTED
    ),
    Fault(
        "proxy entry deleted", "ip -6 neigh del proxy fe80::1 dev $LINK", "pods", "fix", "", ROUTED
    ),
    Fault(
        "proxy switched off",
        "sysctl -qw net.ipv6.conf.$LINK.proxy_ndp=0",
        "pods",
        "fix",
        "",
        ROUTED,
    ),
    Fault(
        "host link takes advertisements",
        "sysctl -qw net.ipv6.conf.$LINK.accept_ra=1",
        "pods",
        "fix",
        "",
        ROUTED,
    ),
    Fault("host link in another group", "ip link set $LINK group 7", "pods", "fix"),
    Fault(
        "address no longer reserved", "ip link property del dev $LINK altname $ADDR", "pods", "fix"
    ),
    Fault(
        "route to the pod deleted", "ip -6 route del $ADDR/128 dev $LINK", "pods", "fix", "", ROUTED
    ),
    Fault(
        "route to the pod elsewhere",
        "ip -6 route replace $ADDR/128 dev mycelium",
        "pods",
        "fix",
        "ip -6 route del $ADDR/128 dev mycelium",
        ROUTED,
    ),
    Fault("routes of ours flushed", "ip -6 route flush proto 77", "pods", "fix", "", ROUTED),
    # The bridge
    Fault("port off its bridge", "ip link set $LINK nomaster", "pods", "fix", "", BRIDGE),
    Fault("port learns", "bridge link set dev $LINK learning on", "pods", "fix", "", BRIDGE),
    Fault(
        "forwarding entry deleted",
        "bridge fdb del $MAC dev $LINK master",
        "pods",
        "fix",
        "",
        BRIDGE,
    ),
    Fault("bridge deleted", "ip link del mycelium-br", "bridge", "fix", "", BRIDGE),
    Fault("bridge down", "ip link set mycelium-br down", "bridge", "fix", "", BRIDGE),
    Fault(
        "bridge down and up",
        "ip link set mycelium-br down; ip link set mycelium-br up",
        "bridge",
        "fix",
        "",
        BRIDGE,
    ),
    Fault(
        "gateway deleted", "ip address del $SUB::1/64 dev mycelium-br", "bridge", "fix", "", BRIDGE
    ),
    Fault("bridge flushed", "ip -6 address flush dev mycelium-br", "bridge", "fix", "", BRIDGE),
    Fault(
        "bridge's link-local address",
        "ip address del fe80::1/64 dev mycelium-br",
        "bridge",
        "fix",
        "",
        BRIDGE,
    ),
    Fault(
        "bridge without IPv6",
        "sysctl -qw net.ipv6.conf.mycelium-br.disable_ipv6=1",
        "ipv6",
        "fix",
        "",
        BRIDGE,
    ),
    Fault(
        "bridge no longer answers",
        "sysctl -qw net.ipv6.conf.mycelium-br.proxy_ndp=0",
        "bridge",
        "fix",
        "",
        BRIDGE,
    ),
    Fault(
        "bridge's MAC",
        "ip link set mycelium-br address 02:77:77:77:77:77",
        "pods",
        "fix",
        "",
        BRIDGE,
    ),
    Fault("port switched off", "bridge link set dev $LINK state 0", "bridge", "run", "", BRIDGE),
    Fault(
        "ports isolated",
        "bridge link set dev $LINK isolated on; bridge link set dev $NEXT isolated on",
        "bridge",
        "run",
        "",
        BRIDGE,
    ),
    Fault(
        "spanning tree",
        "ip link set mycelium-br type bridge stp_state 1; ip link set $LINK down; ip link "
        "set $LINK up",
        "bridge",
        "run",
        "",
        BRIDGE,
    ),
    # The node
    Fault("lo down", "ip link set lo down", "loopback", "fix"),
    Fault("lo without IPv6", "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1", "ipv6", "fix"),
    Fault("node's address off lo", "ip address del $NODE/128 dev lo", "standing", "fix"),
    Fault(
        "standing route deleted",
        "ip -6 route del unreachable 400::/7 metric 4294967295",
        "standing",
        "fix",
    ),
    Fault(
        "subnet's route deleted",
        "ip -6 route del unreachable $SUB::/64 metric 1024",
        "standing",
        "fix",
    ),
    Fault("forwarding off", "sysctl -qw net.ipv6.conf.all.forwarding=0", "forwarding", "fix"),
    Fault(
        "overlay's route deleted", "ip -6 route del 400::/7 dev mycelium", "overlay-routes", "fix"
    ),
    Fault("table of the guard flushed", "nft flush table inet mycelium-cni", "guard", "fix"),
    Fault("table of the guard deleted", "nft delete table inet mycelium-cni", "guard", "fix"),
    Fault("rules flushed", "nft flush ruleset", "guard", "fix"),
    # Routing of other programs
    Fault(
        "a VPN's rule",
        VPN + "ip -6 route add default dev vpn0 table 52; ip -6 route add 2001:db8::/64 dev "
        "under0 table 52; ip -6 rule add pref 5270 lookup 52",
        "overlay-routes",
        "run",
        NO_VPN + "; ip -6 rule del pref 5270; ip -6 rule del pref 5269",
    ),
    Fault(
        "a kill switch",
        "ip -6 rule add pref 100 to 400::/7 prohibit",
        "overlay-routes",
        "run",
        "ip -6 rule del pref 100; ip -6 rule del pref 99",
    ),
    Fault(
        "a rule for pods' addresses",
        "ip -6 rule add pref 100 from $SUB::/64 blackhole",
        "overlay-routes",
        "run",
        "ip -6 rule del pref 100; ip -6 rule del pref 99",
    ),
    Fault(
        "a blackhole",
        "ip -6 route add blackhole 400::/8; ip -6 route add blackhole 500::/8",
        "overlay-routes",
        "run",
        "ip -6 route del 400::/8; ip -6 route del 500::/8",
    ),
    Fault(
        "a prohibited part",
        "ip -6 route add prohibit $FAR",
        "overlay-routes",
        "run",
        "ip -6 route del $FAR",
    ),
    Fault(
        "another node's subnet in the table local",
        "ip -6 route add blackhole $FAR table local",
        "overlay-routes",
        "run",
    ),
    Fault(
        "another node's subnet at a pod",
        "ip -6 route add $FAR dev $NEXT",
        "overlay-routes",
        "run",
        modes=ROUTED,  # a bridge port has no IPv6
    ),
    Fault(
        "the bridge's route deleted",
        "ip -6 route del $SUB::/64 dev mycelium-br",
        "pod-ways",
        "run",
        "",
        BRIDGE,
    ),
    Fault(
        "the kernel's rule deleted",
        f"ip -6 {ANY_RULE}; ip -6 rule del pref 0",
        "pod-ways",
        "run",
        "ip -6 rule del pref 90",
    ),
    Fault(
        "a rule for TCP",
        # The real daemon keeps its connections: lost ones it makes again after a minute or more.
        "ip -6 rule add pref 97 ipproto tcp dport 9651 lookup main;"
        " ip -6 rule add pref 98 ipproto tcp sport 9651 lookup main;"
        " ip -6 rule add pref 100 ipproto tcp prohibit",
        "overlay-routes",
        "run",
        "for pref in 100 99 98 97; do ip -6 rule del pref $pref; done",
    ),
    Fault(
        "a route to the pod by a gateway",
        "ip -6 route add $ADDR via fe80::5 dev $WAY metric 1",
        "pod-ways",
        "run",
    ),
    Fault(
        "an IPsec policy for what a pod sends",
        "ip xfrm policy add src $ADDR dst ::/0 dir fwd action block",
        "overlay-routes",
        "neither",
        "ip xfrm policy flush",
    ),
    Fault(
        "a more specific route",
        VPN + "ip -6 route add 400::/8 dev vpn0; ip -6 route add 500::/8 dev vpn0",
        "overlay-routes",
        "run",
        NO_VPN,
    ),
    Fault(
        "a route to a part of the subnet",
        VPN + "ip -6 route add $ADDR/124 dev vpn0",
        "pod-ways",
        "run",
        NO_VPN,
        BRIDGE,
    ),
    Fault(
        "the pod's address refused by a route",
        "ip -6 route add unreachable $ADDR",
        "pod-ways",
        "run",
        "",
        BRIDGE,
    ),
    Fault(
        "the pod's address on the node",
        VPN + "ip address add $ADDR/128 dev vpn0",
        "pod-ways",
        "run",
        NO_VPN,
    ),
    Fault(
        "an IPsec policy",
        "ip xfrm policy add src ::/0 dst 400::/7 dir out action block; ip xfrm policy add "
        "src ::/0 dst 400::/7 dir fwd action block",
        "overlay-routes",
        "neither",
        "ip xfrm policy flush",
    ),
    # Packet filters of other programs
    filtered("forward policy drop", "inet", "forward", policy="drop"),
    filtered("forward policy drop, ip6", "ip6", "forward", policy="drop"),
    filtered("last rule drops", "inet", "forward", "ct state established accept", "counter drop"),
    filtered("last rule rejects", "inet", "forward", "ct state established accept", "reject"),
    filtered(
        "a rule in the middle", "inet", "forward", "meta l4proto icmpv6 drop", "tcp dport 80 accept"
    ),
    filtered(
        "a rule that names our link",
        "inet",
        "forward",
        "iifname mycelium drop",
        "oifname mycelium drop",
    ),
    filtered(
        "a rule for an address", "inet", "forward", "ip6 daddr $ADDR drop", "ip6 saddr $ADDR drop"
    ),
    filtered(
        "TCP alone",
        "inet",
        "forward",
        "ct state established,related accept",
        "meta l4proto ipv6-icmp accept",
        policy="drop",
    ),
    filtered("prerouting", "inet", "prerouting", "iifname $WAY drop"),
    filtered("prerouting, ip6", "ip6", "prerouting", "ip6 saddr $ADDR drop"),
    filtered(
        "input policy drop",
        "inet",
        "input",
        "iifname { lo, under0, mycelium } accept",
        policy="drop",
    ),
    filtered(
        "output policy drop",
        "inet",
        "output",
        "oifname { lo, under0, mycelium } accept",
        policy="drop",
    ),
    filtered("postrouting", "inet", "postrouting", "oifname $WAY drop"),
    filtered("bridge forward", "bridge", "forward", policy="drop", modes=BRIDGE),
    filtered("bridge input", "bridge", "input", policy="drop", modes=BRIDGE),
    filtered("bridge prerouting", "bridge", "prerouting", "iifname $LINK drop", modes=BRIDGE),
    Fault(
        "a chain that is jumped to",
        "nft add table inet x; nft add chain inet x j; nft add rule inet x j drop; nft add "
        "chain inet x c '{ type filter hook forward priority 0; }'; nft add rule inet x c "
        "jump j",
        "firewall",
        "run",
        "nft delete table inet x",
    ),
    Fault(
        "ip6tables",
        "ip6tables -P FORWARD DROP",
        "firewall",
        "run",
        "ip6tables -P FORWARD ACCEPT; ip6tables -F FORWARD",
    ),
    Fault(
        "ip6tables-legacy",
        "ip6tables-legacy -P FORWARD DROP",
        "firewall",
        "run",
        "ip6tables-legacy -P FORWARD ACCEPT; ip6tables-legacy -F FORWARD",
    ),
    Fault(
        "ip6tables, TCP alone",
        "ip6tables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; ip6tables -A "
        "FORWARD -p ipv6-icmp -j ACCEPT; ip6tables -A FORWARD -j REJECT",
        "firewall",
        "run",
        "ip6tables -F FORWARD",
    ),
    Fault(
        "ip6tables-legacy, a chain that is jumped to",
        "ip6tables-legacy -N j; ip6tables-legacy -A j -d $ADDR -j DROP; "
        "ip6tables-legacy -A FORWARD -j j",
        "firewall",
        "run",
        "ip6tables-legacy -F; ip6tables-legacy -X j",
    ),
    *(
        Fault(
            f"dropped at {place}, {hook}",
            "nft add table netdev x; nft add chain netdev x c "
            f'"{{ type filter hook {hook} device {link} priority 0; policy drop; }}"',
            "firewall",
            "run",
            "nft delete table netdev x",
        )
        for place, link, hook in (
            ("the link", "$LINK", "ingress"),
            ("the interface", "mycelium", "egress"),
        )
    ),
    Fault(
        "a rule that is not understood",
        "nft add table inet x; nft add chain inet x c '{ type filter hook forward priority 0; }'; "
        "nft add rule inet x c fib daddr type unicast drop",
        "reach",
        "neither",
        "nft delete table inet x",
    ),
]


CASES = [
    pytest.param(
        fault, mode, id=f"{fault.name}-{mode}", marks=pytest.mark.xdist_group(f"faults-{mode}")
    )
    for mode in MODES
    for fault in FAULTS
    if mode in fault.modes
]


@pytest.mark.parametrize(("fault", "mode"), CASES)
def test_a_fault_is_named_and_repaired(
    checked_nodes: CheckedNodes, fault: Fault, mode: Mode
) -> None:
    with checked_nodes.of(mode) as checked:
        _judge(checked, fault)


def _judge(checked: CheckedNode, fault: Fault) -> None:
    injected = checked.shell(fault.inject)
    assert injected.stderr == "", injected
    lost = checked.lost()
    amiss = checked.doctor()
    names = [each["name"] for each in amiss]
    assert fault.check in names, f"{lost} lost, and doctor says {amiss}"
    if lost and not any(each["state"] == "fail" for each in amiss):
        lost = checked.lost(wait_s=LONG_PING_S)
        assert not lost, f"{lost} lost: {amiss}"
    if lost:
        assert "ready: a pod would" not in checked.tool("status").stdout
    for each in amiss:
        assert each["run"] or each["advice"], each
    if fault.heals == "fix":
        left = checked.doctor("--fix")
        assert left == [], f"--fix left {left} of {amiss}"
    if fault.heals == "run":
        for each in amiss:
            if each["name"] == fault.check:
                for line in each["run"]:
                    done = checked.shell(line)
                    assert done.returncode == 0, done
    if fault.heals != "neither":
        await_fact(lambda: checked.lost() == [], f"all ways after {fault.name} was fixed")
        if fault.heals == "run":
            assert fault.check not in [each["name"] for each in checked.doctor(fault.check)]
    if fault.undo:
        checked.shell(fault.undo)
        await_fact(lambda: checked.lost() == [], f"all ways after {fault.name} was undone")


def test_a_neighbour_that_was_asked_for_in_vain_is_given_time_to_be_asked_again(
    checked_nodes: CheckedNodes,
) -> None:
    """The kernel asks for a MAC once a second, and pods ask all the time."""
    with checked_nodes.of("bridge") as checked:
        checked.shell("ip link set $LINK down")
        for pod, other in ((checked.web, checked.neighbour), (checked.db, checked.address)):
            assert pod.ping(other, wait_s=0.1) is None
        checked.shell("ip link set $LINK up")
        await_fact(lambda: checked.node.ping(checked.address) is not None, "the pod answers")
        assert checked.doctor("reach") == []


KINDS = {
    "address of the pod": "$IN ip address del $ADDR/$BITS dev eth0",
    "prefix length": "$IN ip address del $ADDR/$BITS dev eth0; $IN ip address add $ADDR/7 dev eth0",
    "neighbour": "$IN ip -6 neigh replace $GATEWAY lladdr 02:99:99:99:99:99 dev eth0 nud noarp",
    "route of the pod": "$IN ip -6 route del 400::/7",
    "route to the pod": "ip -6 route del $ADDR/128 dev $LINK",
    "proxy entry": "ip -6 neigh del proxy fe80::1 dev $LINK",
    "address of the host link": "ip -6 address flush dev $LINK",
    "switch": "sysctl -qw net.ipv6.conf.$LINK.accept_ra=1",
    "alternative name": "ip link property del dev $LINK altname $ADDR",
    "standing route": "ip -6 route del unreachable 400::/7 metric 4294967295",
    "node's address": "ip address del $NODE/128 dev lo",
    "link": "ip link set $LINK down",
    "port": "ip link set $LINK nomaster",
    "learning": "bridge link set dev $LINK learning on",
    "forwarding entry": "bridge fdb del $MAC dev $LINK master",
    "gateway": "ip address del $SUB::1/64 dev mycelium-br",
}
OF_MODE: dict[str, tuple[Mode, ...]] = {
    **dict.fromkeys(
        ("route to the pod", "proxy entry", "address of the host link", "switch"), ROUTED
    ),
    **dict.fromkeys(("port", "learning", "forwarding entry", "gateway"), BRIDGE),
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        pytest.param(
            kind, mode, id=f"{kind}-{mode}", marks=pytest.mark.xdist_group(f"faults-{mode}")
        )
        for mode in MODES
        for kind in KINDS
        if mode in OF_MODE.get(kind, MODES)
    ],
)
def test_each_kind_of_fact_is_named_by_check_and_brought_back_by_its_line(
    checked_nodes: CheckedNodes, kind: str, mode: Mode
) -> None:
    with checked_nodes.of(mode) as checked:
        injected = checked.shell(KINDS[kind])
        assert injected.stderr == "", injected
        assert _check(checked) == 103
        found = [
            each for each in checked.doctor() if each["name"] in ("pods", "bridge", "standing")
        ]
        assert found
        for each in found:
            for line in each["run"]:
                done = checked.shell(line)
                assert done.returncode == 0, done
        assert _check(checked) == 0
        assert checked.doctor() == []


def _check(checked: CheckedNode) -> int:
    """The error code of CHECK for the pod, 0 if it succeeds."""
    conf = {"cniVersion": "1.1.0", "name": "mycelium", "type": "mycelium-cni"}
    conf |= {"mode": checked.mode, "netseed": "/nonexistent"}
    (link,) = checked.web.ip("link", "show", "eth0")
    bits = "64" if checked.mode == "bridge" else "128"
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": link["address"], "sandbox": checked.web.path}],
        "ips": [{"interface": 0, "address": f"{checked.address}/{bits}"}],
        "routes": [{"dst": "400::/7"}],
    }
    call = checked.node.plugin("CHECK", {**conf, "prevResult": result}, checked.web)
    return int(call.result["code"]) if call.code else 0
