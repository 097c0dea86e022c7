# SPDX-License-Identifier: Apache-2.0
"""What the guard should hold, as data: names, the number of the rules, a network's policy, a port.

Releases share one table, and each finds its own part by name. A network's chains are named by its
group, and replaced by that network's next ADD; shared chains are named by the number of the rules,
and replaced by the next ADD of any network. docs/adr/0010-editions.md.
"""

from __future__ import annotations

from _blake2 import blake2b
from sys import byteorder

from mycelium_cni.kernel.address import format_prefix, parse_address, parse_mac, parse_prefix
from mycelium_cni.node.marks import GROUP, GROUP_MASK, digest, group, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from mycelium_cni.cni.config import Config, Policy
    from mycelium_cni.kernel.link import Link
    from mycelium_cni.node.subnet import Node

TABLE_NAME = "mycelium-cni"
# The first octet of MACs that are made from addresses: locally administered, unicast, and not in
# common use. The host link's is 66 (`counterpart`).
MAC_OCTET = b"\x62"
INET_FAMILY, BRIDGE_FAMILY = 1, 7  # NFPROTO_*; `question` does not import nf_tables for them
# The number of the rules that do not depend on the node: a new one makes every ADD load them again.
# tests/netns/test_guard.py knows which rules belong to which number.
RULES = 9
PODS_CHAIN = f"pods-{RULES}"
NEW_CHAIN = f"new-{RULES}"
BRIDGE_CHAIN = f"icmpv6-{RULES}"
# Release 0.1.0 knows its bridge table by these words, and by the number of uses below.
BRIDGE_WORDS = "mycelium-cni: who may send what from which port; rules 3"

# How often a chain is used (NFTA_CHAIN_USE): its rules, and what jumps there. 0.1.0 checks the
# first and the last: with other numbers it would take the table, and every network's policy, for
# flushed.
PREROUTING_USES = 3
# These two have more: no network may ask for peering or for transit, and some may be bridged.
PODS_USES = 8 + 3
OVERLAY_USES = 12 + 1
NEW_USES = 3 + 1
BRIDGE_USES = 9 + 1
BRIDGE_PODS_USES = 7 + 1


class Wanted:
    """What the guard should hold for one network on this node."""

    __slots__ = (
        *("address", "bridge", "bridged", "group", "interface", "network", "policy"),
        "subnet",
    )

    def __init__(self, network: str, config: Config, node: Node) -> None:
        self.network: Final = network
        self.group: Final = group(network)
        self.interface: Final = config.interface
        self.bridge: Final = config.bridge_name
        self.policy: Final[Policy] = config.policy
        self.subnet: Final = node.subnet
        self.address: Final = node.address
        self.bridged: Final = node.bridged

    @property
    def key(self) -> bytes:
        """The group as a map's key."""
        return self.group.to_bytes(4, byteorder)

    @property
    def interface_key(self) -> bytes:
        return link_key(self.interface)

    @property
    def bridge_key(self) -> bytes:
        return link_key(self.bridge)

    @property
    def origin(self) -> str:
        return f"subnet {format_prefix((self.subnet + bytes(8), 64))}"

    @property
    def overlay_words(self) -> str:
        return f"{self.origin}, rules {RULES}"

    @property
    def network_words(self) -> str:
        bridge = f", bridge {self.bridge}" if self.bridged else ""
        return f"{_short(self.network)}: {self.policy.words(self.subnet)}{bridge}, rules {RULES}"

    @property
    def surplus(self) -> int:
        """How many more rules the chain to the network's pods has than the one from them."""
        policy = self.policy
        rules = {"open": 0, "cluster": 5, "closed": 3}[policy.ingress] + bool(policy.allow_from)
        return rules - 3 * policy.masquerade

    @property
    def record(self) -> Record:
        return Record(self.group, self.network_words, self.origin)


