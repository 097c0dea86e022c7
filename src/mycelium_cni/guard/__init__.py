# SPDX-License-Identifier: Apache-2.0
"""The guard: nothing gets in or out that should not. docs/security.md says what that is.

A node that forwards routes whatever its Mycelium daemon writes to the TUN, and the daemon checks
neither source nor destination of what it decrypts. So before forwarding is switched on, the packet
filter gets one table of ours (and one in the bridge family, for bridge mode). No state is kept of
what was loaded: elements of the table carry, as their comments, the facts they were made from. An
ADD asks for these by name; only if an answer is not what it should be, `rules` is imported.
"""

from __future__ import annotations

from _struct import Struct
from errno import (
    EAFNOSUPPORT,
    EBUSY,
    EEXIST,
    ENOENT,
    EOPNOTSUPP,
    EPROTONOSUPPORT,
    ERESTART,
)

from mycelium_cni.cni.errors import NODE_MISCONFIGURED, CniError, refusal
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_prefix, parse_address, parse_mac
from mycelium_cni.kernel.link import Link
from mycelium_cni.node.marks import GROUP, GROUP_MASK, group, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from typing import Final

    from mycelium_cni.cni.config import Config, Policy
    from mycelium_cni.kernel import nftables
    from mycelium_cni.kernel.facts import Steps
    from mycelium_cni.node.subnet import Node

TABLE_NAME = "mycelium-cni"
# Of the rules that do not depend on the node: another number makes every ADD load them anew.
# tests/netns/test_guard.py knows which rules belong to which number.
RULES = 3
BRIDGE_WORDS = f"mycelium-cni: who may send what from which port; rules {RULES}"
_PREROUTING_USES = 3
_BRIDGE_USES = 7 + 1  # rules, and who goes there

# What of nf_tables the question takes; `nftables`, with the rest, is not imported for it.
_NETLINK_NETFILTER = 12
_GETTABLE, _GETCHAIN, _GETSETELEM, _GETGEN = 0xA01, 0xA04, 0xA0D, 0xA10
_UNSPEC, _INET, _BRIDGE = 0, 1, 7
_NFGENMSG = Struct("=BBH")
_HOST32 = Struct("=I")
_ATTEMPTS = 4


class Wanted:
    """What the guard should hold for one network on this node."""

    __slots__ = ("bridged", "group", "interface", "network", "policy", "subnet")

    def __init__(self, network: str, config: Config, node: Node) -> None:
        self.network: Final = network
        self.group: Final = group(network)
        self.interface: Final = config.interface
        self.policy: Final[Policy] = config.policy
        self.subnet: Final = node.subnet
        self.bridged: Final = node.bridged

    @property
    def interface_key(self) -> bytes:
        return self.interface.encode("utf-8", "surrogateescape").ljust(16, b"\0")

    @property
    def overlay_words(self) -> str:
        return f"subnet {format_prefix((self.subnet + bytes(8), 64))}, rules {RULES}"

    @property
    def network_words(self) -> str:
        return f"{self.network[:40]}: {self.policy.words(self.subnet)}, rules {RULES}"


class Port:
    """A bridged pod, as its host link tells: the link's index, the pod's MAC and address."""

    __slots__ = ("address", "group", "index", "mac")

    def __init__(self, index: int, mac: bytes, address: bytes, group: int) -> None:
        self.index: Final = index
        self.mac: Final = mac
        self.address: Final = address
        self.group: Final = group


def counterpart(mac: bytes) -> bytes:
    """The MAC of one end of a pair, from that of the other, where it was made from the address. The
    kernel is asked for the host end's: the pod may say of its own what it likes."""
    return bytes((mac[0] ^ 0x04,)) + mac[1:]


def port_of(link: Link) -> Port | None:
    """The bridged pod behind a host link; None if the link is another thing, or not finished."""
    if not ours(link) or not link.master:
        return None
    for name in link.altnames:
        requested = word(link.alias, "mac")
        try:
            address = parse_address(name)
            mac = parse_mac(requested) if requested else counterpart(link.mac)
        except ValueError:
            continue
        return Port(link.index, mac, address, link.group)
    return None


