# SPDX-License-Identifier: Apache-2.0
"""nf_tables messages and expressions, and the transaction that loads them; knows nothing of CNI.

Structures and constants are spelled as in the kernel's `include/uapi/linux/`: nfnetlink.h,
netfilter.h and netfilter/nf_tables.h. Every number in an attribute is big-endian; a register
holds a packet's bytes as they come, and the kernel's own numbers in host order.

A rule here is what `nft` would make of it, expression for expression, so `nft list` shows it as if
it had been typed.
"""

from __future__ import annotations

from _struct import Struct

from mycelium_cni.kernel import netlink as nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFNL_SUBSYS_NFTABLES = 10
NFPROTO_UNSPEC, NFPROTO_INET, NFPROTO_IPV6, NFPROTO_BRIDGE = 0, 1, 10, 7

NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_DELCHAIN = 3, 4, 5
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 6, 7, 8
NFT_MSG_NEWSET, NFT_MSG_GETSET, NFT_MSG_DELSET = 9, 10, 11
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = 12, 13, 14
NFT_MSG_GETGEN = 16
NFNL_BATCH_GENID = 1

NFTA_GEN_ID = 1

NFTA_LIST_ELEM = 1
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_USERDATA = 1, 2, 6
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY = 1, 3, 4, 5
NFTA_CHAIN_USE, NFTA_CHAIN_TYPE = 6, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA = 1, 2, 4, 7
NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS = 1, 2, 3
NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN, NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN = 4, 5, 6, 7
NFTA_SET_DESC, NFTA_SET_ID, NFTA_SET_TIMEOUT, NFTA_SET_USERDATA = 9, 10, 11, 13
NFTA_SET_DESC_SIZE = 1
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_USERDATA = 1, 2, 3, 6
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_META_DREG, NFTA_META_KEY = 1, 2
NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA = 1, 2, 3
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN = 1, 2, 3
NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 4, 5
NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_LOOKUP_DREG, NFTA_LOOKUP_FLAGS = 1, 2, 3, 5
NFTA_DYNSET_SET_NAME, NFTA_DYNSET_OP, NFTA_DYNSET_SREG_KEY, NFTA_DYNSET_EXPR = 1, 3, 4, 7
NFTA_LIMIT_RATE, NFTA_LIMIT_UNIT, NFTA_LIMIT_BURST = 1, 2, 3
NFTA_LIMIT_TYPE, NFTA_LIMIT_FLAGS = 4, 5
NFTA_CT_DREG, NFTA_CT_KEY = 1, 2
NFTA_FIB_DREG, NFTA_FIB_RESULT, NFTA_FIB_FLAGS = 1, 2, 3
NFTA_EXTHDR_DREG, NFTA_EXTHDR_TYPE, NFTA_EXTHDR_OFFSET, NFTA_EXTHDR_LEN = 1, 2, 3, 4
NFTA_EXTHDR_FLAGS, NFTA_EXTHDR_OP = 5, 6
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 2

NFT_SET_INTERVAL, NFT_SET_MAP, NFT_SET_TIMEOUT, NFT_SET_EVAL = 0x4, 0x8, 0x10, 0x20
NFT_SET_ELEM_INTERVAL_END = 1
NFT_DATA_VERDICT = 0xFFFFFF00
NFT_REG_VERDICT, NFT_REG_1, NFT_REG32_01, NFT_REG32_03 = 0, 1, 9, 11

NF_DROP, NF_ACCEPT, NFT_JUMP, NFT_GOTO, NFT_RETURN = 0, 1, -3, -4, -5
NF_INET_PRE_ROUTING, NF_INET_LOCAL_IN, NF_INET_FORWARD, NF_INET_POST_ROUTING = 0, 1, 2, 4
NF_BR_PRE_ROUTING, NF_BR_LOCAL_IN, NF_BR_FORWARD = 0, 1, 2

