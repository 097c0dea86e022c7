# SPDX-License-Identifier: Apache-2.0
"""What an attachment is: its names and its alias (pure: nothing here asks the kernel).

An attachment is one pod interface on Mycelium. The kernel is the only database, so everything that
must be found again later is written into, or computed for, the host link: its name is a hash of who
it belongs to, its group a hash of the network, its alternative name the pod's address, and its
alias says all of it in words.
"""

from __future__ import annotations

from mycelium_cni.node.marks import digest, network_word, visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LINK_PREFIX = "myc"
ALIAS_PREFIX = "mycelium-cni"
# Of the words after the prefix. 0.1.0 gave neither number nor mode.
ALIAS_FORMAT = 2
ALIAS_SIZE = 255  # linux/if_link.h, IFALIASZ, less the final NUL


class Attachment:
    """One pod interface on Mycelium, named by (network name, container ID, CNI_IFNAME)."""

    __slots__ = ("container", "host_link", "ifname", "network")

    def __init__(self, network: str, container: str, ifname: str) -> None:
        self.network: Final = network
        self.container: Final = container
        self.ifname: Final = ifname
        # A name has at most 15 bytes. 48 bits are enough: names must be unique on one node only.
        # BLAKE2 hashes the size (18) too: with another, DEL would not find what 0.1.0 has made.
        self.host_link: Final = LINK_PREFIX + digest(18, network, container, ifname)[:6].hex()

    def alias(self, mode: str, address: str, pod: str, mac: str = "", table: int = 0) -> str:
        """Who the host link belongs to, for people and for `mycelium-cni list`: KEY=VALUE words.
        `mac` is the pod's if it was requested, and not made from the address; `table` the routing
        table that the pod has for this link alone, if it needs one.

        Pod and network name are untrusted: only visible ASCII gets through, and the alias keeps to
        the kernel's limit. The container ID comes last, where truncation costs least.
        """
        words = [ALIAS_PREFIX, f"v={ALIAS_FORMAT}", f"address={address}", f"mode={mode}"]
        words.append(f"ifname={visible(self.ifname, 15)}")
        if pod:
            words.insert(2, f"pod={visible(pod, 80)}")
        if mac:
            words.append(f"mac={mac}")
        if table:
            words.append(f"table={table}")
        words += [f"network={network_word(self.network)}", f"container={self.container}"]
        return " ".join(words)[:ALIAS_SIZE]

    def __str__(self) -> str:
        return f"{self.ifname} of container {self.container} on network {self.network}"