def protect(host: nl.Socket, wanted: Wanted, undo: Steps, port: Port | None = None) -> None:
    """Part of ADD and `setup`: what should be there is there, or it is made.

    Raises CniError (NODE_MISCONFIGURED) if it cannot be, and the configuration insists on it.
    """
    if port:
        undo.push(release, port)
    try:
        if ensure(host, wanted, port) == _MADE:
            undo.push(_withdraw, host)
    except OSError as error:
        if error.errno not in _LACKING:
            raise refusal(error, "the guard cannot be loaded") from None
        if wanted.policy.required:
            raise CniError(
                NODE_MISCONFIGURED,
                f"the guard cannot be loaded: {error.strerror}",
                '"guard": "optional" does without, but for ingress and ipMasq',
                run="modprobe -a nf_tables nft_fib_inet nft_ct",
                details="nothing was attached",
            ) from None


def _withdraw(host: nl.Socket) -> None:
    """Undo of loading the first rules, unless another ADD has come to rely on them meanwhile. The
    link of the failed one stands still: what is made last is undone first."""
    if sum(ours(link) for link in _host_links(host)) < 2:
        remove()


# What the kernel says where nf_tables, or an expression of it, is neither in it nor a module.
_LACKING = (ENOENT, EOPNOTSUPP, EPROTONOSUPPORT, EAFNOSUPPORT)
_KEPT, _CHANGED, _MADE = 0, 1, 2


def ensure(host: nl.Socket, wanted: Wanted, port: Port | None = None) -> int:
    """Load what is missing or differs, in one transaction. Returns 0 if nothing was, 2 if even the
    table was missing. `port`: a pod that bridge mode is about to have.

    Raises OSError: the kernel lacks something, or does not let us.
    """
    failure: nl.NetlinkError | None = None
    for attempt in range(_ATTEMPTS):
        try:
            return _ensure(host, wanted, port, afresh=bool(attempt))
        except nl.NetlinkError as error:
            # Somebody else changed the table after we had asked; or the address has a stale entry.
            if error.errno not in (ENOENT, EEXIST, EBUSY, ERESTART):
                raise
            failure = error
    raise failure or AssertionError("no attempt")


def _ensure(host: nl.Socket, wanted: Wanted, port: Port | None, *, afresh: bool) -> int:
    found = Found(wanted)
    if found.all_well and not port:
        return _KEPT

    from mycelium_cni.guard import rules  # noqa: PLC0415 - once per node, or per bridged pod
    from mycelium_cni.kernel import nftables  # noqa: PLC0415 - once per node, or per bridged pod

    messages: list[nl.Message] = []
    ports = []
    generation = bytes(4)
    with_bridge = wanted.bridged
    if found.table and not found.base:
        # `nft flush table` takes the rules of every network and leaves the maps, by which all of
        # them would seem well. Somebody may have mended this meanwhile, and is not to be undone.
        messages.append(rules.INET.delete())
        generation = found.generation
    if not found.base or (wanted.bridged and not found.bridge):
        # Pods that live through this need their entries back.
        ports = [other for other in map(port_of, _host_links(host)) if other]
        with_bridge = with_bridge or bool(ports)
    if not found.overlay_current:
        messages += rules.base()
        messages += rules.overlay(wanted, known=found.overlay_known)
    messages += rules.network_chains({other.group for other in ports})
    if port and all(port.index != other.index for other in ports):
        ports.append(port)
    if not found.network_current:
        messages += rules.network(wanted, known=found.network_known)
    closed_now = found.closed
    if with_bridge and not found.bridge:
        messages += rules.bridge_base()
        closed_now = False
    if with_bridge:
        closed = wanted.policy.ingress == "closed"
        messages += rules.bridge_network(wanted.group, closed=closed, known=closed_now)
    messages += rules.add_ports(ports)
    with nftables.Socket() as socket:
        if afresh and found.base:  # a table made anew has no stale entries
            _delete_ports(socket, ports)
        socket.commit(*messages, generation=generation)
    return _CHANGED if found.table else _MADE