class Record:
    """What the table says of a network, enough to make its chains again: the comments of its
    elements in the map to its pods and in the one from them. `rules` is the number of the rules
    that its chains were made by; `more` what else the comments say, such as "transit".

    Raises ValueError or IndexError: words that only another release understands.
    """

    __slots__ = (
        *("allows", "group", "ingress", "masquerade", "more", "network", "origin", "rules"),
        "words",
    )

    def __init__(self, group: int, words: str, origin: str) -> None:
        self.network, _, policy = words.partition(": ")
        ingress, *more, number = policy.split(", ")
        self.group: Final = group
        self.words: Final = words
        self.origin: Final = origin
        self.ingress: Final = ingress.removeprefix("ingress ")
        self.allows: Final = self.ingress == "cluster" and not more[0].startswith("0 ")
        self.masquerade: Final = "ipMasq" in more
        self.more: Final = more
        self.rules: Final = int(number.removeprefix("rules "))
        if self.ingress not in ("open", "cluster", "closed"):
            raise ValueError(f"{words!a} is not understood")

    @property
    def bridges(self) -> list[str]:
        """The bridge that has the network's pods, if any."""
        return [word[7:] for word in self.more if word.startswith("bridge ")]

    @property
    def renewed(self) -> Record:
        """The same, by the rules of this release."""
        words = f"{self.words.rpartition(', ')[0]}, rules {RULES}"
        return Record(self.group, words, self.origin)

    @property
    def unsettled(self) -> Record:
        """The same, while older connections that it forbids may still be open."""
        policy, _, number = self.words.rpartition(", ")
        return Record(self.group, f"{policy}, unsettled, {number}", self.origin)

    @property
    def subnet(self) -> bytes:
        """Of the node, as this network's pods know it."""
        return parse_prefix(self.origin.removeprefix("subnet "))[0][:8]


def link_key(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape").ljust(16, b"\0")


def _short(network: str) -> str:
    """A network's name for a comment. A hash distinguishes names that are truncated."""
    return network if len(network) <= 40 else f"{network[:31]}~{digest(4, network).hex()}"


def overlay_chain(interface: str) -> str:
    return f"overlay-{interface}"


def transit_chain(interface: str) -> str:
    return f"transit-{interface}"


def to_chain(group: int) -> str:
    return f"to-{group}"


def from_chain(group: int) -> str:
    return f"from-{group}"


class Port:
    """A bridged pod, as its host link shows it: the link's index, the pod's MAC and address."""

    __slots__ = ("address", "group", "index", "mac")

    def __init__(self, index: int, mac: bytes, address: bytes, group: int) -> None:
        self.index: Final = index
        self.mac: Final = mac
        self.address: Final = address
        self.group: Final = group


def mac_of(address: bytes) -> bytes:
    """The MAC of the pod with that address, unless another was requested: a reused address keeps
    its MAC, so what neighbours have learned stays true (docs/adr/0007)."""
    return MAC_OCTET + blake2b(address, digest_size=5).digest()


def counterpart(mac: bytes) -> bytes:
    """The MAC of the host link from the pod link's, or the reverse, if made from the address."""
    return bytes((mac[0] ^ 0x04,)) + mac[1:]


def given_mac(address: bytes, alias: str, host_mac: bytes) -> bytes:
    """The MAC that the pod behind a host link was given: what the pod has by now is its own choice.
    Raises ValueError: somebody else has written the alias."""
    requested = word(alias, "mac")
    if requested:
        return parse_mac(requested)
    # 0.1.0 made it anew for each pod, and did not say the mode.
    return mac_of(address) if word(alias, "mode") else counterpart(host_mac)


def ours(link: Link) -> bool:
    """Whether it is a pod's host link, of any network."""
    return link.group & GROUP_MASK == GROUP


def address_of(link: Link) -> bytes | None:
    """The address that a host link reserves for its pod; None if it is not a host link."""
    for name in link.altnames:
        try:
            return parse_address(name)
        except ValueError:
            continue
    return None


def port_of(link: Link) -> Port | None:
    """The bridged pod behind a host link; None if it is no such link, or not finished."""
    # Somebody may put a routed pod's link in a bridge. 0.1.0 did not say which mode it made.
    if not ours(link) or not link.master or word(link.alias, "mode") == "routed":
        return None
    address = address_of(link)
    if address is None:
        return None
    try:
        mac = given_mac(address, link.alias, link.mac)
    except ValueError:
        return None
    return Port(link.index, mac, address, link.group)
