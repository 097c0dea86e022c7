# SPDX-License-Identifier: Apache-2.0
"""What the packet filter of the node does with pods' packets, whoever loaded the rules.

The rules are read from the kernel, so no `nft` program is needed, and a few packets that pods live
by are followed through them. A rule that cannot be understood decides nothing here: whether packets
really pass, `reach` finds out by sending some.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mycelium_cni import guard
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nf
from mycelium_cni.kernel.address import parse_address
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.pod.attachment import LINK_PREFIX
from mycelium_ctl import programs
from mycelium_ctl.checks.finding import Finding, ok, skip
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.units import patterns

Verdict = Literal["accept", "drop", "continue", "unknown"]

_FAMILIES: Final = {1: "inet", 10: "ip6", 7: "bridge"}
_INET_HOOKS: Final = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
_BRIDGE_HOOKS: Final = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
_ELSEWHERE: Final = parse_address("4ff:ffff::1")
_ECHO_REQUEST, _NEIGHBOUR_ADVERTISEMENT = 128, 136
MOST_PODS: Final = 32  # each is followed through all chains
_DEEPEST: Final = 16  # linux/netfilter/nf_tables.h, NFT_JUMP_STACK_SIZE


@dataclass(slots=True)
class Packet:
    """A packet that pods live by, as a hook sees it. Links that a hook does not know are ''."""

    what: str
    source: bytes
    destination: bytes
    came_in: str
    goes_out: str
    index_in: int
    index_out: int = 0
    icmp_type: int = _ECHO_REQUEST
    outward: bool = False  # from a pod


@dataclass(slots=True)
class Chain:
    """A chain with its rules; `hook` is '' where it is only jumped to."""

    family: int
    table: str
    name: str
    hook: str
    priority: int
    policy: int
    rules: list[list[tuple[str, dict[int, bytes]]]]

    def __str__(self) -> str:
        return f"{_FAMILIES[self.family]} {self.table} {self.name}"


def firewall(state: State) -> list[Finding] | Finding:
    """Nothing that somebody else loaded takes pods' packets away."""
    try:
        chains = read_chains()
    except OSError as error:
        return skip(f"the rules cannot be read: {error.strerror}")
    dropped: dict[str, tuple[Chain, list[tuple[str, Packet]]]] = {}
    for hook, packet in _packets(state):
        families = _BRIDGE if hook.startswith("bridge ") else _INET
        for chain in chains.values():
            if chain.hook != hook.removeprefix("bridge ") or chain.family not in families:
                continue
            if chain.table.startswith(guard.TABLE_NAME):
                continue  # it drops what it should
            verdict, where = _walk(chain, chains, packet)
            if verdict == "drop":
                dropped.setdefault(str(where), (where, []))[1].append((hook, packet))
    found = [_dropped(*each) for each in dropped.values()]
    return found + _legacy(state.own_links) or ok("no chain drops what pods send or get")


_BRIDGE, _INET = (7,), (1, 10)


def suspects() -> list[str]:
    """Chains of others that drop something, for when packets are lost and nothing else tells."""
    try:
        chains = read_chains()
    except OSError:
        return []
    return [
        str(chain)
        for chain in chains.values()
        if not chain.table.startswith(guard.TABLE_NAME)
        and (chain.policy == nf.NF_DROP or any(_takes(rule) for rule in chain.rules))
    ]


def _takes(rule: list[tuple[str, dict[int, bytes]]]) -> bool:
    return any(name == "reject" or _verdict(name, said)[0] == nf.NF_DROP for name, said in rule)


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
    sends = Packet("what pods send to the overlay", pod, _ELSEWHERE, link, tun, index, outward=True)
    sends.index_out = interface.index
    gets = Packet(
        "what the overlay sends to pods", _ELSEWHERE, pod, tun, link, interface.index, index
    )
    asks = Packet("what pods send to their node", pod, own, link, "", index, outward=True)
    told = Packet("neighbour advertisements of pods", pod, own, link, "", index, outward=True)
    told.icmp_type = _NEIGHBOUR_ADVERTISEMENT
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
            across = Packet(what, pod, other.octets, port, other.link.name, number, outward=True)
            across.index_out = other.link.index
            found.append(("bridge forward", across))
    return found