class Found:
    """What the kernel has of what is wanted: one question, one answer for each part."""

    __slots__ = (
        *("base", "bridge", "closed", "generation", "network_current", "network_known"),
        *("overlay_current", "overlay_known", "table", "wanted"),
    )

    def __init__(self, wanted: Wanted) -> None:
        self.wanted: Final = wanted
        group_key = _HOST32.pack(wanted.group)
        questions = [
            _question(_GETGEN, _UNSPEC),
            _question(_GETCHAIN, _INET, (1, TABLE_NAME), (3, "prerouting")),
            _element(_INET, "overlays", wanted.interface_key),
            _element(_INET, "to-network", group_key),
        ]
        if wanted.bridged:
            questions += [
                _question(_GETTABLE, _BRIDGE, (1, TABLE_NAME)),
                _question(_GETCHAIN, _BRIDGE, (1, TABLE_NAME), (3, "from-pods")),
                _element(_BRIDGE, "closed", group_key),
            ]
        with nl.Socket(_NETLINK_NETFILTER) as socket:
            generation, chain, overlay, network, *bridge = socket.ask(*questions)
        self.generation: Final = nl.decode(generation or b"", _NFGENMSG.size)[1]  # NFTA_GEN_ID
        self.table: Final = chain is not None
        self.base: Final = _uses(chain, _PREROUTING_USES)
        if not self.base:  # what the maps of a table without its rules hold means nothing
            overlay = network = None
        self.overlay_known: Final = overlay is not None
        self.overlay_current: Final = _says(overlay, wanted.overlay_words)
        self.network_known: Final = network is not None
        self.network_current: Final = _says(network, wanted.network_words)
        self.bridge = self.closed = False
        if bridge:
            self.bridge = _says(bridge[0], BRIDGE_WORDS) and _uses(bridge[1], _BRIDGE_USES)
            self.closed = bridge[2] is not None

    @property
    def all_well(self) -> bool:
        wanted = self.wanted
        return (
            self.overlay_current
            and self.network_current
            and (
                not wanted.bridged
                or (self.bridge and self.closed == (wanted.policy.ingress == "closed"))
            )
        )


def _question(kind: int, family: int, *attributes: nl.Attribute) -> nl.Message:
    body = _NFGENMSG.pack(family, 0, 0) + nl.encode(attributes)
    return nl.Message(kind, 0, body, "read the packet filter")


def _element(family: int, name: str, key: bytes) -> nl.Message:
    sought: nl.Attribute = (3, [(1, [(1, [(1, key)])])])
    return _question(_GETSETELEM, family, (1, TABLE_NAME), (2, name), sought)


def _says(answer: bytes | None, words: str) -> bool:
    """Whether an object carries these words as its comment (NFTA_*_USERDATA is 6 for both)."""
    octets = words.encode() + b"\0"
    return answer is not None and bytes((0, len(octets))) + octets in answer


def _uses(answer: bytes | None, number: int) -> bool:
    """Whether a chain has all its rules: `nft flush table` leaves the rest standing."""
    uses = nl.encode(((6, number.to_bytes(4, "big")),))  # NFTA_CHAIN_USE
    return answer is not None and uses in answer


def ours(link: Link) -> bool:
    """Whether it is a pod's host link, of whatever network."""
    return link.group & GROUP_MASK == GROUP


def _host_links(host: nl.Socket) -> list[Link]:
    veth: nl.Attribute = (nl.IFLA_LINKINFO, [(nl.IFLA_INFO_KIND, b"veth")])
    return [Link(p) for p in host.dump(nl.link(nl.RTM_GETLINK, "list links", veth))]


def forget(*links: Link) -> nl.Socket | None:
    """Part of DEL and GC, before the links go: drop what the guard knows of bridged pods. It must
    not keep a pod from being deleted, and an entry that stays lets nobody do anything: no link will
    have its index again.

    Returns a socket for `datapath.delete_links` to outlive: what was dropped is gone at once, but
    whoever closes the socket waits until the last reader is done (nft_rcv_nl_event), 15 ms that the
    child of `delete_links` has to wait anyway.
    """
    ports = [port for port in map(port_of, links) if port]
    return release(*ports) if ports else None


