# SPDX-License-Identifier: Apache-2.0
"""The content of one of our tables, read either from our messages to the kernel or from its answer.

The two are compared without what has no meaning: the kernel adds counters and attributes that are
zero, and does not flag nested ones. So what should be there is written once, as messages.
"""

from __future__ import annotations

from errno import EINTR, ENOENT

from mycelium_cni.guard import rules
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nf
from mycelium_cni.kernel.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    Listed = list[tuple[int, bytes]]  # kinds of messages, and their payloads
    Expression = tuple[bytes, dict[int, bytes]]
    Rule = tuple[bytes, list[Expression]]  # its comment, as user data, and what it does
    Element = tuple[str, str]  # the chain it leads to, and its comment

_HOOKED = (nf.NFTA_CHAIN_TYPE, nf.NFTA_CHAIN_HOOK, nf.NFTA_CHAIN_POLICY)
_DEFINED = (
    *(nf.NFTA_SET_FLAGS, nf.NFTA_SET_KEY_TYPE, nf.NFTA_SET_KEY_LEN),
    *(nf.NFTA_SET_DATA_TYPE, nf.NFTA_SET_TIMEOUT),
)


class Content:
    """Chains by name, each with its rules and its hook, if any; sets with their elements."""

    __slots__ = ("awake", "elements", "hooks", "rules", "sets")

    def __init__(self) -> None:
        self.awake = True
        self.hooks: dict[str, list[bytes]] = {}
        self.rules: dict[str, list[Rule]] = {}
        self.sets: dict[str, list[int]] = {}
        self.elements: dict[str, dict[bytes, Element]] = {}

    def apply(self, family: int, messages: Iterable[nl.Message]) -> Content:
        """Apply messages as the kernel applies them to its table of that family."""
        for message in messages:
            if message.body[0] == family:
                self._apply(message.kind & 0xFF, nl.decode(message.body, 4))
        return self

    def _apply(self, kind: int, said: dict[int, bytes]) -> None:
        if kind == nf.NFT_MSG_NEWTABLE:
            self.awake = not any(said[nf.NFTA_TABLE_FLAGS])
        elif kind == nf.NFT_MSG_NEWCHAIN:
            name = nl.text(said[nf.NFTA_CHAIN_NAME])
            self.hooks[name] = [said.get(each, b"") for each in _HOOKED]
            self.rules.setdefault(name, [])
        elif kind == nf.NFT_MSG_DELCHAIN:
            name = nl.text(said[nf.NFTA_CHAIN_NAME])
            del self.hooks[name], self.rules[name]
        elif kind == nf.NFT_MSG_NEWRULE:
            self.rules.setdefault(nl.text(said[nf.NFTA_RULE_CHAIN]), []).append(_rule(said))
        elif kind == nf.NFT_MSG_DELRULE:
            self.rules[nl.text(said[nf.NFTA_RULE_CHAIN])] = []
        elif kind == nf.NFT_MSG_NEWSET:
            name = nl.text(said[nf.NFTA_SET_NAME])
            self.sets[name] = [int.from_bytes(said.get(each, b""), "big") for each in _DEFINED]
            self.elements.setdefault(name, {})
        else:
            self._apply_elements(kind, said)

    def _apply_elements(self, kind: int, said: dict[int, bytes]) -> None:
        known = self.elements.setdefault(nl.text(said[nf.NFTA_SET_ELEM_LIST_SET]), {})
        listed = dict(_elements(said))
        if kind == nf.NFT_MSG_NEWSETELEM:
            known.update(listed)
        elif listed:
            for key in listed:
                known.pop(key, None)
        else:
            known.clear()

    def copy(self) -> Content:
        """One to apply messages to."""
        copy = Content()
        copy.awake = self.awake
        copy.hooks = self.hooks.copy()
        copy.rules = {name: listed.copy() for name, listed in self.rules.items()}
        copy.sets = self.sets.copy()
        copy.elements = {name: known.copy() for name, known in self.elements.items()}
        return copy

    def lacks(self, wanted: Content) -> str:
        """The first wanted thing that is missing or different; '' if there is none."""
        if not self.awake:
            return "is dormant"
        for name, hook in wanted.hooks.items():
            if self.hooks.get(name) != hook:
                return f"has another chain {name}" if name in self.hooks else f"lacks chain {name}"
            if self.rules[name] != wanted.rules[name]:
                return f"has other rules in chain {name}"
        for name, definition in wanted.sets.items():
            if self.sets.get(name) != definition:
                return f"has another set {name}" if name in self.sets else f"lacks set {name}"
        for name, elements in wanted.elements.items():
            there = self.elements.get(name, {})
            if any(there.get(key) != value for key, value in elements.items()):
                return f"lacks an element of {name}"
        return ""

    def has(self, name: str, key: bytes) -> bool:
        """Whether a set has an element with this key, not as the end of an interval."""
        return key + b"\0" in self.elements.get(name, {})

    def has_all(self, message: nl.Message) -> bool:
        """Whether it has every element that a message lists."""
        said = nl.decode(message.body, 4)
        known = self.elements.get(nl.text(said[nf.NFTA_SET_ELEM_LIST_SET]), {})
        return all(key in known for key, _ in _elements(said))

    def element(self, name: str, key: bytes) -> Element:
        """Chain and comment of an element of a map; both empty if there is none."""
        return self.elements.get(name, {}).get(key + b"\0", ("", ""))

    def is_hooked(self, name: str) -> bool:
        return any(self.hooks[name])

    def reached(self, chains: Iterable[str]) -> set[str]:
        """These chains and all that their rules lead to."""
        reached = set(chains)
        waiting = list(reached)
        while waiting:
            for _, expressions in self.rules.get(waiting.pop(), []):
                targets = {target for _, said in expressions for target in _targets(said)}
                waiting += targets - reached
                reached |= targets
        return reached

    def unused(self) -> list[str]:
        """The chains that no packet reaches, from a hook or by a map."""
        roots = {name for name in self.hooks if self.is_hooked(name)}
        for elements in self.elements.values():
            roots.update(chain for chain, _ in elements.values())
        reached = self.reached(roots)
        return [name for name in self.hooks if name not in reached]


