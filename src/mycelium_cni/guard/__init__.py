# SPDX-License-Identifier: Apache-2.0
"""The guard: nothing gets in or out that should not. docs/security.md says what that is.

A node that forwards routes whatever its Mycelium daemon writes to the TUN, and the daemon checks
neither source nor destination of what it decrypts. So before forwarding is switched on, the packet
filter gets one table of ours (and one in the bridge family, for bridge mode). No state is kept of
what was loaded: elements of the table carry, as their comments, the facts they were made from.

`wanted` says what there should be as data, `rules` as messages; `question` is what every ADD asks,
`repair` compares everything, `load` does what is missing, and `connections` ends what outlives what
allowed it. docs/adr/0006-the-guard.md.
"""

from mycelium_cni.guard.load import (
    end_former,
    ensure,
    fault,
    forget,
    inspect,
    outdated,
    protect,
    release,
    remove,
    sweep,
)
from mycelium_cni.guard.wanted import RULES, TABLE_NAME, Port, Wanted, counterpart, ours, port_of

__all__ = [
    "RULES",
    "TABLE_NAME",
    "Port",
    "Wanted",
    "counterpart",
    "end_former",
    "ensure",
    "fault",
    "forget",
    "inspect",
    "ours",
    "outdated",
    "port_of",
    "protect",
    "release",
    "remove",
    "sweep",
]
