# SPDX-License-Identifier: Apache-2.0
"""What is missing in our tables, and the messages that load it.

Another release's rules are checked only for what every release has. They are not a fault, but the
next load replaces them.
"""

from __future__ import annotations

from mycelium_cni.guard import rules
from mycelium_cni.guard.content import Content
from mycelium_cni.guard.wanted import (
    RULES,
    Port,
    Record,
    Wanted,
    from_chain,
    overlay_chain,
    to_chain,
    transit_chain,
)
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Final

    from mycelium_cni.guard.content import Tables

# The chains that elements of our maps may lead to, by their keys.
_LEADS: dict[str, Callable[[bytes], tuple[str, ...]]] = {
    # 0.1.0 has the second of these.
    "overlays": lambda key: (overlay_chain(_name(key)), f"from-{_name(key)}", "bridged"),
    "transit": lambda key: (transit_chain(_name(key)), "translated"),
    "to-network": lambda key: (to_chain(nl.u32(key)),),
    "from-network": lambda key: (from_chain(nl.u32(key)),),
}


class Lack:
    """Something that is not as wanted. `fault`: packets pass that should not, or are dropped that
    should pass; otherwise another release or an older configuration made it."""

    __slots__ = ("fault", "messages", "words")

    def __init__(self, words: str, messages: list[nl.Message], *, fault: bool) -> None:
        self.words: Final = words
        self.messages: Final = messages
        self.fault: Final = fault