def release(*ports: Port) -> nl.Socket | None:
    """Drop the entries of bridged pods. What is not there is dropped already."""
    from mycelium_cni.kernel import nftables  # noqa: PLC0415 - bridge mode only

    try:
        socket = nftables.Socket()
        _delete_ports(socket, ports)
    except OSError:
        return None
    return socket


def _delete_ports(
    socket: nftables.Socket, ports: Iterable[Port], kept: Container[bytes] = ()
) -> None:
    """`kept`: addresses that have a new owner, and need their entries."""
    from mycelium_cni.guard import rules  # noqa: PLC0415

    messages = rules.delete_ports(ports, kept)
    try:
        socket.commit(*messages)
    except nl.NetlinkError as error:
        if error.errno != ENOENT:
            raise
        for message in messages:
            try:
                socket.commit(message)
            except nl.NetlinkError as single:
                if single.errno != ENOENT:
                    raise


def sweep(host: nl.Socket) -> int:
    """Drop the entries of bridged pods whose links are gone: a pod that ends without DEL takes its
    link with it, but not these. Returns how many there were."""
    question = _question(_GETTABLE, _BRIDGE, (1, TABLE_NAME))
    try:
        with nl.Socket(_NETLINK_NETFILTER) as asking:
            if asking.ask(question) == [None]:
                return 0
    except OSError:
        return 0
    from mycelium_cni.guard import rules  # noqa: PLC0415 - where bridge mode is in use
    from mycelium_cni.kernel import nftables  # noqa: PLC0415 - where bridge mode is in use

    with nftables.Socket() as socket:
        # Entries first: of a pod that is attached meanwhile, only the link may be news.
        known = rules.ports(socket)
        live = [port for port in map(port_of, _host_links(host)) if port]
        indexes = {port.index for port in live}
        stale = [port for port in known if port.index not in indexes]
        if stale:
            _delete_ports(socket, stale, {port.address for port in live})
    return len(stale)


def remove() -> bool:
    """Take the tables away, for `teardown`; whether there was one. Raises OSError."""
    from mycelium_cni.guard import rules  # noqa: PLC0415
    from mycelium_cni.kernel import nftables  # noqa: PLC0415

    with nftables.Socket() as socket:
        there = socket.ask(rules.INET.get(), rules.BRIDGE.get())
        messages = [
            table.delete()
            for table, answer in zip((rules.INET, rules.BRIDGE), there, strict=True)
            if answer is not None
        ]
        if messages:
            socket.commit(*messages)
    return bool(messages)


def inspect(host: nl.Socket, wanted: Wanted) -> None:
    """Part of STATUS and CHECK. Raises CniError (NODE_MISCONFIGURED) that says what is wrong."""
    wrong = fault(host, wanted)
    if wrong:
        raise CniError(
            NODE_MISCONFIGURED,
            f"the guard is down: {wrong}",
            "the next ADD restores it too",
            run="mycelium-cni setup",
        )


def fault(host: nl.Socket, wanted: Wanted) -> str:
    """What is wrong with the guard, in a few words; '' if nothing is. A policy that differs from
    the configuration is not: the next ADD brings it, and `outdated` tells."""
    try:
        found = Found(wanted)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        return f"the packet filter cannot be read ({error.strerror})"
    if not found.table:
        return f"table inet {TABLE_NAME} is missing"
    if not found.base:
        return f"table inet {TABLE_NAME} has lost its rules"
    if not found.overlay_known:
        return f"table inet {TABLE_NAME} does not guard {wanted.interface}"
    if wanted.bridged and not found.bridge:
        return f"table bridge {TABLE_NAME} is missing"
    if not found.network_known and any(link.group == wanted.group for link in _host_links(host)):
        return f"table inet {TABLE_NAME} does not have network {wanted.network}"
    return ""


def outdated(wanted: Wanted) -> bool:
    """Whether `setup` or the next ADD would change something. Raises OSError."""
    return not Found(wanted).all_well
