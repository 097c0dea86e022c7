# SPDX-License-Identifier: Apache-2.0
"""Which addresses of its node's subnet a pod may get, and the MAC that goes with each."""

from __future__ import annotations

from _blake2 import blake2b
from posix import urandom

from mycelium_cni.node.marks import digest

POD_MARK = b"\xff\x0f"  # groups 5 of every pod address, as Zero-OS gives them
# The first octet of MACs that are made from addresses: locally administered, unicast, and not in
# common use. The host link's is 66 (guard.counterpart).
MAC_OCTET = b"\x62"


def random_address(subnet: bytes) -> bytes:
    """A pod address as Zero-OS makes them: subnet, ff0f, six random bytes."""
    while True:
        seed = urandom(6)
        if seed not in (bytes(6), b"\xff" * 6):  # Zero-OS refuses these two seeds
            return subnet + POD_MARK + seed


def stable_address(subnet: bytes, *owner: str) -> bytes:
    """The pod address that always belongs to `owner` in this subnet."""
    return subnet + POD_MARK + digest(6, *owner)


def mac_of(address: bytes) -> bytes:
    """The MAC of the pod with that address, unless another was requested: a reused address keeps
    its MAC, so what neighbours have learned stays true (docs/adr/0007)."""
    return MAC_OCTET + blake2b(address, digest_size=5).digest()