NFT_META_PROTOCOL, NFT_META_IIF, NFT_META_IIFNAME, NFT_META_IIFTYPE = 1, 4, 6, 8
NFT_META_L4PROTO = 16
NFT_META_NFPROTO, NFT_META_IIFGROUP, NFT_META_OIFGROUP = 15, 21, 22
NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CMP_LTE, NFT_CMP_GTE = 0, 1, 3, 5
NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 0, 1, 2
NFT_LOOKUP_F_INV, NFT_DYNSET_OP_ADD, NFT_DYNSET_OP_UPDATE = 1, 0, 1
NFT_CT_STATE = 0
CT_INVALID, CT_ESTABLISHED, CT_RELATED = 1, 2, 4
NFT_LIMIT_PKTS = 0
NFT_FIB_RESULT_OIF, NFT_FIB_RESULT_OIFNAME, NFT_FIB_RESULT_ADDRTYPE = 1, 2, 3
NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR, NFTA_FIB_F_IIF, NFTA_FIB_F_PRESENT = 1, 2, 8, 32
NFT_EXTHDR_OP_IPV6, NFT_EXTHDR_F_PRESENT = 0, 1
IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ROUTING, IPPROTO_FRAGMENT, IPPROTO_ICMPV6 = 6, 17, 43, 44, 58
ETH_P_IPV6 = b"\x86\xdd"
ARPHRD_ETHER = 1  # linux/if_arp.h
RTN_UNICAST = 1  # linux/rtnetlink.h

_NFGENMSG = Struct("=BBH")  # family, version, resource (big-endian)
_HOST16, _HOST32 = Struct("=H"), Struct("=I")
_TLV_COMMENT = 0  # libnftnl's type of a comment, in every kind of user data
_TLV_KEYBYTEORDER = 0
_HOST_ORDER, _NETWORK_ORDER = 1, 2


def be32(number: int) -> bytes:
    return (number & 0xFFFFFFFF).to_bytes(4, "big")


def host16(number: int) -> bytes:
    return _HOST16.pack(number)


def host32(number: int) -> bytes:
    return _HOST32.pack(number)


def comment(text: str) -> bytes:
    """User data that `nft list` shows as a comment: at most 128 bytes with the final NUL."""
    octets = text.encode()[:127] + b"\0"
    return bytes((_TLV_COMMENT, len(octets))) + octets


def message(
    kind: int, family: int, what: str, *attributes: nl.Attribute, flags: int = 0
) -> nl.Message:
    body = _NFGENMSG.pack(family, 0, 0) + nl.encode(attributes)
    return nl.Message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, body, what)


