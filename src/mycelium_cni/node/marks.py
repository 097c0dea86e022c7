# SPDX-License-Identifier: Apache-2.0
"""The marks that tell which kernel objects are ours: groups, a protocol, an alias."""

from __future__ import annotations

from _blake2 import blake2b

# The high four bits of a group are the same for every network, so one static rule matches all our
# links; 28 bits tell networks apart. The bridge, and links being deleted, have other high bits.
GROUP_MASK, GROUP = 0xF0000000, 0x60000000
BRIDGE_GROUP, DELETE_GROUP = 0x50000000, 0x70000000
GUARDED_MASK = GROUP_MASK & ~(GROUP ^ DELETE_GROUP)  # a pod may send until its link is gone

# Who made a route, a neighbour or an address of the node (`ip route show proto 77`); rt_protos
# leaves the number free. `mycelium-cni teardown` removes what carries it.
PROTOCOL = 77
BRIDGE_ALIAS = "mycelium-cni: made for pods, gone with `mycelium-cni teardown`"

_VISIBLE = frozenset(map(chr, range(ord("!"), ord("~") + 1)))


def group(network: str) -> int:
    """The IFLA_GROUP of a network's host links; never 0, the default group of all links."""
    return GROUP | int.from_bytes(digest(4, network), "big") & ~GROUP_MASK


def visible(word: str, limit: int) -> str:
    """A word for an alias: visible ASCII, and no more than `limit` characters."""
    kept = word[: limit + 1]
    if not _VISIBLE.issuperset(kept):
        kept = "".join([c if c in _VISIBLE else "?" for c in kept])
    return kept if len(kept) <= limit else kept[: limit - 1] + "~"


def network_word(network: str) -> str:
    """How the alias of a host link names its network."""
    return visible(network, 40)


def word(alias: str, key: str) -> str:
    """What the alias of a host link says under that key, '' if nothing."""
    for each in alias.split(" "):
        if each.startswith(f"{key}="):
            return each[len(key) + 1 :]
    return ""


def digest(size: int, *words: str) -> bytes:
    """The hash of `size` bytes from which names, groups and addresses are made."""
    # NUL cannot stand in any of the words, so ("a-b", "c") and ("a", "b-c") differ.
    return blake2b("\0".join(words).encode("utf-8", "surrogateescape"), digest_size=size).digest()
