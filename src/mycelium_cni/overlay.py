# SPDX-License-Identifier: Apache-2.0
"""What the overlay is: 400::/7, of which every node owns a /64."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MYCELIUM: Final = (b"\x04" + bytes(15), 7)  # 400::/7


def on_mycelium(address: bytes) -> bool:
    """Whether the address lies in 400::/7."""
    return address[0] & 0xFE == 0x04