class Table:
    """Messages about one table and what is in it."""

    __slots__ = ("family", "name")

    def __init__(self, family: int, name: str) -> None:
        self.family = family
        self.name = name

    def add(self, words: str) -> nl.Message:
        """NFT_MSG_NEWTABLE; an existing one is left as it is, its comment too."""
        attributes: tuple[nl.Attribute, ...] = (
            (NFTA_TABLE_NAME, self.name),
            (NFTA_TABLE_FLAGS, be32(0)),
            (NFTA_TABLE_USERDATA, comment(words)),
        )
        what = f"add table {self.name}"
        return message(NFT_MSG_NEWTABLE, self.family, what, *attributes, flags=nl.NLM_F_CREATE)

    def delete(self) -> nl.Message:
        named: nl.Attribute = (NFTA_TABLE_NAME, self.name)
        return message(NFT_MSG_DELTABLE, self.family, f"delete table {self.name}", named)

    def get(self) -> nl.Message:
        named: nl.Attribute = (NFTA_TABLE_NAME, self.name)
        return message(NFT_MSG_GETTABLE, self.family, f"read table {self.name}", named)

    def list_objects(self, kind: int) -> nl.Message:
        """NFT_MSG_GET{CHAIN,RULE,SET}, to dump what the table has of that kind; chains are those of
        all tables of the family."""
        # The same number as NFTA_CHAIN_TABLE and NFTA_SET_TABLE.
        named: nl.Attribute = (NFTA_RULE_TABLE, self.name)
        return message(kind, self.family, f"read table {self.name}", named)

    def chain(self, name: str, *hook: nl.Attribute) -> nl.Message:
        """NFT_MSG_NEWCHAIN, a base chain if `hook` (from `base`) gives its hook."""
        named: tuple[nl.Attribute, ...] = ((NFTA_CHAIN_TABLE, self.name), (NFTA_CHAIN_NAME, name))
        what = f"add chain {name}"
        return message(NFT_MSG_NEWCHAIN, self.family, what, *named, *hook, flags=nl.NLM_F_CREATE)

    def delete_chain(self, name: str) -> nl.Message:
        named: tuple[nl.Attribute, ...] = ((NFTA_CHAIN_TABLE, self.name), (NFTA_CHAIN_NAME, name))
        return message(NFT_MSG_DELCHAIN, self.family, f"delete chain {name}", *named)

    def flush_chain(self, name: str) -> nl.Message:
        """NFT_MSG_DELRULE of all rules of a chain."""
        named: tuple[nl.Attribute, ...] = ((NFTA_RULE_TABLE, self.name), (NFTA_RULE_CHAIN, name))
        return message(NFT_MSG_DELRULE, self.family, f"flush chain {name}", *named)

    def rule(self, chain: str, words: str, *expressions: nl.Attribute) -> nl.Message:
        """NFT_MSG_NEWRULE at the end of a chain. `words` is its comment, and names it in errors."""
        attributes: list[nl.Attribute] = [
            (NFTA_RULE_TABLE, self.name),
            (NFTA_RULE_CHAIN, chain),
            (NFTA_RULE_EXPRESSIONS, list(expressions)),
        ]
        if words:
            attributes.append((NFTA_RULE_USERDATA, comment(words)))
        flags = nl.NLM_F_CREATE | NLM_F_APPEND
        what = f"add rule ({words or chain}) to chain {chain}"
        return message(NFT_MSG_NEWRULE, self.family, what, *attributes, flags=flags)

    def set(
        self, name: str, key: Key, flags: int = 0, *, timeout_ms: int = 0, size: int = 0
    ) -> nl.Message:
        """NFT_MSG_NEWSET; with NFT_SET_MAP a map to verdicts. With a timeout, rules fill it, and
        elements expire. It holds at most `size` elements, 65,535 without one: if we named that
        number, the kernel would reserve a megabyte, in up to 5 ms (nft_dynset_init,
        nft_rhash_init)."""
        if timeout_ms:
            flags |= NFT_SET_EVAL | NFT_SET_TIMEOUT
        attributes: list[nl.Attribute] = [
            (NFTA_SET_TABLE, self.name),
            (NFTA_SET_NAME, name),
            (NFTA_SET_FLAGS, be32(flags)),
            (NFTA_SET_KEY_TYPE, be32(key.type)),
            (NFTA_SET_KEY_LEN, be32(key.size)),
        ]
        if flags & NFT_SET_MAP:
            attributes += [
                (NFTA_SET_DATA_TYPE, be32(NFT_DATA_VERDICT)),
                (NFTA_SET_DATA_LEN, be32(0)),
            ]
        if size:
            attributes.append((NFTA_SET_DESC, [(NFTA_SET_DESC_SIZE, be32(size))]))
        if timeout_ms:
            attributes.append((NFTA_SET_TIMEOUT, timeout_ms.to_bytes(8, "big")))
        attributes += [
            (NFTA_SET_ID, be32(1)),
            (NFTA_SET_USERDATA, bytes((_TLV_KEYBYTEORDER, 4, key.order, 0, 0, 0)) + key.typeof),
        ]
        what = f"add set {name}"
        return message(NFT_MSG_NEWSET, self.family, what, *attributes, flags=nl.NLM_F_CREATE)

    def elements(self, kind: int, name: str, elements: Iterable[list[nl.Attribute]]) -> nl.Message:
        """NFT_MSG_{NEW,GET,DEL}SETELEM of a set; deleting an empty list deletes all."""
        listed: list[nl.Attribute] = [(NFTA_LIST_ELEM, element) for element in elements]
        attributes: list[nl.Attribute] = [
            (NFTA_SET_ELEM_LIST_TABLE, self.name),
            (NFTA_SET_ELEM_LIST_SET, name),
        ]
        if listed:
            attributes.append((NFTA_SET_ELEM_LIST_ELEMENTS, listed))
        flags = nl.NLM_F_CREATE if kind == NFT_MSG_NEWSETELEM else 0
        what = {NFT_MSG_NEWSETELEM: "add to", NFT_MSG_DELSETELEM: "delete from"}.get(kind, "read")
        return message(kind, self.family, f"{what} set {name}", *attributes, flags=flags)


NLM_F_APPEND = 0x800