def _pod(state: State, one: Attached | None) -> tuple[tuple[str, int], bytes]:
    """The link by which the node sees pods, and a pod's address: of one that lives, or may come."""
    if one is None:
        own = state.address or bytes(16)
        name = state.config.bridge_name if state.bridged else "myc000000000000"
        return (name, 0), own[:8] + b"\xff\x0f" + bytes(5) + b"\1"
    if one.link.master and state.bridge:
        return (state.bridge.name, state.bridge.index), one.octets
    return (one.link.name, one.link.index), one.octets


def _dropped(chain: Chain, dropped: list[tuple[str, Packet]]) -> Finding:
    place = f"{_FAMILIES[chain.family]} {quoted(chain.table)} {quoted(chain.name)}"
    matches = dict.fromkeys(_let_pass(hook, packet) for hook, packet in dropped)
    what = dict.fromkeys(packet.what for _, packet in dropped)
    return Finding(
        "fail",
        f"chain {chain} drops {', '.join(what)}",
        "make it lasting where the rules come from, or they are back with the next reload",
        run=tuple(f"nft insert rule {place} {match} accept" for match in matches),
    )


def _let_pass(hook: str, packet: Packet) -> str:
    """A match for the packets of all pods that go that way, and for as little else as possible."""
    came_in = packet.came_in and (packet.outward or not packet.goes_out or hook == "prerouting")
    way, name = ("iifname", packet.came_in) if came_in else ("oifname", packet.goes_out)
    # Host links come and go, each with a name of its own.
    return f"{way} {quoted('myc*' if name.startswith(LINK_PREFIX) else name)}"


# Reading


def read_chains() -> dict[tuple[int, str, str], Chain]:
    """All chains of the families that see IPv6, with their rules in order. Raises OSError."""
    chains: dict[tuple[int, str, str], Chain] = {}
    with nl.Socket(nf.NETLINK_NETFILTER) as socket:
        dormant = set()
        for payload in socket.dump(nf.message(nf.NFT_MSG_GETTABLE, 0, "list tables")):
            said = nl.decode(payload, 4)
            if int.from_bytes(said.get(nf.NFTA_TABLE_FLAGS, b""), "big") & _DORMANT:
                dormant.add((payload[0], nl.text(said[nf.NFTA_TABLE_NAME])))
        for payload in socket.dump(nf.message(nf.NFT_MSG_GETCHAIN, 0, "list chains")):
            family, said = payload[0], nl.decode(payload, 4)
            table = nl.text(said[nf.NFTA_CHAIN_TABLE])
            if family not in _FAMILIES or (family, table) in dormant:
                continue
            name = nl.text(said[nf.NFTA_CHAIN_NAME])
            hook = nl.decode(said.get(nf.NFTA_CHAIN_HOOK, b""), 0)
            number = int.from_bytes(hook.get(nf.NFTA_HOOK_HOOKNUM, b"\xff"), "big")
            priority = hook.get(nf.NFTA_HOOK_PRIORITY, bytes(4))
            hooks = _BRIDGE_HOOKS if family == nf.NFPROTO_BRIDGE else _INET_HOOKS
            chains[family, table, name] = Chain(
                *(family, table, name, hooks.get(number, "")),
                int.from_bytes(priority, "big", signed=True),
                int.from_bytes(said.get(nf.NFTA_CHAIN_POLICY, b"\1"), "big"),
                [],
            )
        for payload in socket.dump(nf.message(nf.NFT_MSG_GETRULE, 0, "list rules")):
            family, said = payload[0], nl.decode(payload, 4)
            key = (family, nl.text(said[nf.NFTA_RULE_TABLE]), nl.text(said[nf.NFTA_RULE_CHAIN]))
            if key in chains:
                chains[key].rules.append(_expressions(said.get(nf.NFTA_RULE_EXPRESSIONS, b"")))
    return chains


_DORMANT = 1  # linux/netfilter/nf_tables.h, NFT_TABLE_F_DORMANT


