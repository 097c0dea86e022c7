# SPDX-License-Identifier: Apache-2.0
"""What the node's packet filter does with pods' packets, including other programs' rules.

A few packets that every pod needs are followed through the rules. Rules that are not understood are
left undecided; `reach` sends packets to find out.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from mycelium_cni import guard
from mycelium_cni.kernel.address import covers, parse_address, parse_prefix
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.pod.attachment import LINK_PREFIX
from mycelium_ctl import programs
from mycelium_ctl.checks.finding import Finding, ok, skip
from mycelium_ctl.checks.ruleset import (
    FAMILIES,
    NEIGHBOUR_ADVERTISEMENT,
    NETDEV,
    Chain,
    Packet,
    Ruleset,
    Verdict,
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
        for chain in ruleset.chains.values():
            if not _passes(hook, packet, chain):
                continue
            if chain.table.startswith(guard.TABLE_NAME):
                continue  # the guard drops on purpose
            verdict, where = ruleset.follow(chain, packet)
            if verdict == "drop":
                dropped.setdefault(str(where), (where, []))[1].append((hook, packet))
    found = [_dropped(*each) for each in dropped.values()]
    return found + _legacy(state) or ok("no chain drops what pods send or receive")


def _passes(hook: str, packet: Packet, chain: Chain) -> bool:
    """Whether a packet at that hook passes a chain."""
    family, _, name = hook.rpartition(" ")
    if chain.hook != name or chain.family not in _SEEN_BY[family]:
        return False
    return not chain.devices or (packet.came_in or packet.goes_out) in chain.devices


_SEEN_BY: Final = {"": (1, 10), "bridge": (7,), "link": (NETDEV, 1)}


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
    # A link may be the first and the last that sees a packet: the pod's own, or the daemon's.
    port = (one.link.name, one.link.index) if one else (link, index)
    found = [
        *(("prerouting", each) for each in (sends, gets, asks)),
        *(("forward", each) for each in (sends, gets)),
        *(("input", each) for each in (asks, told)),
        ("output", to_pod),
        *(("postrouting", each) for each in (sends, gets, to_pod)),
        ("link ingress", _at(sends, came_in=port)),
        ("link egress", _at(gets, goes_out=port)),
        ("link ingress", _at(gets, came_in=(tun, interface.index))),
        ("link egress", _at(sends, goes_out=(tun, interface.index))),
    ]
    # Connections to the node may be refused on purpose; its own, to a pod's probes, get answers.
    answers = asks._replace(what="what pods answer their node", answer=True)
    found += [
        (hook, each._replace(icmp_type=0))
        for hook, each in (*found, ("input", answers))
        if each not in (asks, told)
    ]
    if one and one.link.master:
        framed = Packet("what pods send on their bridge", pod, own, *("", ""), 0, outward=True)
        framed = _at(framed, came_in=port)
        found += [("bridge prerouting", framed), ("bridge input", framed)]
        others = [a for a in state.attachments if a.link.master and a is not one and a.octets]
        for other in others[:1]:
            what = "what pods of the bridge send each other"
            to = other.link
            across = Packet(what, pod, other.octets, *(port[0], to.name, port[1], to.index))
            found.append(("bridge forward", across._replace(outward=True)))
    return found


def _at(
    packet: Packet, came_in: tuple[str, int] = ("", 0), goes_out: tuple[str, int] = ("", 0)
) -> Packet:
    """The packet where only that link is known."""
    return packet._replace(
        came_in=came_in[0], index_in=came_in[1], goes_out=goes_out[0], index_out=goes_out[1]
    )


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
    return Finding(
        "fail",
        f"chain {chain} drops {_whose(packet for _, packet in dropped)}",
        "also add it where the rules come from, or the next reload undoes it",
        run=tuple(f"nft insert rule {place} {match} accept" for match in matches),
    )


def _whose(packets: Iterable[Packet]) -> str:
    """What is dropped, in words, with "over TCP" if only TCP is."""
    dropped = list(packets)
    whole = {packet.what for packet in dropped if packet.icmp_type}
    named = {p.what if p.what in whole else f"{p.what} over TCP": None for p in dropped}
    return ", ".join(named)


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
            if not listed.read().split():
                return []
    except OSError:
        return []
    try:
        done = programs.run(["ip6tables-legacy-save"])
    except (OSError, subprocess.TimeoutExpired):
        return [
            Finding(
                "warn",
                "ip6tables-legacy has rules, which cannot be read without ip6tables-legacy-save",
                "install iptables, or move the rules to nf_tables",
            )
        ]
    table = ""
    tables: dict[str, dict[str, _LegacyChain]] = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.removeprefix(":").removeprefix("-A ").partition(" ")
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            tables.setdefault(table, {})[name] = _LegacyChain(rest.split(" ")[0], [])
        elif line.startswith("-A "):
            tables[table][name].rules.append(rest)
    dropped: dict[tuple[str, str], list[Packet]] = {}
    for hook, packet in _packets(state):
        for table, chains in tables.items():
            if hook.upper() in chains and _legacy_verdict(chains, hook.upper(), packet) == "drop":
                dropped.setdefault((table, hook.upper()), []).append(packet)
    return [_of_legacy(*where, packets, state.own_links) for where, packets in dropped.items()]


class _LegacyChain(NamedTuple):
    policy: str  # "-" of a chain that is only jumped to
    rules: list[str]


def _legacy_verdict(chains: Mapping[str, _LegacyChain], name: str, packet: Packet) -> Verdict:
    """What a chain of ip6tables-legacy does with the packet. Only matches on links, addresses and
    protocols are understood; a rule with others may or may not apply."""
    unsure = False
    for rule in chains[name].rules:
        words = rule.split(" ")
        options = dict(zip(words[::2], words[1::2], strict=False))
        target = options.pop("-j", "")
        if not _legacy_matches(options, packet):
            continue
        verdict: Verdict = "continue"
        if target in ("ACCEPT", "DROP", "REJECT"):
            verdict = "accept" if target == "ACCEPT" else "drop"
        elif target in chains:
            verdict = _legacy_verdict(chains, target, packet)
        elif target not in ("LOG", "CT", "MARK", ""):
            verdict = "unknown"  # includes RETURN
        if options and verdict != "continue":
            verdict = "unknown"
        if verdict in ("accept", "drop"):
            return "unknown" if unsure else verdict
        unsure = unsure or verdict == "unknown"
    if chains[name].policy == "DROP":
        return "unknown" if unsure else "drop"
    return "unknown" if unsure else "continue"


def _legacy_matches(options: dict[str, str], packet: Packet) -> bool:
    """Whether a rule's options allow the packet; those that are understood are removed."""
    protocol = "ipv6-icmp" if packet.icmp_type else "tcp"
    links = ((options.pop("-i", "+"), packet.came_in), (options.pop("-o", "+"), packet.goes_out))
    ends = (
        (options.pop("-s", "::/0"), packet.source),
        (options.pop("-d", "::/0"), packet.destination),
    )
    return (
        options.pop("-p", protocol) == protocol
        and all(fnmatchcase(name, pattern.replace("+", "*")) for pattern, name in links)
        and all(covers(parse_prefix(prefix), address) for prefix, address in ends)
    )


def _of_legacy(table: str, chain: str, packets: list[Packet], links: Sequence[str]) -> Finding:
    ways = {
        "PREROUTING": ("-i",),
        "FORWARD": ("-i", "-o"),
        "INPUT": ("-i",),
        "OUTPUT": ("-o",),
        "POSTROUTING": ("-o",),
    }[chain]
    return Finding(
        "fail",
        f"chain {chain} of ip6tables-legacy, table {table}, drops {_whose(packets)}",
        "also add it where the rules come from",
        run=tuple(
            f"ip6tables-legacy -t {table} -I {chain} {way} {quoted(name.replace('*', '+'))} "
            "-j ACCEPT"
            for name in patterns(links)
            for way in ways
        ),
    )
