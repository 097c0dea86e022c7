# SPDX-License-Identifier: Apache-2.0
"""What the node's packet filter does with pods' packets, including other programs' rules.

A few packets that every pod needs are followed through the rules. A rule that is not understood
decides nothing here; `reach` sends packets to find out.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from mycelium_cni import guard
from mycelium_cni.kernel.address import parse_address
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.pod.attachment import LINK_PREFIX
from mycelium_ctl import programs
from mycelium_ctl.checks.finding import Finding, ok, skip
from mycelium_ctl.checks.ruleset import (
    FAMILIES,
    NEIGHBOUR_ADVERTISEMENT,
    Chain,
    Packet,
    Ruleset,
)
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.units import patterns

_ELSEWHERE: Final = parse_address("4ff:ffff::1")
MOST_PODS: Final = 32  # each is followed through all chains


def firewall(state: State) -> list[Finding] | Finding:
    """No other program's rules drop pods' packets."""
    try:
        ruleset = Ruleset()
    except OSError as error:
        return skip(f"the rules cannot be read: {error.strerror}")
    dropped: dict[str, tuple[Chain, list[tuple[str, Packet]]]] = {}
    for hook, packet in _packets(state):
        families = _BRIDGE if hook.startswith("bridge ") else _INET
        for chain in ruleset.chains.values():
            if chain.hook != hook.removeprefix("bridge ") or chain.family not in families:
                continue
            if chain.table.startswith(guard.TABLE_NAME):
                continue  # the guard drops on purpose
            verdict, where = ruleset.follow(chain, packet)
            if verdict == "drop":
                dropped.setdefault(str(where), (where, []))[1].append((hook, packet))
    found = [_dropped(*each) for each in dropped.values()]
    return found + _legacy(state) or ok("no chain drops what pods send or receive")


_BRIDGE, _INET = (7,), (1, 10)


def _packets(state: State) -> list[tuple[str, Packet]]:
    """What must pass, and at which hook."""
    live = [one for one in state.attachments if one.octets and one.answers]
    chosen: list[Attached | None] = [*live[:MOST_PODS]] or [None]
    return [each for one in chosen for each in _packets_of(state, one)]


def _packets_of(state: State, one: Attached | None) -> list[tuple[str, Packet]]:
    interface, own = state.interface, state.address
    if interface is None or own is None:
        return []
    (link, index), pod = _pod(state, one)
    tun = interface.name
    what = "what pods send to the overlay"
    sends = Packet(what, pod, _ELSEWHERE, link, tun, index, interface.index, outward=True)
    gets = Packet(
        "what the overlay sends to pods", _ELSEWHERE, pod, tun, link, interface.index, index
    )
    asks = Packet("what pods send to their node", pod, own, link, "", index, outward=True)
    told = asks._replace(what="neighbour advertisements of pods", icmp_type=NEIGHBOUR_ADVERTISEMENT)
    to_pod = Packet("what the node sends to pods", own, pod, "", link, 0, index)
    found = [
        *(("prerouting", each) for each in (sends, gets, asks)),
        *(("forward", each) for each in (sends, gets)),
        *(("input", each) for each in (asks, told)),
        ("output", to_pod),
        *(("postrouting", each) for each in (sends, gets, to_pod)),
    ]
    if one and one.link.master:
        port, number = one.link.name, one.link.index
        framed = Packet("what pods send on their bridge", pod, own, port, "", number, outward=True)
        found += [("bridge prerouting", framed), ("bridge input", framed)]
        others = [a for a in state.attachments if a.link.master and a is not one and a.octets]
        for other in others[:1]:
            what = "what pods of the bridge send each other"
            to = other.link
            across = Packet(what, pod, other.octets, port, to.name, number, to.index, outward=True)
            found.append(("bridge forward", across))
    return found


def _pod(state: State, one: Attached | None) -> tuple[tuple[str, int], bytes]:
    """The link on which the node sees a pod, and its address; made up if there is no pod."""
    if one is None:
        own = state.address or bytes(16)
        name = state.config.bridge_name if state.bridged else "myc000000000000"
        return (name, 0), own[:8] + b"\xff\x0f" + bytes(5) + b"\1"
    if one.link.master and state.bridge:
        return (state.bridge.name, state.bridge.index), one.octets
    return (one.link.name, one.link.index), one.octets


def _dropped(chain: Chain, dropped: list[tuple[str, Packet]]) -> Finding:
    place = f"{FAMILIES[chain.family]} {quoted(chain.table)} {quoted(chain.name)}"
    matches = dict.fromkeys(_let_pass(hook, packet) for hook, packet in dropped)
    what = dict.fromkeys(packet.what for _, packet in dropped)
    return Finding(
        "fail",
        f"chain {chain} drops {', '.join(what)}",
        "also add it where the rules come from, or the next reload undoes it",
        run=tuple(f"nft insert rule {place} {match} accept" for match in matches),
    )


def _let_pass(hook: str, packet: Packet) -> str:
    """A match for the packets of all pods that go that way, and for as little else as possible."""
    came_in = packet.came_in and (packet.outward or not packet.goes_out or hook == "prerouting")
    way, name = ("iifname", packet.came_in) if came_in else ("oifname", packet.goes_out)
    # Host links come and go, each with a name of its own.
    return f"{way} {quoted('myc*' if name.startswith(LINK_PREFIX) else name)}"


def _legacy(state: State) -> list[Finding]:
    """iptables-legacy has tables of its own, which nf_tables does not show."""
    try:
        with open("/proc/net/ip6_tables_names") as listed:  # noqa: PTH123 - of this namespace
            tables = listed.read().split()
    except OSError:
        return []
    if "filter" not in tables:
        return []
    try:
        done = programs.run(["ip6tables-legacy-save", "-t", "filter"])
    except (OSError, subprocess.TimeoutExpired):
        return [
            Finding(
                "warn",
                "ip6tables-legacy has rules, which cannot be read without ip6tables-legacy-save",
                "install iptables, or move the rules to nf_tables",
            )
        ]
    policies: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        chain, _, rest = line.removeprefix(":").removeprefix("-A ").partition(" ")
        if line.startswith(":"):
            policies[chain] = rest.split(" ")[0]
        elif line.startswith("-A "):
            rules.setdefault(chain, []).append(rest)
    dropped: dict[str, list[Packet]] = {}
    for hook, packet in _packets(state):
        chain = hook.upper()
        if chain in policies and _legacy_drops(rules.get(chain, []), policies[chain], packet):
            dropped.setdefault(chain, []).append(packet)
    return [_of_legacy(chain, packets, state.own_links) for chain, packets in dropped.items()]


def _legacy_drops(rules: list[str], policy: str, packet: Packet) -> bool:
    """Whether a chain of ip6tables-legacy surely drops the packet. Only matches on links are
    understood; a rule with others may or may not apply."""
    for rule in rules:
        words = rule.split(" ")
        options = dict(zip(words[::2], words[1::2], strict=False))
        target = options.pop("-j", "")
        ways = ((options.pop("-i", "+"), packet.came_in), (options.pop("-o", "+"), packet.goes_out))
        if not all(fnmatchcase(name, pattern.replace("+", "*")) for pattern, name in ways):
            continue
        if options or target not in ("ACCEPT", "DROP", "REJECT"):
            return False
        return target != "ACCEPT"
    return policy == "DROP"


def _of_legacy(chain: str, packets: list[Packet], links: Sequence[str]) -> Finding:
    ways = {"FORWARD": ("-i", "-o"), "INPUT": ("-i",), "OUTPUT": ("-o",)}[chain]
    what = dict.fromkeys(packet.what for packet in packets)
    return Finding(
        "fail",
        f"chain {chain} of ip6tables-legacy drops {', '.join(what)}",
        "also add it where the rules come from",
        run=tuple(
            f"ip6tables-legacy -I {chain} {way} {quoted(name.replace('*', '+'))} -j ACCEPT"
            for name in patterns(links)
            for way in ways
        ),
    )