class Key:
    """The type of a set's key: nft's number for it, its size, its byte order, and, if only these
    tell its size, the expressions whose type it is."""

    __slots__ = ("order", "size", "type", "typeof")

    def __init__(self, type_: int, size: int, order: int, typeof: bytes = b"") -> None:
        self.type = type_
        self.size = size
        self.order = order
        self.typeof = typeof


# Data types are nft's (include/datatype.h): the kernel stores, and never reads, the number.
IFNAME = Key(41, 16, _HOST_ORDER)
DEVGROUP = Key(35, 4, _HOST_ORDER)
IPV6_ADDR = Key(8, 16, _NETWORK_ORDER)
INET_PROTO = Key(12, 1, _NETWORK_ORDER)
INET_SERVICE = Key(13, 2, _NETWORK_ORDER)
# iface_index . ipv6_addr, iface_index . ether_addr (. ipv6_addr): each part is padded to
# whole registers of 4 bytes.
SENDER = Key(20 << 6 | 8, 4 + 16, _NETWORK_ORDER)
PORT_MAC = Key(20 << 6 | 9, 4 + 8, _NETWORK_ORDER)
INTERFACE = Key(20, 4, _HOST_ORDER)
PORT = Key(20 << 12 | 9 << 6 | 8, 4 + 8 + 16, _NETWORK_ORDER)

# typeof iif . @th,256,128, as libnftnl writes it (NFTNL_UDATA_SET_KEY_TYPEOF 3): a meta expression
# and a payload expression, each with its number in nft's `enum expr_types`.
_TYPEOF_IIF = b"\0\x04\x09\0\0\0\x01\x06\0\x04\x04\0\0\0"
_TYPEOF_QUOTED = (
    b"\0\x04\x07\0\0\0\x01\x1e\0\x04\0\0\0\0\x01\x04\0\0\0\0\x02\x04\x03\0\0\0"
    b"\x03\x04\0\x01\0\0\x04\x04\x80\0\0\0"
)
QUOTED = Key(
    20 << 6 | 4,
    4 + 16,
    _NETWORK_ORDER,
    b"\x03\x40\0\x04\x0d\0\0\0\x01\x38\0\x0e" + _TYPEOF_IIF + b"\x01\x26" + _TYPEOF_QUOTED,
)


def element(
    key: bytes, target: str = "", words: str = "", *, end: bool = False
) -> list[nl.Attribute]:
    """An element of a set; `target` is the chain it goes to, in a map."""
    attributes: list[nl.Attribute] = [(NFTA_SET_ELEM_KEY, [(NFTA_DATA_VALUE, key)])]
    if target:
        attributes.append((NFTA_SET_ELEM_DATA, [_verdict(NFT_GOTO, target)]))
    if end:
        attributes.append((NFTA_SET_ELEM_FLAGS, be32(NFT_SET_ELEM_INTERVAL_END)))
    if words:
        attributes.append((NFTA_SET_ELEM_USERDATA, comment(words)))
    return attributes


def keys(payload: bytes) -> list[bytes]:
    """The keys of the elements in one NFT_MSG_NEWSETELEM of a dump."""
    listed = nl.decode(payload, _NFGENMSG.size).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    elements = [nl.decode(element, 0) for _, element in nl.attributes(listed, 0)]
    return [nl.decode(each[NFTA_SET_ELEM_KEY], 0)[NFTA_DATA_VALUE] for each in elements]


def prefixes(listed: Iterable[tuple[bytes, int]]) -> list[list[nl.Attribute]]:
    """Prefixes as the elements of an interval set, each its first address and the first after it.
    None may contain another."""
    made = []
    for base, length in listed:
        made.append(element(base))
        end = int.from_bytes(base, "big") + (1 << 128 - length)
        if end < 1 << 128:
            made.append(element(end.to_bytes(16, "big"), end=True))
    return made


def base(kind: str, hook: int, priority: int) -> tuple[nl.Attribute, ...]:
    """The hook of a base chain; what reaches the chain's end is accepted."""
    return (
        (NFTA_CHAIN_TYPE, kind),
        (NFTA_CHAIN_POLICY, be32(NF_ACCEPT)),
        (
            NFTA_CHAIN_HOOK,
            [(NFTA_HOOK_HOOKNUM, be32(hook)), (NFTA_HOOK_PRIORITY, be32(priority))],
        ),
    )