class Tables:
    """Both of our tables as they are at one `generation`. Every transaction makes a new one: half
    of what an ADD or a DEL changes is never seen.

    Raises NetlinkError, also when the packet filter keeps changing while it is read.
    """

    __slots__ = ("bridge", "generation", "inet", "there")

    def __init__(self, socket: nf.Socket) -> None:
        patience = Patience()
        generation = socket.generation()
        while True:
            inet, bridge = _list(socket, rules.INET), _list(socket, rules.BRIDGE)
            before, generation = generation, socket.generation()
            if generation == before:
                break
            if patience.is_over:
                raise nl.NetlinkError(EINTR, "read the packet filter (it kept changing)")
        self.generation: Final = generation
        self.there: Final = bool(inet)
        self.inet: Final = _content(inet)
        self.bridge: Final = _content(bridge)

    def of(self, message: nl.Message) -> Content:
        """The table that a message is about."""
        return self.inet if message.body[0] == rules.INET.family else self.bridge

    def has(self, table: nf.Table, name: str, key: bytes, chain: str) -> bool:
        """Whether a set of a table has that element, and it leads to that chain."""
        there = self.inet if table is rules.INET else self.bridge
        return there.elements.get(name, {}).get(key + b"\0") == (chain, "")

    def lack(self, messages: list[nl.Message]) -> bool:
        """Whether one of the tables lacks what these messages add."""
        return any(
            there.lacks(Content().apply(table.family, messages))
            for table, there in ((rules.INET, self.inet), (rules.BRIDGE, self.bridge))
        )


