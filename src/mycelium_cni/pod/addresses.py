# SPDX-License-Identifier: Apache-2.0
"""Which addresses of its node's subnet a pod may get."""

from __future__ import annotations

from posix import urandom

from mycelium_cni.node.marks import digest

POD_MARK = b"\xff\x0f"  # groups 5 of every pod address, as Zero-OS gives them


def random_address(subnet: bytes) -> bytes:
    """A pod address as Zero-OS makes them: subnet, ff0f, six random bytes."""
    while True:
        seed = urandom(6)
        if seed not in (bytes(6), b"\xff" * 6):  # Zero-OS refuses these two seeds
            return subnet + POD_MARK + seed


def stable_address(subnet: bytes, *owner: str) -> bytes:
    """The pod address that always belongs to `owner` in this subnet."""
    return subnet + POD_MARK + digest(6, *owner)
