# SPDX-License-Identifier: Apache-2.0
"""The question of every ADD: are this network's rules loaded? One datagram each way.

An element's comment says what its chain was made from, and a chain's use count whether its rules
are all there. `content` reads and compares everything.
"""

from __future__ import annotations

from _struct import Struct

from mycelium_cni.guard.wanted import (
    BRIDGE_CHAIN,
    BRIDGE_FAMILY,
    BRIDGE_PODS_USES,
    BRIDGE_USES,
    INET_FAMILY,
    NEW_CHAIN,
    NEW_USES,
    OVERLAY_USES,
    PODS_CHAIN,
    PODS_USES,
    PREROUTING_USES,
    TABLE_NAME,
    Wanted,
    from_chain,
    overlay_chain,
    to_chain,
)
from mycelium_cni.kernel import netlink as nl

# All of nf_tables that the question needs, so that `nftables` is not imported for it.
_GETTABLE, _GETCHAIN, _GETSETELEM = 0xA01, 0xA04, 0xA0D
_NFGENMSG = Struct("=BBH")


def is_loaded(wanted: Wanted) -> bool:
    """Whether the kernel has what is wanted, as far as one question can tell. Raises OSError."""
    group, policy = wanted.group, wanted.policy
    questions = [
        *_INET_QUESTIONS,
        _chain(INET_FAMILY, overlay_chain(wanted.interface)),
        _chain(INET_FAMILY, to_chain(group)),
        _chain(INET_FAMILY, from_chain(group)),
        _element(INET_FAMILY, "overlays", wanted.interface_key),
        _element(INET_FAMILY, "to-network", wanted.key),
    ]
    if policy.ingress != "open":
        questions.append(_NEW_QUESTION)
    if wanted.bridged:
        questions += [*_BRIDGE_QUESTIONS, _element(BRIDGE_FAMILY, "closed", wanted.key)]
    with nl.Socket(nl.NETLINK_NETFILTER) as socket:
        table, prerouting, pods, from_overlay, to, from_, overlay, network, *others = socket.ask(
            *questions
        )
    return (
        _is_awake(table)
        and _uses(prerouting, PREROUTING_USES)
        and _number_of_uses(pods) - PODS_USES in (0, 2, 3, 5)
        and (policy.ingress == "open" or _uses(others.pop(0), NEW_USES))
        and _number_of_uses(from_overlay) - OVERLAY_USES in (0, 1, 2)
        # Each bridged pod adds one use to either chain: the difference is that of the rules.
        and _number_of_uses(to) - _number_of_uses(from_) == wanted.surplus
        and _says(overlay, wanted.overlay_words)
        and _says(network, wanted.network_words)
        and (not others or _is_bridge_loaded(others, closed=policy.ingress == "closed"))
    )


def _is_bridge_loaded(answers: list[bytes | None], *, closed: bool) -> bool:
    table, pods, icmpv6, element = answers
    return (
        _is_awake(table)
        and _uses(pods, BRIDGE_PODS_USES)
        and _uses(icmpv6, BRIDGE_USES)
        and (element is not None) == closed
    )


def ask_table(family: int) -> nl.Message:
    return _question(_GETTABLE, family, (1, TABLE_NAME))


def _question(kind: int, family: int, *attributes: nl.Attribute) -> nl.Message:
    body = _NFGENMSG.pack(family, 0, 0) + nl.encode(attributes)
    return nl.Message(kind, 0, body, "read the packet filter")


def _chain(family: int, name: str) -> nl.Message:
    return _question(_GETCHAIN, family, (1, TABLE_NAME), (3, name))


def _element(family: int, name: str, key: bytes) -> nl.Message:
    sought: nl.Attribute = (3, [(1, [(1, [(1, key)])])])
    return _question(_GETSETELEM, family, (1, TABLE_NAME), (2, name), sought)


_INET_QUESTIONS = (
    ask_table(INET_FAMILY),
    _chain(INET_FAMILY, "prerouting"),
    _chain(INET_FAMILY, PODS_CHAIN),
)
_NEW_QUESTION = _chain(INET_FAMILY, NEW_CHAIN)
_BRIDGE_QUESTIONS = (
    ask_table(BRIDGE_FAMILY),
    _chain(BRIDGE_FAMILY, "from-pods"),
    _chain(BRIDGE_FAMILY, BRIDGE_CHAIN),
)


_AWAKE = nl.encode(((2, bytes(4)),))  # NFTA_TABLE_FLAGS without NFT_TABLE_F_DORMANT
_USE = nl.encode(((6, bytes(4)),))[:4]  # NFTA_CHAIN_USE


def _is_awake(table: bytes | None) -> bool:
    return table is not None and nl.contains(table, _AWAKE)


def _number_of_uses(chain: bytes | None) -> int:
    return int.from_bytes(chain[(at := chain.index(_USE) + 4) : at + 4], "big") if chain else 0


def _uses(chain: bytes | None, number: int) -> bool:
    return chain is not None and nl.contains(chain, _USE + number.to_bytes(4, "big"))


def _says(element: bytes | None, words: str) -> bool:
    """Whether an element carries these words as its comment (NFTA_SET_ELEM_USERDATA)."""
    octets = words.encode() + b"\0"
    return element is not None and nl.contains(element, bytes((0, len(octets))) + octets)
