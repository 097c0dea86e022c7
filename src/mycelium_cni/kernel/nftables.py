# SPDX-License-Identifier: Apache-2.0
"""nf_tables messages and expressions, and the transaction that loads them; knows nothing of CNI.

Structures and constants are spelled as in the kernel's `include/uapi/linux/`: nfnetlink.h,
netfilter.h and netfilter/nf_tables.h. Every number in an attribute is big-endian; what a register
holds is as the packet, or for a number of the kernel's own as the machine, has it.

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
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_USERDATA = 1, 2, 3, 6
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2

NFT_SET_INTERVAL, NFT_SET_MAP, NFT_SET_TIMEOUT, NFT_SET_EVAL = 0x4, 0x8, 0x10, 0x20
NFT_SET_ELEM_INTERVAL_END = 1
NFT_DATA_VERDICT = 0xFFFFFF00
NFT_REG_VERDICT, NFT_REG_1, NFT_REG32_00 = 0, 1, 8

NF_DROP, NF_ACCEPT, NFT_JUMP, NFT_GOTO, NFT_RETURN = 0, 1, -3, -4, -5
NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_POST_ROUTING = 0, 2, 4
NF_BR_PRE_ROUTING, NF_BR_LOCAL_IN, NF_BR_FORWARD = 0, 1, 2

NFT_META_PROTOCOL, NFT_META_IIF, NFT_META_IIFNAME, NFT_META_IIFTYPE = 1, 4, 6, 8
NFT_META_L4PROTO = 16
NFT_META_NFPROTO, NFT_META_IIFGROUP, NFT_META_OIFGROUP = 15, 21, 22
NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CMP_LTE, NFT_CMP_GTE = 0, 1, 3, 5
NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 0, 1, 2
NFT_LOOKUP_F_INV, NFT_DYNSET_OP_ADD, NFT_DYNSET_OP_UPDATE = 1, 0, 1
NFT_CT_STATE = 0
CT_INVALID, CT_ESTABLISHED, CT_RELATED = 1, 2, 4
NFT_FIB_RESULT_OIF, NFT_FIB_RESULT_ADDRTYPE = 1, 3
NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR, NFTA_FIB_F_IIF, NFTA_FIB_F_PRESENT = 1, 2, 8, 32
NFT_EXTHDR_OP_IPV6, NFT_EXTHDR_F_PRESENT = 0, 1
IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ROUTING, IPPROTO_FRAGMENT, IPPROTO_ICMPV6 = 6, 17, 43, 44, 58
ETH_P_IPV6 = b"\x86\xdd"
ARPHRD_ETHER = 1  # linux/if_arp.h

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
        """NFT_MSG_NEWTABLE; one that is there is left as it is, its comment too."""
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
        """NFT_MSG_GET{CHAIN,RULE,SET}, to dump what the table has of that kind; of chains, what all
        tables of the family have."""
        return message(kind, self.family, f"read table {self.name}", (1, self.name))

    def chain(self, name: str, *hook: nl.Attribute) -> nl.Message:
        """NFT_MSG_NEWCHAIN, a base chain if `hook` (from `base`) says where it hangs."""
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
        self, name: str, key: Key, flags: int = 0, *, size: int = 0, timeout_ms: int = 0
    ) -> nl.Message:
        """NFT_MSG_NEWSET; with NFT_SET_MAP a map to verdicts. With a timeout it is one that rules
        fill with up to `size` elements, each forgotten when its time is up."""
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
        if timeout_ms:
            attributes += [
                (NFTA_SET_DESC, [(1, be32(size))]),  # NFTA_SET_DESC_SIZE
                (NFTA_SET_TIMEOUT, timeout_ms.to_bytes(8, "big")),
            ]
        attributes += [
            (NFTA_SET_ID, be32(1)),
            (NFTA_SET_USERDATA, bytes((_TLV_KEYBYTEORDER, 4, key.order, 0, 0, 0)) + key.typeof),
        ]
        what = f"add set {name}"
        return message(NFT_MSG_NEWSET, self.family, what, *attributes, flags=nl.NLM_F_CREATE)

    def elements(self, kind: int, name: str, elements: Iterable[list[nl.Attribute]]) -> nl.Message:
        """NFT_MSG_{NEW,GET,DEL}SETELEM of a set; to delete none is to delete all."""
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
    """The type of a set's key: the number that `nft` knows it by, its size, its byte order, and the
    expressions it is the type of, where only these tell its size."""

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
# iface_index . ipv6_addr, iface_index . ether_addr (. ipv6_addr): each part fills up whole
# registers of 4 bytes.
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
    """Prefixes as the elements of an interval set, each the first address and the first behind it.
    None may lie in another."""
    made = []
    for base, length in listed:
        made.append(element(base))
        behind = int.from_bytes(base, "big") + (1 << 128 - length)
        if behind < 1 << 128:
            made.append(element(behind.to_bytes(16, "big"), end=True))
    return made


def base(kind: str, hook: int, priority: int) -> tuple[nl.Attribute, ...]:
    """Where a base chain hangs; what reaches its end is accepted."""
    return (
        (NFTA_CHAIN_TYPE, kind),
        (NFTA_CHAIN_POLICY, be32(NF_ACCEPT)),
        (
            NFTA_CHAIN_HOOK,
            [(NFTA_HOOK_HOOKNUM, be32(hook)), (NFTA_HOOK_PRIORITY, be32(priority))],
        ),
    )


# Expressions, each encoded at once: rules share most of theirs.


def _expression(name: str, *data: nl.Attribute) -> nl.Attribute:
    said: list[nl.Attribute] = [(NFTA_EXPR_NAME, name), (NFTA_EXPR_DATA, [*data])]
    return nl.encode(((NFTA_LIST_ELEM, said),))


def meta(key: int, register: int = NFT_REG_1) -> nl.Attribute:
    """NFTA_META_KEY 2, NFTA_META_DREG 1."""
    return _expression("meta", (2, be32(key)), (1, be32(register)))


def payload(header: int, offset: int, size: int, register: int = NFT_REG_1) -> nl.Attribute:
    """NFTA_PAYLOAD_DREG 1, _BASE 2, _OFFSET 3, _LEN 4."""
    return _expression(
        "payload",
        *((1, be32(register)), (2, be32(header)), (3, be32(offset)), (4, be32(size))),
    )


def compare(op: int, value: bytes) -> nl.Attribute:
    """NFTA_CMP_SREG 1, _OP 2, _DATA 3."""
    data: nl.Attribute = (3, [(NFTA_DATA_VALUE, value)])
    return _expression("cmp", (1, be32(NFT_REG_1)), (2, be32(op)), data)


def mask(value: bytes) -> nl.Attribute:
    """NFTA_BITWISE_SREG 1, _DREG 2, _LEN 3, _MASK 4, _XOR 5."""
    return _expression(
        "bitwise",
        *((1, be32(NFT_REG_1)), (2, be32(NFT_REG_1)), (3, be32(len(value)))),
        (4, [(NFTA_DATA_VALUE, value)]),
        (5, [(NFTA_DATA_VALUE, bytes(len(value)))]),
    )


def lookup(name: str, *, inverted: bool = False) -> nl.Attribute:
    """NFTA_LOOKUP_SET 1, _SREG 2, _FLAGS 5."""
    sought: list[nl.Attribute] = [(1, name), (2, be32(NFT_REG_1))]
    if inverted:
        sought.append((5, be32(NFT_LOOKUP_F_INV)))
    return _expression("lookup", *sought)


def learn(name: str) -> nl.Attribute:
    """NFTA_DYNSET_SET_NAME 1, _OP 3, _SREG_KEY 4: add to a set what the register holds."""
    return _expression("dynset", (1, name), (3, be32(NFT_DYNSET_OP_ADD)), (4, be32(NFT_REG_1)))


def limit(name: str, per_second: int, burst: int) -> nl.Attribute:
    """Go on for so many packets a second and no more, counted for each key in a set by itself.
    NFTA_DYNSET_EXPR 7; NFTA_LIMIT_RATE 1, _UNIT 2 (in seconds), _BURST 3, _TYPE 4, _FLAGS 5."""
    counted: list[nl.Attribute] = [
        *((1, per_second.to_bytes(8, "big")), (2, (1).to_bytes(8, "big")), (3, be32(burst))),
        *((4, be32(0)), (5, be32(0))),
    ]
    return _expression(
        "dynset",
        *((1, name), (3, be32(NFT_DYNSET_OP_UPDATE)), (4, be32(NFT_REG_1))),
        # Encoded here, so without NLA_F_NESTED: that is how the kernel lists it.
        (7, [(NFTA_EXPR_NAME, "limit"), (NFTA_EXPR_DATA, nl.encode(counted))]),
    )


def vmap(name: str) -> nl.Attribute:
    """NFTA_LOOKUP_SET 1, _SREG 2, _DREG 3: what is found is the verdict."""
    return _expression("lookup", (1, name), (2, be32(NFT_REG_1)), (3, be32(NFT_REG_VERDICT)))


def ct_state() -> nl.Attribute:
    """NFTA_CT_DREG 1, _KEY 2."""
    return _expression("ct", (1, be32(NFT_REG_1)), (2, be32(NFT_CT_STATE)))


def fib_present(flags: int) -> nl.Attribute:
    """NFTA_FIB_DREG 1, _RESULT 2, _FLAGS 3: whether there is such a route, as a number."""
    wanted = be32(flags | NFTA_FIB_F_PRESENT)
    return _expression("fib", (3, wanted), (2, be32(NFT_FIB_RESULT_OIF)), (1, be32(NFT_REG_1)))


def exthdr(kind: int, offset: int, size: int, flags: int = 0) -> nl.Attribute:
    """A field of an extension header. NFTA_EXTHDR_DREG 1, _TYPE 2, _OFFSET 3, _LEN 4, _FLAGS 5,
    _OP 6."""
    return _expression(
        "exthdr",
        *((1, be32(NFT_REG_1)), (2, bytes((kind,))), (3, be32(offset)), (4, be32(size))),
        *((6, be32(NFT_EXTHDR_OP_IPV6)), (5, be32(flags))),
    )


def exthdr_present(kind: int) -> nl.Attribute:
    return exthdr(kind, 0, 1, NFT_EXTHDR_F_PRESENT)


def fib_type(flags: int) -> nl.Attribute:
    """What kind of address it is for this node: RTN_UNICAST, RTN_LOCAL, ..."""
    result = be32(NFT_FIB_RESULT_ADDRTYPE)
    return _expression("fib", (3, be32(flags)), (2, result), (1, be32(NFT_REG_1)))


def counter() -> nl.Attribute:
    return _expression("counter")


def masquerade() -> nl.Attribute:
    return _expression("masq")


def verdict(code: int, target: str = "") -> nl.Attribute:
    """NFTA_IMMEDIATE_DREG 1, _DATA 2."""
    return _expression("immediate", (1, be32(NFT_REG_VERDICT)), (2, [_verdict(code, target)]))


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
        """The number of what the packet filter holds, for `commit`."""
        answer = self.request(message(NFT_MSG_GETGEN, NFPROTO_UNSPEC, "read the packet filter"))
        return nl.decode(answer[0], _NFGENMSG.size)[NFTA_GEN_ID]

    def commit(self, *messages: nl.Message, generation: bytes = bytes(4)) -> None:
        """Carry out all messages in one transaction, or none. Every transaction makes a new
        generation (NFT_MSG_GETGEN) of what the packet filter holds: with one, none are carried out
        if it has passed (ERESTART).

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
