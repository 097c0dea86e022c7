# SPDX-License-Identifier: Apache-2.0
"""What an attachment is: its names and its alias (pure: nothing here asks the kernel).

An attachment is one pod interface on Mycelium. The kernel is the only database, so everything that
must be found again later is written into, or computed for, the host link: its name is a hash of who
it belongs to, its group a hash of the network, its alternative name the pod's address, and its
alias says all of it in words.
"""

from __future__ import annotations

from mycelium_cni.node.marks import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LINK_PREFIX = "myc"
ALIAS_PREFIX = "mycelium-cni"
ALIAS_SIZE = 255  # linux/if_link.h, IFALIASZ, less the final NUL


class Attachment:
    """One pod interface on Mycelium, named by (network name, container ID, CNI_IFNAME)."""

    __slots__ = ("container", "host_link", "host_mac", "ifname", "network", "pod_mac")

    def __init__(self, network: str, container: str, ifname: str) -> None:
        self.network: Final = network
        self.container: Final = container
        self.ifname: Final = ifname
        octets = digest(18, network, container, ifname)
        # 15 bytes are all a name may have. 48 bits are enough: the names of one node compete.
        self.host_link: Final = LINK_PREFIX + octets[:6].hex()
        # Fixed MACs at creation: udev leaves alone what was set, and neighbours can be permanent.
        self.host_mac: Final = _local_mac(octets[6:12])
        self.pod_mac: Final = _local_mac(octets[12:18])

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
        return " ".join(words)[:ALIAS_SIZE]

    def __str__(self) -> str:
        return f"{self.ifname} of container {self.container} on network {self.network}"


def table_of(alias: str) -> int:
    """The table that an alias names, or 0."""
    for word in alias.split(" "):
        if word.startswith("table="):
            return int(word[6:])
    return 0


def _local_mac(octets: bytes) -> bytes:
    return bytes((octets[0] & 0xFC | 0x02,)) + octets[1:]


def _visible(word: str, limit: int) -> str:
    kept = "".join([c if "!" <= c <= "~" else "?" for c in word[: limit + 1]])
    return kept if len(kept) <= limit else kept[: limit - 1] + "~"
