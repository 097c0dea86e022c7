# SPDX-License-Identifier: Apache-2.0
"""The guard: packet filter rules for what may enter and leave. docs/security.md has them in words.

A node that forwards routes whatever its Mycelium daemon writes to the TUN, and the daemon checks
neither source nor destination of what it decrypts. So before forwarding is switched on, the packet
filter gets one table of ours (and one in the bridge family, for bridge mode). What was loaded is
recorded only in the table: comments of its elements say what they were made from.

`wanted` is what should be loaded, as data, `rules` the same as messages. `question` is what every
ADD asks, `repair` compares everything, `load` loads what is missing, and `connections` ends those
that a new policy forbids. docs/adr/0006-the-guard.md.
"""

from mycelium_cni.guard.load import (
    Loaded,
    end_former,
    end_left,
    ensure,
    forget,
    inspect,
    protect,
    release,
    remove,
    require_kernel,
    sweep,
)
from mycelium_cni.guard.wanted import (
    RULES,
    TABLE_NAME,
    Port,
    Wanted,
    address_of,
    counterpart,
    given_mac,
    mac_of,
    ours,
    port_of,
)

__all__ = [
    "RULES",
    "TABLE_NAME",
    "Loaded",
    "Port",
    "Wanted",
    "address_of",
    "counterpart",
    "end_former",
    "end_left",
    "ensure",
    "forget",
    "given_mac",
    "inspect",
    "mac_of",
    "ours",
    "port_of",
    "protect",
    "release",
    "remove",
    "require_kernel",
    "sweep",
]