def _expressions(listed: bytes) -> list[tuple[str, dict[int, bytes]]]:
    found = []
    for _, element in nl.attributes(listed, 0):
        said = nl.decode(element, 0)
        data = nl.decode(said.get(nf.NFTA_EXPR_DATA, b""), 0)
        found.append((nl.text(said[nf.NFTA_EXPR_NAME]), data))
    return found


# Following a packet

_ASIDE: Final = {"counter", "log", "limit", "notrack", "last", "quota"}


def _walk(
    chain: Chain, chains: dict[tuple[int, str, str], Chain], packet: Packet, depth: int = 0
) -> tuple[Verdict, Chain]:
    """What becomes of the packet, and in which chain that is decided."""
    unsure = False
    for rule in chain.rules:
        matches, code, target = _judge(rule, packet)
        if matches is False or code is None:
            continue
        verdict: Verdict = "continue"
        where = chain
        if code == nf.NF_DROP:
            verdict = "drop"
        elif code == nf.NF_ACCEPT:
            verdict = "accept"
        elif code == nf.NFT_RETURN:
            if matches is None:
                unsure = True
                continue
            break
        elif target is not None and depth < _DEEPEST:
            there = chains.get((chain.family, chain.table, target))
            if there is not None:
                verdict, where = _walk(there, chains, packet, depth + 1)
        if verdict in ("drop", "accept", "unknown"):
            if matches is None or verdict == "unknown":
                unsure = True  # somebody's rule may apply, or not
                continue
            return ("unknown" if unsure else verdict), where
        if code == nf.NFT_GOTO and matches:
            break
    if chain.hook and chain.policy == nf.NF_DROP:
        return ("unknown" if unsure else "drop"), chain
    return ("unknown" if unsure else "continue"), chain


def _judge(
    rule: list[tuple[str, dict[int, bytes]]], packet: Packet
) -> tuple[bool | None, int | None, str | None]:
    """Whether the rule matches (None: cannot be told), and its verdict with the chain it names."""
    matches: bool | None = True
    registers: dict[int, bytes | None] = {}
    for name, said in rule:
        if name in _ASIDE:
            continue
        if name == "reject":
            return matches, nf.NF_DROP, None
        if name == "immediate":
            code, target = _verdict(name, said)
            if code is not None:
                return matches, code, target
            matches = None
        elif name == "meta" and _META_DREG in said:
            registers[_number(said, _META_DREG)] = _meta(_number(said, _META_KEY), packet)
        elif name == "payload" and _PAYLOAD_DREG in said:
            registers[_number(said, _PAYLOAD_DREG)] = _payload(said, packet)
        elif name == "ct" and _number(said, _CT_KEY) == nf.NFT_CT_STATE:
            # The first packet of a connection; neighbour discovery is not tracked.
            told = packet.icmp_type == _NEIGHBOUR_ADVERTISEMENT
            registers[_number(said, _CT_DREG)] = nf.host32(_UNTRACKED if told else _NEW)
        elif name == "bitwise":
            registers[_number(said, 2)] = _bitwise(said, registers.get(_number(said, 1)))
        elif name == "cmp":
            held = _compare(said, registers.get(_number(said, 1)))
            if held is False:
                return False, None, None
            matches = matches if held else None
        else:
            matches = None
    return matches, None, None


_META_KEY, _META_DREG, _PAYLOAD_DREG, _CT_KEY, _CT_DREG = 2, 1, 1, 2, 1
_NEW, _UNTRACKED = 8, 64  # linux/netfilter/nf_conntrack_common.h, NF_CT_STATE_BIT


def _number(said: dict[int, bytes], key: int) -> int:
    return int.from_bytes(said.get(key, b""), "big")


def _verdict(name: str, said: dict[int, bytes]) -> tuple[int | None, str | None]:
    """Code and target of an `immediate` that is a verdict; (None, None) of anything else."""
    if name != "immediate" or _number(said, 1) != nf.NFT_REG_VERDICT:
        return None, None
    verdict = nl.decode(nl.decode(said.get(2, b""), 0).get(nf.NFTA_DATA_VERDICT, b""), 0)
    code = int.from_bytes(verdict.get(nf.NFTA_VERDICT_CODE, bytes(4)), "big", signed=True)
    target = verdict.get(nf.NFTA_VERDICT_CHAIN)
    return code, nl.text(target) if target else None