def _list(socket: nf.Socket, table: nf.Table) -> Listed:
    """What a table consists of, not decoded yet: the shorter the reading, the less often it has to
    be repeated. Nothing if there is no such table. Raises NetlinkError."""
    found = socket.ask(table.get())[0]
    if found is None:
        return []
    listed = [(nf.NFT_MSG_NEWTABLE, found)]
    for kind in (nf.NFT_MSG_GETCHAIN, nf.NFT_MSG_GETRULE, nf.NFT_MSG_GETSET):
        named = table.name.encode() + b"\0"
        for payload in socket.dump(table.list_objects(kind)):
            # The kernel lists every table's chains.
            if nl.attribute(payload, 4, nf.NFTA_RULE_TABLE) == named:
                listed.append((kind - 1, payload))
    for kind, payload in listed[:]:
        if kind == nf.NFT_MSG_NEWSET:
            listed += _list_elements(socket, table, nl.decode(payload, 4))
    return listed


def _list_elements(socket: nf.Socket, table: nf.Table, said: dict[int, bytes]) -> Listed:
    if said.get(nf.NFTA_SET_FLAGS, b"\0")[-1] & nf.NFT_SET_EVAL:  # filled by rules, not by us
        return []
    name = nl.text(said[nf.NFTA_SET_NAME])
    try:
        payloads = socket.dump(table.elements(nf.NFT_MSG_GETSETELEM, name, []))
    except nl.NetlinkError as error:
        if error.errno != ENOENT:  # gone meanwhile
            raise
        return []
    return [(nf.NFT_MSG_NEWSETELEM, payload) for payload in payloads]


def _content(listed: Listed) -> Content:
    content = Content()
    for kind, payload in listed:
        content._apply(kind, nl.decode(payload, 4))
    return content


def _rule(said: dict[int, bytes]) -> Rule:
    listed = nl.attributes(said.get(nf.NFTA_RULE_EXPRESSIONS, b""), 0)
    return said.get(nf.NFTA_RULE_USERDATA, b""), [_expression(each) for _, each in listed]


def _expression(octets: bytes) -> Expression:
    said = nl.decode(octets, 0)
    name = said[nf.NFTA_EXPR_NAME]
    if name == b"counter\0":
        return name, {}
    data = nl.attributes(said.get(nf.NFTA_EXPR_DATA, b""), 0)
    return name, {kind: _unflagged(value) for kind, value in data if value.strip(b"\0")}


def _unflagged(value: bytes) -> bytes:
    """Without the nested flag, which only a verdict has at this depth (NFTA_DATA_VERDICT)."""
    if len(value) > 8 and value[2:4] == b"\2\x80":
        return value[:3] + b"\0" + value[4:]
    return value


def _targets(said: dict[int, bytes]) -> Iterable[str]:
    """The chain that an expression goes to, if any."""
    for value in said.values():
        if len(value) > 8 and value[2:4] == b"\2\0":
            verdict = nl.decode(nl.decode(value, 0)[nf.NFTA_DATA_VERDICT], 0)
            if nf.NFTA_VERDICT_CHAIN in verdict:
                yield nl.text(verdict[nf.NFTA_VERDICT_CHAIN])


def _elements(said: dict[int, bytes]) -> Iterable[tuple[bytes, Element]]:
    """Each key, plus a byte that says whether it is the end of an interval, and its element."""
    for _, octets in nl.attributes(said.get(nf.NFTA_SET_ELEM_LIST_ELEMENTS, b""), 0):
        each = nl.decode(octets, 0)
        key = nl.decode(each[nf.NFTA_SET_ELEM_KEY], 0)[nf.NFTA_DATA_VALUE]
        end = each.get(nf.NFTA_SET_ELEM_FLAGS, bytes(4))[3:]
        chain = words = ""
        # Most are of a pod, have no comment, and half of them lead nowhere.
        if nf.NFTA_SET_ELEM_DATA in each:
            data = nl.decode(each[nf.NFTA_SET_ELEM_DATA], 0)
            verdict = nl.decode(data.get(nf.NFTA_DATA_VERDICT, b""), 0)
            chain = nl.text(verdict.get(nf.NFTA_VERDICT_CHAIN, b""))
        if nf.NFTA_SET_ELEM_USERDATA in each:
            words = nl.text(each[nf.NFTA_SET_ELEM_USERDATA][2:])
        yield key + end, (chain, words)
