# SPDX-License-Identifier: Apache-2.0
"""What an attachment is: names, group, alias, address (pure: nothing here asks the kernel).

An attachment is one pod interface on Mycelium. The kernel is the only database, so everything that
must be found again later is written into, or computed for, the host link: its name is a hash of who
it belongs to, its group a hash of the network, its alternative name the pod's address, and its
alias says all of it in words.
"""

from __future__ import annotations

from _blake2 import blake2b
from _socket import AF_INET6, inet_ntop, inet_pton
from posix import urandom

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LINK_PREFIX = "myc"
ALIAS_PREFIX = "mycelium-cni"
_IFALIASZ = 256  # linux/if_link.h, with the final NUL

# The high four bits of a group are the same for every network, so one static rule can speak of all
# our links; 28 bits tell networks apart. The bridge, and links on their way out, are next door.
GROUP_MASK, GROUP = 0xF0000000, 0x60000000
BRIDGE_GROUP, DELETE_GROUP = 0x50000000, 0x70000000

MYCELIUM: Final = (b"\x04" + bytes(15), 7)  # 400::/7
POD_MARK = b"\xff\x0f"  # groups 5 of every pod address, as Zero-OS gives them


class Attachment:
    """One pod interface on Mycelium, named by (network name, container ID, CNI_IFNAME)."""

    __slots__ = ("container", "host_link", "host_mac", "ifname", "network", "pod_mac")

    def __init__(self, network: str, container: str, ifname: str) -> None:
        self.network: Final = network
        self.container: Final = container
        self.ifname: Final = ifname
        digest = _hash(18, network, container, ifname)
        # 15 bytes are all a name may have. 48 bits are enough: the names of one node compete.
        self.host_link: Final = LINK_PREFIX + digest[:6].hex()
        # Fixed MACs at creation: udev leaves alone what was set, and neighbours can be permanent.
        self.host_mac: Final = _local_mac(digest[6:12])
        self.pod_mac: Final = _local_mac(digest[12:18])

    def alias(self, address: str, pod: str, table: int = 0) -> str:
        """Who the host link belongs to, for people and for `mycelium-cni list`: KEY=VALUE words.
        `table` is the routing table that the pod has for this link alone, if it needs one.

        Pod and network name come from strangers: only visible ASCII gets through, and the alias
        never outgrows what the kernel takes. The container ID stands last, where cutting hurts
        least.
        """
        words = [ALIAS_PREFIX, f"address={address}", f"ifname={_visible(self.ifname, 15)}"]
        if pod:
            words.insert(1, f"pod={_visible(pod, 100)}")
        if table:
            words.append(f"table={table}")
        words += [f"network={_visible(self.network, 40)}", f"container={self.container}"]
        return " ".join(words)[: _IFALIASZ - 1]

    def __str__(self) -> str:
        return f"{self.ifname} of container {self.container} on network {self.network}"


def table_of(alias: str) -> int:
    """The table that an alias names, or 0."""
    for word in alias.split(" "):
        if word.startswith("table="):
            return int(word[6:])
    return 0


def group(network: str) -> int:
    """The IFLA_GROUP of a network's host links; never 0, the group of everybody's links."""
    return GROUP | int.from_bytes(_hash(4, network), "big") & ~GROUP_MASK


def random_address(subnet: bytes) -> bytes:
    """A pod address as Zero-OS makes them: subnet, ff0f, six random bytes."""
    while True:
        seed = urandom(6)
        if seed not in (bytes(6), b"\xff" * 6):  # Zero-OS refuses these two seeds
            return subnet + POD_MARK + seed


def stable_address(subnet: bytes, *owner: str) -> bytes:
    """The pod address that always belongs to `owner` in this subnet."""
    return subnet + POD_MARK + _hash(6, *owner)


def parse_address(text: str) -> bytes:
    """The 16 bytes of an IPv6 address; raises ValueError. No zone, no prefix length, and no IPv4 in
    disguise (::ffff:192.0.2.1), which every Go program prints and treats as IPv4."""
    try:
        address = inet_pton(AF_INET6, text)
    except (OSError, ValueError):  # ValueError: NUL or no ASCII
        address = _V4_MAPPED
    if address.startswith(_V4_MAPPED):
        raise ValueError(f"{text!a} is not an IPv6 address")
    return address


def parse_prefix(text: str) -> tuple[bytes, int]:
    """Network and prefix length of `address/length`, host bits cleared; raises ValueError."""
    base, slash, digits = text.partition("/")
    length = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else 129
    if not slash or length > 128:
        raise ValueError(f"{text!a} is not an IPv6 prefix such as 400::/7")
    number = int.from_bytes(parse_address(base), "big") >> 128 - length << 128 - length
    return number.to_bytes(16, "big"), length


def parse_mac(text: str) -> bytes:
    """The 6 bytes of a unicast MAC address written `c2:11:22:33:44:55`; raises ValueError."""
    octets = text.split(":")
    if len(octets) == 6 and all(len(o) == 2 and set(o) <= _HEX for o in octets):
        mac = bytes.fromhex(text.replace(":", ""))
        if any(mac) and not mac[0] & 1:
            return mac
    raise ValueError(f"{text!a} is not a unicast MAC address such as 02:00:5e:10:00:01")


def format_address(address: bytes) -> str:
    """Canonical text (RFC 5952): also the alternative name, so there is one spelling of each."""
    return inet_ntop(AF_INET6, address)


def format_prefix(prefix: tuple[bytes, int]) -> str:
    return f"{inet_ntop(AF_INET6, prefix[0])}/{prefix[1]}"


def format_mac(mac: bytes) -> str:
    return mac.hex(":")


def link_local(mac: bytes) -> bytes:
    """The link-local address that belongs to a MAC (modified EUI-64, RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def on_mycelium(address: bytes) -> bool:
    """Whether the address lies in 400::/7."""
    return address[0] & 0xFE == 0x04


_V4_MAPPED = bytes(10) + b"\xff\xff"
_HEX = frozenset("0123456789abcdefABCDEF")


def _hash(size: int, *words: str) -> bytes:
    # NUL cannot stand in any of the words, so ("a-b", "c") and ("a", "b-c") differ.
    return blake2b("\0".join(words).encode("utf-8", "surrogateescape"), digest_size=size).digest()


def _local_mac(octets: bytes) -> bytes:
    return bytes((octets[0] & 0xFC | 0x02,)) + octets[1:]


def _visible(word: str, limit: int) -> str:
    kept = "".join([c if "!" <= c <= "~" else "?" for c in word[: limit + 1]])
    return kept if len(kept) <= limit else kept[: limit - 1] + "~"