def _meta(key: int, packet: Packet) -> bytes | None:
    """What `meta` loads for this packet; None for what it does not tell."""
    if key == nf.NFT_META_NFPROTO:
        return bytes((nf.NFPROTO_IPV6,))
    if key == nf.NFT_META_PROTOCOL:
        return nf.ETH_P_IPV6
    if key == nf.NFT_META_L4PROTO:
        return bytes((nf.IPPROTO_ICMPV6,))
    if key in (nf.NFT_META_IIFNAME, _NFT_META_OIFNAME):
        name = packet.came_in if key == nf.NFT_META_IIFNAME else packet.goes_out
        return name.encode("utf-8", "surrogateescape").ljust(16, b"\0")
    if key in (nf.NFT_META_IIF, _NFT_META_OIF):
        index = packet.index_in if key == nf.NFT_META_IIF else packet.index_out
        return index.to_bytes(4, "little") if index else None
    return None


_NFT_META_OIF, _NFT_META_OIFNAME = 5, 7  # linux/netfilter/nf_tables.h


def _payload(said: dict[int, bytes], packet: Packet) -> bytes | None:
    base, offset, size = (_number(said, key) for key in (2, 3, 4))
    if base == nf.NFT_PAYLOAD_NETWORK_HEADER:
        header = b"\x60" + bytes(5) + bytes((nf.IPPROTO_ICMPV6, 64))
        header += packet.source + packet.destination
        return header[offset : offset + size] if offset + size <= len(header) else None
    if base == nf.NFT_PAYLOAD_TRANSPORT_HEADER and offset + size <= 2:
        return bytes((packet.icmp_type, 0))[offset : offset + size]
    return None


def _bitwise(said: dict[int, bytes], value: bytes | None) -> bytes | None:
    mask = nl.decode(said.get(4, b""), 0).get(nf.NFTA_DATA_VALUE)
    flip = nl.decode(said.get(5, b""), 0).get(nf.NFTA_DATA_VALUE)
    if value is None or mask is None or flip is None:
        return None
    return bytes(v & m ^ x for v, m, x in zip(value, mask, flip, strict=False))


def _compare(said: dict[int, bytes], value: bytes | None) -> bool | None:
    wanted = nl.decode(said.get(3, b""), 0).get(nf.NFTA_DATA_VALUE)
    if value is None or wanted is None:
        return None
    op, held = _number(said, 2), value[: len(wanted)]
    if op == nf.NFT_CMP_EQ:
        return held == wanted
    if op == nf.NFT_CMP_NEQ:
        return held != wanted
    return None


# Rules of the other kind


def _legacy(links: Sequence[str]) -> list[Finding]:
    """iptables-legacy has tables of its own, which nobody else sees."""
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
    found = []
    for line in done.stdout.splitlines():
        chain, _, rest = line.removeprefix(":").partition(" ")
        if line.startswith(":") and chain in ("FORWARD", "INPUT", "OUTPUT"):
            if rest.startswith("DROP"):
                found.append(_of_legacy(chain, f"its policy is DROP ({chain})", links))
        elif line in (f"-A {c} -j DROP" for c in ("FORWARD", "INPUT", "OUTPUT")):
            found.append(_of_legacy(line.split()[1], f"`{line}`", links))
    return found


def _of_legacy(chain: str, why: str, links: Sequence[str]) -> Finding:
    ways = {"FORWARD": ("-i", "-o"), "INPUT": ("-i",), "OUTPUT": ("-o",)}[chain]
    return Finding(
        "fail",
        f"ip6tables-legacy drops in chain {chain} what pods send or get: {why}",
        "make it lasting where the rules come from",
        run=tuple(
            f"ip6tables-legacy -I {chain} {way} {quoted(name.replace('*', '+'))} -j ACCEPT"
            for name in patterns(links)
            for way in ways
        ),
    )