# Expressions, encoded when they are made: rules share most of them.


def _expression(name: str, *data: nl.Attribute) -> nl.Attribute:
    said: list[nl.Attribute] = [(NFTA_EXPR_NAME, name), (NFTA_EXPR_DATA, [*data])]
    return nl.encode(((NFTA_LIST_ELEM, said),))


def meta(key: int, register: int = NFT_REG_1) -> nl.Attribute:
    """What the kernel knows of a packet: NFT_META_*."""
    return _expression("meta", (NFTA_META_KEY, be32(key)), (NFTA_META_DREG, be32(register)))


def payload(header: int, offset: int, size: int, register: int = NFT_REG_1) -> nl.Attribute:
    """Bytes of a packet; `offset` is from the start of that header."""
    return _expression(
        "payload",
        *((NFTA_PAYLOAD_DREG, be32(register)), (NFTA_PAYLOAD_BASE, be32(header))),
        *((NFTA_PAYLOAD_OFFSET, be32(offset)), (NFTA_PAYLOAD_LEN, be32(size))),
    )


def compare(op: int, value: bytes) -> nl.Attribute:
    """Continue if the comparison (NFT_CMP_*) with the register holds."""
    data: nl.Attribute = (NFTA_CMP_DATA, [(NFTA_DATA_VALUE, value)])
    return _expression("cmp", (NFTA_CMP_SREG, be32(NFT_REG_1)), (NFTA_CMP_OP, be32(op)), data)


def mask(value: bytes) -> nl.Attribute:
    """Keep these bits of the register."""
    return _expression(
        "bitwise",
        *((NFTA_BITWISE_SREG, be32(NFT_REG_1)), (NFTA_BITWISE_DREG, be32(NFT_REG_1))),
        (NFTA_BITWISE_LEN, be32(len(value))),
        (NFTA_BITWISE_MASK, [(NFTA_DATA_VALUE, value)]),
        (NFTA_BITWISE_XOR, [(NFTA_DATA_VALUE, bytes(len(value)))]),
    )


def lookup(name: str, *, inverted: bool = False) -> nl.Attribute:
    """Continue if the set has the register's value; `inverted`: if it has not."""
    sought: list[nl.Attribute] = [(NFTA_LOOKUP_SET, name), (NFTA_LOOKUP_SREG, be32(NFT_REG_1))]
    if inverted:
        sought.append((NFTA_LOOKUP_FLAGS, be32(NFT_LOOKUP_F_INV)))
    return _expression("lookup", *sought)


def learn(name: str) -> nl.Attribute:
    """Add to a set what the register holds."""
    return _expression("dynset", *_dynset(name, NFT_DYNSET_OP_ADD))


def limit(name: str, per_second: int, burst: int) -> nl.Attribute:
    """Match up to so many packets a second, for each key of a set."""
    counted: list[nl.Attribute] = [
        (NFTA_LIMIT_RATE, per_second.to_bytes(8, "big")),
        (NFTA_LIMIT_UNIT, (1).to_bytes(8, "big")),  # seconds
        (NFTA_LIMIT_BURST, be32(burst)),
        (NFTA_LIMIT_TYPE, be32(NFT_LIMIT_PKTS)),
        (NFTA_LIMIT_FLAGS, be32(0)),
    ]
    return _expression(
        "dynset",
        *_dynset(name, NFT_DYNSET_OP_UPDATE),
        # Encoded here, so without NLA_F_NESTED: that is how the kernel lists it.
        (NFTA_DYNSET_EXPR, [(NFTA_EXPR_NAME, "limit"), (NFTA_EXPR_DATA, nl.encode(counted))]),
    )


def _dynset(name: str, operation: int) -> tuple[nl.Attribute, ...]:
    return (
        (NFTA_DYNSET_SET_NAME, name),
        (NFTA_DYNSET_OP, be32(operation)),
        (NFTA_DYNSET_SREG_KEY, be32(NFT_REG_1)),
    )


def vmap(name: str) -> nl.Attribute:
    """Take the verdict that the map has for the register's value."""
    return _expression(
        "lookup",
        *((NFTA_LOOKUP_SET, name), (NFTA_LOOKUP_SREG, be32(NFT_REG_1))),
        (NFTA_LOOKUP_DREG, be32(NFT_REG_VERDICT)),
    )