class Survey:
    """The tables as the kernel has them, against what one network wants of them. `ports`: the
    node's bridged pods; `groups`: of networks that have pods. Both were read before the tables:
    what they need was loaded by then, and only a DEL removes any of it."""

    __slots__ = ("_bridge", "_groups", "_inet", "_ports", "_tables", "_wanted", "there")

    def __init__(self, tables: Tables, wanted: Wanted, ports: list[Port], groups: set[int]) -> None:
        self._tables: Final = tables
        self.there: Final = tables.there
        # Deletions are applied to it, and the tables may be asked for another network.
        self._inet: Final = tables.inet.copy()
        self._bridge: Final = tables.bridge
        self._wanted: Final = wanted
        self._ports: Final = ports
        self._groups: Final = groups

    def fault(self, port: Port | None) -> str:
        """The first fault in a few words; '' if there is none. A bridged pod without any entry
        counts only if it is `port`'s: the DEL of another may be in progress."""
        if not self.there:
            return f"table inet {rules.INET.name} is missing"
        index = port.index if port else 0
        return next((lack.words for lack in self.lacks(index) if lack.fault), "")

    def repair(self) -> tuple[list[nl.Message], bytes]:
        """The messages that load what is lacking, and delete chains that no packet reaches any
        more; and the generation that they are for: what a network's ADD records meanwhile, such as
        the node's first bridge, decides about rules that all networks share."""
        if not self.there and not self._bridge.hooks:
            return self._afresh(), self._tables.generation
        lacks = list(self.lacks())
        messages = [message for lack in lacks for message in lack.messages]
        if messages:
            for table, there in ((rules.INET, self._inet), (rules.BRIDGE, self._bridge)):
                unused = there.copy().apply(table.family, messages).unused()
                messages += [table.flush_chain(name) for name in unused]
                messages += [table.delete_chain(name) for name in unused]
        return messages, self._tables.generation

    def _afresh(self) -> list[nl.Message]:
        """All of it, if there is no table yet. No chain comes twice: the second would be an update,
        for which closing the socket waits a grace period (nft_rcv_nl_event)."""
        wanted = self._wanted
        asks, bridges = wanted.policy.asks, self._bridges(())[1]
        confined = "transit" not in asks
        messages = [
            *rules.base(peers="peering" in asks, confined=confined, bridges=bridges),
            *rules.overlay(wanted, known=False, confined=confined, bridged=bool(bridges)),
            *rules.network(wanted, known=()),
        ]
        if bridges:
            messages += rules.bridge_base()
            if wanted.bridged and wanted.policy.ingress == "closed":
                messages += rules.bridge_network(wanted.group, closed=True)
            messages += rules.network_chains({port.group for port in self._ports} - {wanted.group})
            messages += rules.add_ports(self._ports)
        return messages

    def lacks(self, index: int = 0) -> Iterator[Lack]:
        """What is lacking, in the order in which it must be made. `index`: of the host link whose
        pod, if missing, is a fault."""
        yield from self._misled()
        records = _records(self._inet, self._wanted)
        yield from self._base(records)
        yield from self._overlay(records)
        yield from self._networks(records)
        yield from self._network(records)
        if self._wanted.bridged or self._ports:
            yield from self._bridge_base(records)
            yield from self._closed(records)
            yield from self._entries(index)

    def _base(self, records: Iterable[Record]) -> Iterator[Lack]:
        there = self._inet
        asked = [self._asked(switch, records) for switch in ("peering", "transit")]
        (_, peers), (_, open_) = asked
        had, bridges = self._bridges(records)
        messages = [*rules.base(peers=peers, confined=not open_, bridges=bridges)]
        if "forward" in there.hooks or any(record.ingress != "open" for record in records):
            messages += rules.forward()
        if "postrouting" in there.hooks or any(record.masquerade for record in records):
            messages += rules.postrouting()
        for lack in _shared(rules.INET, there, messages):
            changed = bridges != had or any(before != now for before, now in asked)
            yield Lack(lack.words, lack.messages, fault=lack.fault and not changed)

    def _asked(self, switch: str, records: Iterable[Record]) -> tuple[bool, bool]:
        """Whether one of the node's networks had a switch on, and whether one has now."""
        asking = {each.group for each in records if switch in each.more}
        now = asking - {self._wanted.group} or switch in self._wanted.policy.asks
        return bool(asking), bool(now)

    def _bridges(self, records: Iterable[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The bridges that had pods of the node's networks, and those that have now. An older
        release's record names none."""
        wanted = self._wanted
        had = {name for each in records for name in each.bridges}
        others = [each for each in records if each.group != wanted.group]
        now = {name for each in others for name in each.bridges}
        if wanted.bridged or (self._ports and not now):
            now.add(wanted.bridge)
        return (*sorted(had),), (*sorted(now),)

    def _overlay(self, records: Iterable[Record]) -> Iterator[Lack]:
        wanted, there = self._wanted, self._inet
        before, open_ = self._asked("transit", records)
        had, bridges = self._bridges(records)
        key = wanted.interface_key
        chain, words = there.element("overlays", key)
        known = there.has("overlays", key)
        messages = rules.overlay(wanted, known=known, confined=not open_, bridged=bool(bridges))
        lacking = there.lacks(Content().apply(rules.INET.family, messages))
        if not chain:
            lacking = f"does not guard {wanted.interface}"
        if lacking:
            lost = chain == "bridged" or not there.rules.get(chain)
            same = open_ == before and bridges == had
            fault = lost or (words == wanted.overlay_words and same)
            yield Lack(_said(rules.INET, lacking), messages, fault=fault)

    def _networks(self, records: Iterable[Record]) -> Iterator[Lack]:
        """Each network's chains against its record, whatever its configuration says now."""
        there = self._inet
        for record in records:
            messages = rules.policy(record.renewed, known=_known(there, record.group))
            if record.rules == RULES:
                lacking = there.lacks(Content().apply(rules.INET.family, messages))
            else:
                lost = record.ingress != "open" and not there.rules.get(to_chain(record.group))
                lacking = "has lost its rules" if lost else ""
            if lacking:
                lacking = f"{lacking}, of network {record.network}"
                yield Lack(_said(rules.INET, lacking), messages, fault=True)

    def _network(self, records: Iterable[Record]) -> Iterator[Lack]:
        wanted, there = self._wanted, self._inet
        messages = rules.network(wanted, known=_known(there, wanted.group))
        now = wanted.record
        if all((each.words, each.origin) != (now.words, now.origin) for each in records):
            lacking = f"does not have the policy of network {wanted.network}"
            lost = not there.has("to-network", wanted.key) and wanted.group in self._groups
            yield Lack(_said(rules.INET, lacking), messages, fault=lost)
        else:
            name = rules.allowed_set(wanted.group)
            allowed = Content().apply(rules.INET.family, messages).elements[name]
            if there.elements.get(name) != allowed:
                lacking = f"has other prefixes in set {name}"
                yield Lack(_said(rules.INET, lacking), messages, fault=True)

    def _bridge_base(self, records: Iterable[Record]) -> Iterator[Lack]:
        messages = [*rules.bridge_base()]
        bridged = {port.group for port in self._ports}
        closed = {record.group for record in records if record.ingress == "closed"}
        if "forward" in self._bridge.hooks or bridged & closed:
            messages += rules.bridge_closed()
        # Before the first bridged pod, as where a routed node's configuration changes its mode,
        # there is nothing to filter, and the table comes with the pod.
        needed = bool(self._ports or self._bridge.hooks)
        for lack in _shared(rules.BRIDGE, self._bridge, messages):
            fault = lack.fault and needed and not self._closed_by_another()
            yield Lack(lack.words, lack.messages, fault=fault)

    def _closed_by_another(self) -> bool:
        """Whether all that differs is that 0.1.0 has closed a network beside those of this release,
        as after a downgrade. Its rules do the same; the next ADD replaces them."""
        return not self._tables.lack([*rules.bridge_base(), *rules.bridge_closed_before()])

    def _closed(self, records: Iterable[Record]) -> Iterator[Lack]:
        wanted, there = self._wanted, self._bridge
        bridged = {port.group for port in self._ports}
        policies = {record.group: record.ingress for record in records if record.group in bridged}
        before = policies.get(wanted.group)
        if wanted.bridged:
            policies[wanted.group] = wanted.policy.ingress
        for group, ingress in policies.items():
            closed, known = ingress == "closed", there.has("closed", nf.host32(group))
            if closed != known:
                lacking = f"{'does not close' if closed else 'closes'} network group {group}"
                messages = rules.bridge_network(group, closed=closed)
                fault = group != wanted.group or before == ingress
                yield Lack(_said(rules.BRIDGE, lacking), messages, fault=fault)

    def _misled(self) -> Iterator[Lack]:
        """Elements that lead elsewhere than their keys say, such as past our rules. No release
        makes one. All later checks treat them as deleted."""
        for name, leads in _LEADS.items():
            for key, (chain, _) in [*self._inet.elements.get(name, {}).items()]:
                if chain not in leads(key[:-1]):
                    words = f"has an element of {name} that leads to {chain or 'no chain'}"
                    deletion = rules.delete_element(rules.INET, name, key[:-1])
                    self._inet.apply(rules.INET.family, [deletion])
                    yield Lack(_said(rules.INET, words), [deletion], fault=True)

    def _entries(self, index: int) -> Iterator[Lack]:
        yield from self._false_senders()
        known = self._bridge.elements.get("ports", {})
        taken = {key[12:28] for key in known}
        lacking, unable = [], []
        for port in self._ports:
            if port.address in taken and rules.sender(port) + b"\0" not in known:
                continue  # detached meanwhile: another pod has the address
            *needed, last = [self._tables.has(*entry) for entry in rules.entries(port)]
            if not last or not all(needed):
                lacking.append(port)
                # A pod that another release attached is not in the last of them: it takes part as a
                # guest does. A DEL in progress has deleted them all.
                if not all(needed) and (port.index == index or any(needed)):
                    unable.append(port)
        if lacking:
            old = [m for m in rules.delete_ports(lacking) if self._tables.of(m).has_all(m)]
            chains = rules.network_chains({port.group for port in lacking})
            words = f"does not know {len(lacking)} of the node's bridged pods"
            messages = [*chains, *old, *rules.add_ports(lacking)]
            yield Lack(_said(rules.BRIDGE, words), messages, fault=bool(unable))

    def _false_senders(self) -> Iterator[Lack]:
        """Entries by which a live pod may send as another."""
        own = {port.index: rules.sender(port) for port in self._ports}
        for name in ("ports", "macs"):
            for key in self._bridge.elements.get(name, {}):
                sender = own.get(nl.u32(key[:4]), key)
                if not sender.startswith(key[:-1]):
                    words = f"has an element of {name} that is not the pod's"
                    deletion = rules.delete_element(rules.BRIDGE, name, key[:-1])
                    yield Lack(_said(rules.BRIDGE, words), [deletion], fault=True)


def _shared(table: nf.Table, there: Content, messages: list[nl.Message]) -> Iterator[Lack]:
    """What does not depend on a network."""
    wanted = Content().apply(table.family, messages)
    lacking = there.lacks(wanted)
    fault = not there.awake or not _is_others(there, wanted)
    # A chain at a hook sees every packet: delete those that this release does not know.
    foreign = [name for name in there.hooks if there.is_hooked(name) and name not in wanted.hooks]
    if foreign and not lacking:
        lacking = f"has unknown chain {foreign[0]}"
    if lacking:
        renewed = [
            name
            for name in there.hooks
            if there.hooks[name] != wanted.hooks.get(name, there.hooks[name])
        ]
        gone = [*foreign, *renewed]
        removal = [table.flush_chain(name) for name in gone] + [
            table.delete_chain(name) for name in gone
        ]
        yield Lack(_said(table, lacking), [*removal, *messages], fault=fault)


def _is_others(there: Content, wanted: Content) -> bool:
    """Whether another release's rules are in force: a hook leads to chains that only it has, to
    none that only this one has, and none of them has been flushed."""
    reached = there.reached(["prerouting"])
    return (
        not reached <= wanted.hooks.keys()
        and not any(name.endswith(f"-{RULES}") for name in reached)
        and all(there.rules.get(each) for each in reached)
    )


def _records(there: Content, wanted: Wanted) -> list[Record]:
    """The networks that the table has, except those whose words only a newer release knows."""
    found = []
    for key, (_, words) in there.elements.get("to-network", {}).items():
        origin = there.element("from-network", key[:4])[1] or wanted.origin
        try:
            found.append(Record(nl.u32(key[:4]), words, origin))
        except (ValueError, IndexError):
            continue
    return found


def _known(there: Content, group: int) -> list[str]:
    """The maps that have an element of this network."""
    key = nf.host32(group)
    return [name for name in ("to-network", "from-network") if there.has(name, key)]


def _name(key: bytes) -> str:
    """The link that a key of a map names (`link_key`)."""
    return key.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _said(table: nf.Table, words: str) -> str:
    family = "inet" if table.family == nf.NFPROTO_INET else "bridge"
    return f"table {family} {table.name} {words}"
