# SPDX-License-Identifier: Apache-2.0
"""The node's facts for its pods: which are missing, and which objects of ours are stale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from mycelium_cni import guard
from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_address
from mycelium_cni.kernel.facts import Address, Fact, Object, Proxy, Route
from mycelium_cni.kernel.link import find_link, list_veths
from mycelium_cni.node import facts, prepare, subnet
from mycelium_cni.node.marks import BRIDGE_GROUP, PROTOCOL
from mycelium_cni.overlay import on_mycelium
from mycelium_cni.undo import Undo
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.rights import require_rights
from mycelium_ctl.node.state import State

if TYPE_CHECKING:
    from mycelium_cni.kernel.facts import Steps
    from mycelium_cni.kernel.snapshot import Snapshot


class Change(NamedTuple):
    """One change to the node: the command that makes it, and what it is for."""

    command: str
    why: str


class Guard(Fact):
    """The rules that guard a network's pods are loaded and current."""

    __slots__ = ("wanted",)

    def __init__(self, wanted: guard.Wanted) -> None:
        super().__init__("without it peers and pods can send forged packets")
        self.wanted: Final = wanted

    def __str__(self) -> str:
        return f"# load {self.label} into the packet filter"

    @property
    def label(self) -> str:
        policy = self.wanted.policy.words(self.wanted.subnet)
        return f"table inet {guard.TABLE_NAME}, network {self.wanted.network}: {policy}"

    def holds(self, seen: Snapshot) -> bool:
        wanted = self.wanted
        words = f"guard {wanted.network_words} {wanted.overlay_words}"
        return seen.once(words, lambda: self._is_current(seen))

    def fault(self, seen: Snapshot) -> str:
        """What lets packets pass that should not; "" if nothing does. Raises CniError
        (NODE_MISCONFIGURED) if the kernel has no nf_tables, else OSError."""
        return _loaded(seen).fault(self.wanted)

    def _is_current(self, seen: Snapshot) -> bool:
        try:
            return not _loaded(seen).is_outdated(self.wanted)
        except PermissionError:
            return True  # not visible; `setup` says so
        except (CniError, OSError):
            return not self.wanted.policy.required  # if required, loading it says why it cannot be

    def ensure(self, host: nl.Socket, undo: Steps) -> bool:
        guard.protect(host, self.wanted, undo, thorough=True)
        return True


def _loaded(seen: Snapshot) -> guard.Loaded:
    """The guard's tables, read once for all networks and checks. The links are read anew: of a pod
    that was deleted since `seen` read them the tables have nothing."""
    return seen.once("guard", lambda: guard.Loaded(list_veths(seen.socket)))


class Expected:
    """The node's facts, in the order in which they are made.

    Raises CniError as `subnet.find`, ToolError where somebody else's bridge is in the way.
    """

    def __init__(self, state: State) -> None:
        self.state: Final = state
        self.node: Final = read_node(state)
        self.guards: Final = read_guards(state, self.node)
        bridge = self.node.bridge
        self.facts: Final = self._facts(bridge.index if bridge else 0, unfinished=bridge is None)
        self.missing: Final = [fact for fact in self.facts if not fact.holds(state.seen)]
        self.stale: Final = [
            *stale(state, self.node),
            *(other for fact in self.missing for other in fact.obstacles(state.seen)),
        ]

    def _facts(self, bridge: int, *, unfinished: bool) -> list[Fact]:
        node, name = self.node, self.state.config.bridge_name
        found: list[Fact] = []
        if node.bridged:
            found.append(facts.Bridge(name, node.subnet))
            if unfinished or (node.bridge and node.bridge.group == BRIDGE_GROUP):
                found += facts.new_bridge(name, bridge)
            found += facts.bridge(name, bridge, node)
            found += facts.bridge_answers(name, bridge, node)
        found += facts.standing(node, self.state.config.service_networks)
        found += self.guards
        return found + facts.forwarding(prepare.links_at_risk(self.state.host))

    @property
    def complete(self) -> bool:
        """Whether there is nothing to make or drop."""
        return not self.stale and not self.missing

    @property
    def changes(self) -> list[Change]:
        """What `make` does, in order, as a person would type it."""
        return [
            *(Change(fact.removal, fact.why) for fact in self.stale),
            *(Change(str(fact), fact.why) for fact in self.missing),
        ]

    def make(self) -> None:
        """Drop what is stale and make what is missing; all of it or nothing.

        Raises ToolError that says which step failed.
        """
        require_rights()
        host, node = self.state.host, self.node
        try:
            for old in self.stale:
                host.request(old.drop())
            with Undo() as undo:
                index = 0
                if node.bridged:
                    name = self.state.config.bridge_name
                    index = prepare.ensure_bridge(host, name, node, undo).index
                for fact in self._facts(index, unfinished=False):
                    if not isinstance(fact, facts.Bridge):
                        fact.ensure(host, undo)
        except CniError as error:
            raise ToolError(error.msg) from error
        except OSError as error:
            raise ToolError(refused(error)) from error


