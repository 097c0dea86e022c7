# SPDX-License-Identifier: Apache-2.0
"""The rules of the packet filter as the kernel has them, and what they do to a packet.

They are read over netlink, so no `nft` program is needed. A packet is followed by
its known fields; where a rule matches anything else, the result is None or "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator
from socket import IPPROTO_TCP
from typing import Final, Literal, NamedTuple

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nf

Verdict = Literal["accept", "drop", "continue", "unknown"]
Expression = tuple[str, dict[int, bytes]]
Decision = tuple[int | None, str | None]  # code and chain of a verdict

FAMILIES: Final = {1: "inet", 5: "netdev", 10: "ip6", 7: "bridge"}
# linux/netfilter.h, netfilter_bridge.h, netfilter_netdev.h.
HOOKS: Final = {
    0: "prerouting",
    1: "input",
    2: "forward",
    3: "output",
    4: "postrouting",
    5: "ingress",
}
NETDEV: Final = 5  # NFPROTO_NETDEV
HOOKS_OF_NETDEV: Final = {0: "ingress", 1: "egress"}
ECHO_REQUEST, NEIGHBOUR_ADVERTISEMENT = 128, 136
_DEEPEST: Final = 16  # linux/netfilter/nf_tables.h, NFT_JUMP_STACK_SIZE


class Packet(NamedTuple):
    """A packet that pods need, as a hook sees it. Links that a hook does not know are ''."""

    what: str
    source: bytes
    destination: bytes
    came_in: str
    goes_out: str
    index_in: int
    index_out: int = 0
    icmp_type: int = ECHO_REQUEST  # 0 of a TCP segment, whose ports are not known
    outward: bool = False  # from a pod
    answer: bool = False  # to what came the other way


class Chain(NamedTuple):
    """A chain with its rules; `hook` is '' if it is only jumped to, `devices` are those of ingress
    and egress."""

    family: int
    table: str
    name: str
    hook: str
    priority: int
    policy: int
    rules: list[list[Expression]]
    devices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{FAMILIES[self.family]} {self.table} {self.name}"


class Ruleset:
    """All chains of the families that see IPv6, with their rules in order. Raises OSError."""

    def __init__(self) -> None:
        self._sets: dict[tuple[int, str, str], dict[bytes, Decision] | None] = {}
        with nl.Socket(nl.NETLINK_NETFILTER) as socket:
            self.chains: Final = _read_chains(socket)

    def elements(self, family: int, table: str, name: str) -> dict[bytes, Decision] | None:
        """The elements of a set, with the verdicts of a map; None if they are not plain values."""
        key = (family, table, name)
        if key not in self._sets:
            with nl.Socket(nl.NETLINK_NETFILTER) as socket:
                self._sets[key] = _read_elements(socket, *key)
        return self._sets[key]

    def follow(self, chain: Chain, packet: Packet, depth: int = 0) -> tuple[Verdict, Chain]:
        """The verdict on the packet, and the chain that decides it."""
        unsure = False
        for rule in chain.rules:
            matches, (code, target) = self._judge(chain, rule, packet)
            if matches is False or code is None:
                unsure = unsure or (matches is None and any(takes(each) for each in rule))
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
                there = self.chains.get((chain.family, chain.table, target))
                if there is not None:
                    verdict, where = self.follow(there, packet, depth + 1)
            if verdict in ("drop", "accept", "unknown"):
                if matches is None or verdict == "unknown":
                    unsure = True  # the rule may apply, or not
                    continue
                return ("unknown" if unsure else verdict), where
            if code == nf.NFT_GOTO and matches:
                break
        if chain.hook and chain.policy == nf.NF_DROP:
            return ("unknown" if unsure else "drop"), chain
        return ("unknown" if unsure else "continue"), chain

    def _judge(
        self, chain: Chain, rule: list[Expression], packet: Packet
    ) -> tuple[bool | None, Decision]:
        """Whether the rule matches (None: cannot be told), and its verdict."""
        matches: bool | None = True
        registers: dict[int, bytes | None] = {}
        for name, said in rule:
            if name in _ASIDE:
                continue
            if name == "reject" or (name == "target" and nl.text(said[_XT_NAME]) == "REJECT"):
                return matches, (nf.NF_DROP, None)
            if name == "immediate":
                decision = verdict_of(name, said)
                if decision[0] is not None:
                    return matches, decision
                matches = None
            elif name == "match":
                held = _match_of_iptables(said, packet)
                if held is False:
                    return False, (None, None)
                matches = matches if held else None
            elif name in _LOADERS:
                register, value = _load(name, said, packet, registers)
                registers[register] = value
                if value is None and register == 0:
                    matches = None
            elif name == "cmp":
                held = _compare(said, registers.get(_number(said, 1)))
                if held is False:
                    return False, (None, None)
                matches = matches if held else None
            elif name == "lookup":
                found = self._look_up(chain, said, registers.get(_number(said, 2)))
                if found is False:
                    return False, (None, None)
                if found is None or matches is None:
                    matches = None
                elif found is not True:
                    return matches, found
            else:
                matches = None
        return matches, (None, None)

    def _look_up(
        self, chain: Chain, said: dict[int, bytes], value: bytes | None
    ) -> bool | Decision | None:
        """Whether a set has the value, or the verdict that a map has for it."""
        elements = self.elements(chain.family, chain.table, nl.text(said.get(1, b"")))
        if value is None or elements is None:
            return None
        inverted = bool(_number(said, 5) & nf.NFT_LOOKUP_F_INV)
        found = next((key for key in elements if value[: len(key)] == key), None)
        if _NFTA_LOOKUP_DREG in said and found is not None:
            return elements[found]
        return (found is not None) != inverted


_NFTA_LOOKUP_DREG = 3  # linux/netfilter/nf_tables.h


def _read_chains(socket: nl.Socket) -> dict[tuple[int, str, str], Chain]:
    chains: dict[tuple[int, str, str], Chain] = {}
    dormant = set()
    for payload in socket.dump(nf.message(nf.NFT_MSG_GETTABLE, 0, "list tables")):
        said = nl.decode(payload, 4)
        if int.from_bytes(said.get(nf.NFTA_TABLE_FLAGS, b""), "big") & _DORMANT:
            dormant.add((payload[0], nl.text(said[nf.NFTA_TABLE_NAME])))
    for payload in socket.dump(nf.message(nf.NFT_MSG_GETCHAIN, 0, "list chains")):
        family, said = payload[0], nl.decode(payload, 4)
        table = nl.text(said[nf.NFTA_CHAIN_TABLE])
        if family not in FAMILIES or (family, table) in dormant:
            continue
        name = nl.text(said[nf.NFTA_CHAIN_NAME])
        hook = nl.decode(said.get(nf.NFTA_CHAIN_HOOK, b""), 0)
        number = int.from_bytes(hook.get(nf.NFTA_HOOK_HOOKNUM, b"\xff"), "big")
        priority = hook.get(nf.NFTA_HOOK_PRIORITY, bytes(4))
        listed = nl.attributes(hook.get(_NFTA_HOOK_DEVS, b""), 0)
        devices = [value for _, value in listed] or [hook.get(_NFTA_HOOK_DEV, b"")]
        chains[family, table, name] = Chain(
            *(family, table, name),
            (HOOKS_OF_NETDEV if family == NETDEV else HOOKS).get(number, ""),
            int.from_bytes(priority, "big", signed=True),
            int.from_bytes(said.get(nf.NFTA_CHAIN_POLICY, b"\1"), "big"),
            [],
            tuple(nl.text(each) for each in devices if each),
        )
    for payload in socket.dump(nf.message(nf.NFT_MSG_GETRULE, 0, "list rules")):
        family, said = payload[0], nl.decode(payload, 4)
        key = (family, nl.text(said[nf.NFTA_RULE_TABLE]), nl.text(said[nf.NFTA_RULE_CHAIN]))
        if key in chains:
            chains[key].rules.append(expressions_of(said.get(nf.NFTA_RULE_EXPRESSIONS, b"")))
    return chains


# linux/netfilter/nf_tables.h; the first is NFT_TABLE_F_DORMANT.
_DORMANT, _NFTA_HOOK_DEV, _NFTA_HOOK_DEVS = 1, 3, 4


def _read_elements(
    socket: nl.Socket, family: int, table: str, name: str
) -> dict[bytes, Decision] | None:
    found: dict[bytes, Decision] = {}
    question = nf.Table(family, table).elements(nf.NFT_MSG_GETSETELEM, name, [])
    try:
        payloads = socket.dump(question)
    except nl.NetlinkError:
        return None  # gone meanwhile
    for payload in payloads:
        listed = nl.decode(payload, 4).get(nf.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
        for _, element in nl.attributes(listed, 0):
            said = nl.decode(element, 0)
            if nf.NFTA_SET_ELEM_FLAGS in said or nf.NFTA_SET_ELEM_KEY not in said:
                return None  # intervals
            key = nl.decode(said[nf.NFTA_SET_ELEM_KEY], 0)[nf.NFTA_DATA_VALUE]
            found[key] = _decision(said.get(nf.NFTA_SET_ELEM_DATA, b""))
    return found


def expressions_of(listed: bytes) -> list[Expression]:
    """Name and attributes of each expression of NFTA_RULE_EXPRESSIONS."""
    found = []
    for _, element in nl.attributes(listed, 0):
        said = nl.decode(element, 0)
        data = nl.decode(said.get(nf.NFTA_EXPR_DATA, b""), 0)
        found.append((nl.text(said[nf.NFTA_EXPR_NAME]), data))
    return found


class Dropping(NamedTuple):
    """A rule that counts what it drops; `reason` is its comment, or else its handle."""

    table: str
    chain: str
    reason: str
    packets: int


def read_dropping() -> Iterator[Dropping]:
    """The rules of all tables that count what they drop. Raises OSError."""
    with nl.Socket(nl.NETLINK_NETFILTER) as socket:
        payloads = socket.dump(nf.message(nf.NFT_MSG_GETRULE, 0, "list rules"))
    for payload in payloads:
        said = nl.decode(payload, 4)
        expressions = expressions_of(said.get(nf.NFTA_RULE_EXPRESSIONS, b""))
        counted = [
            _number(data, _COUNTER_PACKETS) for name, data in expressions if name == "counter"
        ]
        if counted and any(takes(each) for each in expressions):
            comment = said.get(nf.NFTA_RULE_USERDATA, b"\0\0")[2:].rstrip(b"\0")
            yield Dropping(
                nl.text(said[nf.NFTA_RULE_TABLE]),
                nl.text(said[nf.NFTA_RULE_CHAIN]),
                comment.decode("utf-8", "replace") or str(_number(said, _RULE_HANDLE)),
                counted[0],
            )


_COUNTER_PACKETS, _RULE_HANDLE = 2, 3  # linux/netfilter/nf_tables.h

# Expressions that load a register, and those that do not affect whether a rule matches.
_LOADERS: Final = {"meta", "payload", "ct", "bitwise"}
_ASIDE: Final = {"counter", "log", "limit", "notrack", "last", "quota"}


def takes(expression: Expression) -> bool:
    """Whether an expression drops packets, or passes them to something that may."""
    name, said = expression
    return name in ("reject", "queue", "fwd") or verdict_of(name, said)[0] == nf.NF_DROP


def _load(
    name: str, said: dict[int, bytes], packet: Packet, registers: dict[int, bytes | None]
) -> tuple[int, bytes | None]:
    """The register that an expression loads, and with what; 0 if it does something else."""
    if name == "meta" and _META_DREG in said:
        return _number(said, _META_DREG), _meta(_number(said, _META_KEY), packet)
    if name == "payload" and _PAYLOAD_DREG in said:
        return _number(said, _PAYLOAD_DREG), _payload(said, packet)
    if name == "ct" and _number(said, _CT_KEY) == nf.NFT_CT_STATE:
        return _number(said, _CT_DREG), nf.host32(_state(packet))
    if name == "bitwise":
        return _number(said, 2), _bitwise(said, registers.get(_number(said, 1)))
    return 0, None


_META_KEY, _META_DREG, _PAYLOAD_DREG, _CT_KEY, _CT_DREG = 2, 1, 1, 2, 1
# linux/netfilter/nf_conntrack_common.h, NF_CT_STATE_BIT
_ESTABLISHED, _NEW, _UNTRACKED = 2, 8, 64


def _number(said: dict[int, bytes], key: int) -> int:
    return int.from_bytes(said.get(key, b""), "big")


def verdict_of(name: str, said: dict[int, bytes]) -> Decision:
    """Code and chain of an `immediate` that is a verdict; (None, None) of anything else."""
    if name != "immediate" or _number(said, 1) != nf.NFT_REG_VERDICT:
        return None, None
    return _decision(said.get(2, b""))


def _decision(data: bytes) -> Decision:
    """The verdict in NFTA_DATA_*; (None, None) if it is a value."""
    listed = nl.decode(data, 0).get(nf.NFTA_DATA_VERDICT)
    if listed is None:
        return None, None
    verdict = nl.decode(listed, 0)
    code = int.from_bytes(verdict.get(nf.NFTA_VERDICT_CODE, bytes(4)), "big", signed=True)
    target = verdict.get(nf.NFTA_VERDICT_CHAIN)
    return code, nl.text(target) if target else None


def _meta(key: int, packet: Packet) -> bytes | None:
    """What `meta` loads for this packet; None if that is unknown."""
    if key == nf.NFT_META_NFPROTO:
        return bytes((nf.NFPROTO_IPV6,))
    if key == nf.NFT_META_PROTOCOL:
        return nf.ETH_P_IPV6
    if key == nf.NFT_META_L4PROTO:
        return bytes((_protocol(packet),))
    if key in (nf.NFT_META_IIFNAME, _NFT_META_OIFNAME):
        name = packet.came_in if key == nf.NFT_META_IIFNAME else packet.goes_out
        return name.encode("utf-8", "surrogateescape").ljust(16, b"\0")
    if key in (nf.NFT_META_IIF, _NFT_META_OIF):
        index = packet.index_in if key == nf.NFT_META_IIF else packet.index_out
        return index.to_bytes(4, "little") if index else None
    return None


_NFT_META_OIF, _NFT_META_OIFNAME = 5, 7  # linux/netfilter/nf_tables.h


def _match_of_iptables(said: dict[int, bytes], packet: Packet) -> bool | None:
    """Whether a match of ip6tables, in its own binary form, holds for the packet; None if unknown.
    Only a match on the state of a connection is understood (xt_conntrack, revision 3)."""
    name, info = nl.text(said[_XT_NAME]), said.get(_XT_INFO, b"")
    if name == "comment":
        return True
    if name != "conntrack" or _number(said, _XT_REVISION) != _CONNTRACK or len(info) < 152:
        return None
    flags, inverted, states = (
        int.from_bytes(info[at : at + 2], "little") for at in (146, 148, 150)
    )
    if flags != _XT_CONNTRACK_STATE:
        return None
    return bool(states & _state(packet)) != bool(inverted & _XT_CONNTRACK_STATE)


# linux/netfilter/nf_tables_compat.h (the same for matches and targets), xt_conntrack.h
_XT_NAME, _XT_REVISION, _XT_INFO, _CONNTRACK, _XT_CONNTRACK_STATE = 1, 2, 3, 3, 1


def _state(packet: Packet) -> int:
    """The state of its connection; neighbour discovery is not tracked."""
    if packet.icmp_type == NEIGHBOUR_ADVERTISEMENT:
        return _UNTRACKED
    return _ESTABLISHED if packet.answer else _NEW


def _payload(said: dict[int, bytes], packet: Packet) -> bytes | None:
    base, offset, size = (_number(said, key) for key in (2, 3, 4))
    if base == nf.NFT_PAYLOAD_NETWORK_HEADER:
        header = b"\x60" + bytes(5) + bytes((_protocol(packet), 64))
        header += packet.source + packet.destination
        return header[offset : offset + size] if offset + size <= len(header) else None
    if base != nf.NFT_PAYLOAD_TRANSPORT_HEADER:
        return None
    if packet.icmp_type and offset + size <= 2:
        return bytes((packet.icmp_type, 0))[offset : offset + size]
    if not packet.icmp_type and (offset, size) == (_TCP_FLAGS_OFFSET, 1):
        return _SYN_ACK if packet.answer else _SYN
    return None


_TCP_FLAGS_OFFSET, _SYN, _SYN_ACK = 13, b"\x02", b"\x12"  # RFC 9293, section 3.1


def _protocol(packet: Packet) -> int:
    return nf.IPPROTO_ICMPV6 if packet.icmp_type else IPPROTO_TCP


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