def ct_state() -> nl.Attribute:
    """The state of the packet's connection, as a mask of CT_*."""
    key: nl.Attribute = (NFTA_CT_KEY, be32(NFT_CT_STATE))
    return _expression("ct", (NFTA_CT_DREG, be32(NFT_REG_1)), key)


def fib_present(flags: int) -> nl.Attribute:
    """Whether there is such a route, 1 or 0."""
    return _fib(flags | NFTA_FIB_F_PRESENT, NFT_FIB_RESULT_OIF)


def exthdr(kind: int, offset: int, size: int, flags: int = 0) -> nl.Attribute:
    """A field of an extension header."""
    return _expression(
        "exthdr",
        *((NFTA_EXTHDR_DREG, be32(NFT_REG_1)), (NFTA_EXTHDR_TYPE, bytes((kind,)))),
        *((NFTA_EXTHDR_OFFSET, be32(offset)), (NFTA_EXTHDR_LEN, be32(size))),
        *((NFTA_EXTHDR_OP, be32(NFT_EXTHDR_OP_IPV6)), (NFTA_EXTHDR_FLAGS, be32(flags))),
    )


def exthdr_present(kind: int) -> nl.Attribute:
    return exthdr(kind, 0, 1, NFT_EXTHDR_F_PRESENT)


def fib_output(flags: int) -> nl.Attribute:
    """The name of the route's output link; empty if the address is the node's own."""
    return _fib(flags, NFT_FIB_RESULT_OIFNAME)


def fib_type(flags: int) -> nl.Attribute:
    """What kind of address it is for this node: RTN_UNICAST, RTN_LOCAL, ..."""
    return _fib(flags, NFT_FIB_RESULT_ADDRTYPE)


def _fib(flags: int, result: int) -> nl.Attribute:
    return _expression(
        "fib",
        *((NFTA_FIB_FLAGS, be32(flags)), (NFTA_FIB_RESULT, be32(result))),
        (NFTA_FIB_DREG, be32(NFT_REG_1)),
    )


def counter() -> nl.Attribute:
    return _expression("counter")


def masquerade() -> nl.Attribute:
    return _expression("masq")


def verdict(code: int, target: str = "") -> nl.Attribute:
    """What becomes of the packet; `target` is the chain it goes or jumps to."""
    data: nl.Attribute = (NFTA_IMMEDIATE_DATA, [_verdict(code, target)])
    return _expression("immediate", (NFTA_IMMEDIATE_DREG, be32(NFT_REG_VERDICT)), data)


def _verdict(code: int, target: str) -> nl.Attribute:
    said: list[nl.Attribute] = [(NFTA_VERDICT_CODE, be32(code))]
    if target:
        said.append((NFTA_VERDICT_CHAIN, target))
    return NFTA_DATA_VERDICT, said


class Socket(nl.Socket):
    """A NETLINK_NETFILTER socket of the network namespace the calling thread is in."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(nl.NETLINK_NETFILTER)

    def generation(self) -> bytes:
        """The packet filter's current generation, for `commit`."""
        answer = self.request(message(NFT_MSG_GETGEN, NFPROTO_UNSPEC, "read the packet filter"))
        return nl.decode(answer[0], _NFGENMSG.size)[NFTA_GEN_ID]

    def commit(self, *messages: nl.Message, generation: bytes = bytes(4)) -> None:
        """Carry out all messages in one transaction, or none. Every transaction makes a new
        generation (NFT_MSG_GETGEN) of the packet filter: if one is given and no longer current,
        none are carried out (ERESTART).

        Raises NetlinkError for the first message that was refused.
        """
        resource = int.from_bytes(NFNL_SUBSYS_NFTABLES.to_bytes(2, "big"), "little")
        frame = _NFGENMSG.pack(0, 0, resource)
        seen = nl.encode(((NFNL_BATCH_GENID, generation),))
        begin = nl.Message(NFNL_MSG_BATCH_BEGIN, 0, frame + seen, "change the packet filter")
        end = nl.Message(NFNL_MSG_BATCH_END, 0, frame, "change the packet filter")
        refusals = self._exchange((begin, *messages, end), framed=True)[1]
        if refusals:
            raise refusals[min(refusals)]