def read_guards(state: State, node: subnet.Node) -> list[Guard]:
    """The guard of the configured network, and of every other network of this node's pods that a
    file configures."""
    found = [Guard(guard.Wanted(state.network, state.config, node))]
    others = {one.network: one.bridged for one in state.attachments if one.network}
    others.pop(state.network, None)
    for network, bridged in sorted(others.items()):
        config = state.config_of(network)
        if config:
            theirs = subnet.Node(node.address, node.mtu, bridged, node.bridge)
            found.append(Guard(guard.Wanted(network, config, theirs)))
    return found


def read_node(state: State) -> subnet.Node:
    """The node as the interface alone shows it, and whether pods are on a bridge: setup fixes the
    bridge, so its present state does not count. A key that disagrees does.

    Raises CniError as `subnet.find`.
    """
    config = state.config
    alone = subnet.find(state.host, state.interface_config)
    if not state.bridged:
        return alone
    subnet.agree_with_key(config, alone.address)
    bridge = state.bridge
    if bridge and bridge.kind != "bridge":
        kind = f"a {bridge.kind}" if bridge.kind else "hardware"
        raise ToolError(
            f"{config.bridge_name} is {kind}, not a bridge: rename it, or name another bridge with "
            '--bridge and in the network configuration ("bridge")'
        )
    return subnet.Node(alone.address, alone.mtu, True, find_link(state.host, config.bridge_name))


def stale(state: State, node: subnet.Node | None) -> Iterator[Object]:
    """What carries our mark and is not among `node`'s facts; with None, everything with it.

    What belongs to the subnet of live pods stays, except the bridge's address, which would make
    ADD fail: those pods can talk to their node and to each other until they are replaced.
    """
    used = {attached.subnet for attached in state.attachments} if node else set()
    bridge = state.bridge if state.bridge and state.bridge.kind == "bridge" else None
    why = "the daemon's key has changed" if node else "made by mycelium-cni"
    if bridge:
        for proxy in state.seen.proxies.values():
            ours = (proxy.link, proxy.protocol) == (bridge.index, PROTOCOL)
            if ours and (node is None or proxy.address != node.address):
                yield Proxy(bridge.index, bridge.name, proxy.address, why, protocol=PROTOCOL)
    for address in state.seen.addresses.values():
        on_bridge = bridge is not None and address.link == bridge.index
        if not (on_bridge or address.link == facts.LOOPBACK) or not on_mycelium(address.address):
            continue
        if node and address.address in (node.address, node.gateway):
            continue
        name = bridge.name if bridge and on_bridge else "lo"
        marked = Address(address.link, name, address.address, address.prefixlen, why)
        if address.protocol != PROTOCOL:
            if node and on_bridge and address.address[:8] != node.subnet:
                raise ToolError(
                    f"bridge {name} has {format_address(address.address)}/{address.prefixlen}, "
                    "which is not of this node's subnet "
                    f"{nodestate.show_subnet(node.subnet)} and not made by setup: "
                    f"run `{marked.removal}` if nobody needs it"
                )
            continue
        if on_bridge or address.address[:8] not in used:
            yield marked
    services = state.config.service_networks
    wanted = facts.standing(node, services) if node else []
    kept = {(fact.destination, fact.priority) for fact in wanted if isinstance(fact, Route)}
    for route in state.seen.routes:
        (base, length), priority = route.destination, route.priority
        of_services = (route.link, route.kind) == (facts.LOOPBACK, nl.RTN_UNICAST)
        if of_services and route.protocol == PROTOCOL:
            if not node or route.destination not in services:
                gone = "no network of Services any more" if node else why
                yield Route(
                    route.destination, gone, index=facts.LOOPBACK, link="lo", protocol=PROTOCOL
                )
            continue
        ours = (route.protocol, route.kind, route.table) == (
            *(PROTOCOL, nl.RTN_UNREACHABLE, nl.RT_TABLE_MAIN),
        )
        of_live_pods = length == 64 and base[:8] in used
        if ours and (route.destination, priority) not in kept and not of_live_pods:
            yield Route(route.destination, why, priority=priority, protocol=PROTOCOL)
