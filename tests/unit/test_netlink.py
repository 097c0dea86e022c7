# SPDX-License-Identifier: Apache-2.0
"""The bytes sent to the kernel, against bytes written down by hand from linux/*.h, and what is made
of the bytes that come back. (little-endian, as on every machine this runs on)"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable
from socket import MSG_DONTWAIT

import pytest

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.patience import Patience

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="golden bytes are little-endian")

ADDRESS = bytes.fromhex("05a12b3c4d5e6f70ff0f000000000009")
NODE = bytes.fromhex("05a12b3c4d5e6f70dd15ed7ce46d7dcc")
GATEWAY = bytes.fromhex("fe800000000000000000000000000001")
MAC = bytes.fromhex("020000000001")

CREATE, EXCL, REPLACE = 0x400, 0x200, 0x100


def golden(text: str) -> str:
    """Hex without its blanks and the remarks behind `#`."""
    return "".join("".join(line.partition("#")[0].split()) for line in text.splitlines())


def test_a_link_is_configured_by_its_index() -> None:
    """As `ip link set dev X addrgenmode none`."""
    none: nl.Attribute = (
        nl.IFLA_AF_SPEC,
        [(nl.AF_INET6, [(nl.IFLA_INET6_ADDR_GEN_MODE, b"\x01")])],
    )
    message = nl.link(nl.RTM_NEWLINK, "configure", none, index=7)
    assert (message.kind, message.flags) == (16, 0)
    assert message.body.hex() == golden("""
        00 00 0000  07000000  00000000 00000000  # ifinfomsg: AF_UNSPEC, index 7, nothing changes
        1000 1a80                                # IFLA_AF_SPEC, nested
          0c00 0a80                              #   AF_INET6, nested
            0500 0800  01 000000                 #     IFLA_INET6_ADDR_GEN_MODE 1, padded
    """)


@pytest.mark.parametrize(("state", "flags"), [(nl.IFF_UP, "01000000"), (0, "00000000")])
def test_a_link_is_set_up_and_down_without_touching_its_other_flags(state: int, flags: str) -> None:
    message = nl.link(nl.RTM_NEWLINK, "set", index=0x01020304, state=state)
    assert message.body.hex() == f"00000000 04030201 {flags} 01000000".replace(" ", "")


def test_a_veth_is_created_with_its_peer() -> None:
    """As `ip link add v0 address … group 5 type veth peer name v1 netns …`."""
    peer = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + nl.encode(
        [(nl.IFLA_IFNAME, "v1"), (nl.IFLA_MTU, 1400), (nl.IFLA_NET_NS_FD, 4)]
    )
    kind = (nl.IFLA_INFO_KIND, b"veth")
    message = nl.link(
        nl.RTM_NEWLINK,
        "create",
        (nl.IFLA_IFNAME, "v0"),
        (nl.IFLA_ADDRESS, MAC),
        (nl.IFLA_GROUP, 5),
        (nl.IFLA_LINKINFO, [kind, (nl.IFLA_INFO_DATA, [(nl.VETH_INFO_PEER, peer)])]),
        flags=nl.NLM_F_CREATE | nl.NLM_F_EXCL | nl.NLM_F_ECHO,
    )
    assert (message.kind, message.flags) == (16, CREATE | EXCL | 0x8)
    assert message.body.hex() == golden("""
        00 00 0000  00000000  00000000 00000000
        0700 0300  76 30 00 00                   # IFLA_IFNAME "v0\\0", padded
        0a00 0100  020000000001 0000             # IFLA_ADDRESS, padded
        0800 1b00  05000000                      # IFLA_GROUP 5
        3c00 1280                                # IFLA_LINKINFO, nested
          0800 0100  76657468                    #   IFLA_INFO_KIND "veth", no NUL
          3000 0280                              #   IFLA_INFO_DATA, nested
            2c00 0100                            #     VETH_INFO_PEER: ifinfomsg and attributes
              00 00 0000  00000000  00000000 00000000
              0700 0300  76 31 00 00             #       IFLA_IFNAME "v1\\0", padded
              0800 0400  78050000                #       IFLA_MTU 1400
              0800 1c00  04000000                #       IFLA_NET_NS_FD 4
    """)


def test_an_alternative_name_is_one_property() -> None:
    """As `ip link property add dev X altname 5a1::9`."""
    message = nl.link_property(nl.RTM_NEWLINKPROP, "reserve", 7, "5a1::9")
    assert (message.kind, message.flags) == (108, CREATE | EXCL)
    assert message.body.hex() == golden("""
        00 00 0000  07000000  00000000 00000000
        1000 3480                                # IFLA_PROP_LIST, nested
          0b00 3500  3561313a3a39 00  00         #   IFLA_ALT_IFNAME "5a1::9\\0", padded
    """)


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("eth0", "0900 0300  65746830 00 000000"),
        ("a" * 15, "1400 0300" + "61" * 15 + "00"),
        ("a" * 16, "1500 3500" + "61" * 16 + "00 000000"),  # does not fit IFNAMSIZ
        ("é" * 8, "1500 3500" + "c3a9" * 8 + "00 000000"),
        ("\udcff", "0600 0300  ff 00 0000"),  # a name is any bytes
    ],
)
def test_a_link_is_asked_for_by_its_name_of_either_kind(name: str, attribute: str) -> None:
    message = nl.get_link(name)
    assert (message.kind, message.flags) == (18, 0)
    without_counters = "0800 1d00  08000000"  # IFLA_EXT_MASK
    assert message.body.hex() == "00" * 16 + golden(attribute) + golden(without_counters)


def test_an_address_is_never_tentative() -> None:
    """As `ip addr add …/128 dev X nodad noprefixroute`, whose IFA_ADDRESS says the same once
    more."""
    message = nl.address(nl.RTM_NEWADDR, "add", 7, ADDRESS, 128)
    assert (message.kind, message.flags) == (20, CREATE | EXCL)
    assert message.body.hex() == golden("""
        0a 80 00 00  07000000                             # ifaddrmsg: AF_INET6, /128, index 7
        1400 0200  05a12b3c4d5e6f70ff0f000000000009       # IFA_LOCAL
        0800 0800  02020000                               # IFA_FLAGS: NODAD, NOPREFIXROUTE
    """)
    assert nl.address(nl.RTM_DELADDR, "delete", 7, ADDRESS, 128).flags == 0


def test_a_marked_address_says_whose_it_is() -> None:
    message = nl.address(nl.RTM_NEWADDR, "add", 7, ADDRESS, 64, protocol=77)
    assert message.body.hex().endswith(golden("0800 0800 02000000  0500 0b00 4d 000000"))


def test_a_neighbour_is_permanent_or_one_that_may_move() -> None:
    attributes = golden("""
        1400 0100  05a12b3c4d5e6f70ff0f000000000009       # NDA_DST
        0a00 0200  020000000001 0000                      # NDA_LLADDR
        0500 0c00  4d 000000                              # NDA_PROTOCOL 77
    """)
    fixed = nl.neighbour("set", 7, ADDRESS, MAC, 77, permanent=True)
    assert (fixed.kind, fixed.flags) == (28, CREATE | REPLACE)
    # ndmsg: AF_INET6, index 7, NUD_PERMANENT, no flags, unicast
    assert fixed.body.hex() == golden("0a 000000  07000000  8000 00 01") + attributes
    moving = nl.neighbour("set", 7, ADDRESS, MAC, 77, permanent=False)
    # NUD_REACHABLE, NTF_EXT_LEARNED
    assert moving.body.hex() == golden("0a 000000  07000000  0200 10 01") + attributes


def test_a_proxy_entry_has_no_mac() -> None:
    """As `ip neigh add proxy fe80::1 dev X proto 77`."""
    message = nl.proxy_neighbour(nl.RTM_NEWNEIGH, "answer", 7, GATEWAY, 77)
    assert (message.kind, message.flags) == (28, CREATE)
    assert message.body.hex() == golden("""
        0a 000000  07000000  8000 08 01                   # NUD_PERMANENT, NTF_PROXY
        1400 0100  fe800000000000000000000000000001
        0500 0c00  4d 000000
    """)


def test_proxy_entries_of_a_link_are_answered_for_at_once() -> None:
    """RTM_SETNEIGHTBL, which iproute2 sends for `ip ntable change name ndisc_cache dev X
    proxy_delay 0`."""
    message = nl.no_proxy_delay("answer", 7)
    assert (message.kind, message.flags) == (67, 0)
    assert message.body.hex() == golden("""
        0a 000000
        1000 0100  6e646973635f636163686500                 # ndisc_cache
        1800 0680  0800 0100  07000000                      # NDTA_PARMS: NDTPA_IFINDEX
                   0c00 0d00  0000000000000000              # NDTPA_PROXY_DELAY
    """)


def test_a_route_to_a_pod() -> None:
    """As `ip -6 route add …/128 dev X src … proto 77`."""
    source = (nl.RTA_PREFSRC, NODE)
    message = nl.route(nl.RTM_NEWROUTE, "add", (ADDRESS, 128), (nl.RTA_OIF, 7), source, protocol=77)
    assert (message.kind, message.flags) == (24, CREATE | EXCL)
    assert message.body.hex() == golden("""
        0a 80 00 00  00 4d 00 01  00000000   # rtmsg: /128, table below, proto 77, universe, unicast
        1400 0100  05a12b3c4d5e6f70ff0f000000000009       # RTA_DST
        0800 0f00  fe000000                               # RTA_TABLE main
        0800 0400  07000000                               # RTA_OIF
        1400 0700  05a12b3c4d5e6f70dd15ed7ce46d7dcc       # RTA_PREFSRC
    """)


def test_a_route_of_a_pod_with_all_its_words() -> None:
    message = nl.route(
        nl.RTM_NEWROUTE,
        "add",
        (bytes([4]) + bytes(15), 7),
        (nl.RTA_GATEWAY, GATEWAY),
        (nl.RTA_PRIORITY, 50),
        (nl.RTA_METRICS, [(nl.RTAX_MTU, 1380), (nl.RTAX_ADVMSS, 1320)]),
        protocol=77,
        table=1000,
        scope=253,
    )
    assert message.body.hex() == golden("""
        0a 07 00 00  00 4d fd 01  00000000
        1400 0100  04000000000000000000000000000000
        0800 0f00  e8030000                               # RTA_TABLE 1000
        1400 0500  fe800000000000000000000000000001       # RTA_GATEWAY
        0800 0600  32000000                               # RTA_PRIORITY 50
        1400 0880                                         # RTA_METRICS, nested
          0800 0200  64050000                             #   RTAX_MTU 1380
          0800 0800  28050000                             #   RTAX_ADVMSS 1320
    """)


def test_an_unreachable_route_has_no_link() -> None:
    """As `ip -6 route add unreachable 400::/7 proto 77 metric 4294967295`."""
    message = nl.route(
        nl.RTM_NEWROUTE,
        "add",
        (bytes([4]) + bytes(15), 7),
        (nl.RTA_PRIORITY, 0xFFFFFFFF),
        protocol=77,
        type_=nl.RTN_UNREACHABLE,
    )
    assert message.body.hex() == golden("""
        0a 07 00 00  00 4d 00 07  00000000
        1400 0100  04000000000000000000000000000000
        0800 0f00  fe000000
        0800 0600  ffffffff
    """)


def test_attributes_survive_encoding_and_decoding() -> None:
    values: list[nl.Attribute] = [
        (1, b""),
        (2, b"x"),
        (3, b"four"),
        (4, b"fives"),
        (5, 0xFFFFFFFF),
        (6, "name"),
    ]
    encoded = nl.encode(values)
    assert len(encoded) % 4 == 0
    expected = {1: b"", 2: b"x", 3: b"four", 4: b"fives", 5: b"\xff" * 4, 6: b"name\0"}
    assert nl.decode(b"header12" + encoded, 8) == expected


@pytest.mark.parametrize(
    "payload", ["", "00", "0000", "03000100", "0000ffff" * 4, "ffff0100 00"], ids=repr
)
def test_attributes_that_end_early_end_the_reading(payload: str) -> None:
    """No endless loop, no exception: at worst a shorter value."""
    assert len(nl.decode(bytes.fromhex(payload.replace(" ", "")), 0)) <= 1


# The socket: a kernel made of canned answers


class Kernel:
    """Stands where `_socket.socket` does: keeps what was sent, answers with what it is given."""

    def __init__(self, *_: int) -> None:
        self.options: list[tuple[int, int, int]] = []
        self.sent: list[bytes] = []
        self.answers: list[bytes | OSError] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options.append((level, option, value))

    def send(self, datagram: bytes) -> int:
        self.sent.append(datagram)
        return len(datagram)

    def recv(self, size: int, flags: int) -> bytes:
        assert flags == MSG_DONTWAIT
        answer = self.answers.pop(0) if self.answers else BlockingIOError(errno.EAGAIN, "nothing")
        if isinstance(answer, OSError):
            raise answer
        assert len(answer) <= size
        return answer


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(nl, "socket", lambda *_: kernel)
    return kernel


def answer(kind: int, sequence: int, payload: bytes, flags: int = 0) -> bytes:
    padded = payload + bytes(-len(payload) & 3)
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 99) + padded


def ack(sequence: int, number: int = 0, reason: str = "") -> bytes:
    """NLMSG_ERROR: errno, the request's header, maybe the kernel's sentence."""
    payload = struct.pack("=i", -number) + bytes(16)
    if not reason:
        return answer(2, sequence, payload, 0x100)
    sentence = reason.encode() + b"\0"
    payload += struct.pack("=HH", 4 + len(sentence), 1) + sentence
    return answer(2, sequence, payload, 0x300)


def done(sequence: int, flags: int = 2) -> bytes:
    return answer(3, sequence, bytes(4), flags)


def messages(datagram: bytes) -> list[tuple[int, int, int, bytes]]:
    """Type, flags, sequence and body of each message of a datagram."""
    found = []
    while datagram:
        length, kind, flags, sequence, port = struct.unpack_from("=IHHII", datagram)
        assert port == 0
        found.append((kind, flags, sequence, datagram[16:length]))
        datagram = datagram[length + 3 & ~3 :]
    return found


def requests(count: int) -> list[nl.Message]:
    return [nl.Message(24, CREATE, bytes([n]) * 4, f"step {n}") for n in range(count)]


def test_the_kernel_is_asked_for_its_own_words(kernel: Kernel) -> None:
    nl.Socket()
    assert sorted(kernel.options) == [(270, 10, 1), (270, 11, 1)]


def test_the_kernel_is_asked_once_for_strict_filters_of_dumps(kernel: Kernel) -> None:
    socket = nl.Socket()
    before = len(kernel.options)
    for sequence in range(2):
        kernel.answers = [answer(3, sequence, bytes(4), 2)]
        socket.dump(requests(1)[0])
    assert kernel.options[before:] == [(270, 12, 1)]


def test_a_batch_is_one_datagram_of_which_the_last_message_asks_for_an_answer(
    kernel: Kernel,
) -> None:
    socket = nl.Socket()
    kernel.answers = [ack(2), ack(3)]
    assert socket.request(*requests(3)) == []
    socket.request(*requests(1))
    assert [messages(datagram) for datagram in kernel.sent] == [
        [
            (24, CREATE | 1, 0, b"\0\0\0\0"),
            (24, CREATE | 1, 1, b"\1\1\1\1"),
            (24, CREATE | 5, 2, b"\2\2\2\2"),
        ],
        [(24, CREATE | 5, 3, b"\0\0\0\0")],
    ]


@pytest.mark.parametrize("join", [list, lambda parts: [b"".join(parts)]])
def test_what_the_kernel_made_is_returned_in_order(
    kernel: Kernel, join: Callable[[list[bytes]], list[bytes | OSError]]
) -> None:
    socket = nl.Socket()
    kernel.answers = join([answer(16, 0, b"link"), answer(16, 1, b"peer"), ack(1)])
    assert socket.request(*requests(2)) == [b"link", b"peer"]


def test_the_first_refusal_is_raised_after_the_whole_batch_was_answered(kernel: Kernel) -> None:
    socket = nl.Socket()
    reason = "Invalid source address"
    kernel.answers = [ack(1, errno.EINVAL, reason), ack(2, errno.ENODEV), ack(3)]
    with pytest.raises(nl.NetlinkError) as raised:
        socket.request(*requests(4))
    assert raised.value.errno == errno.EINVAL
    assert raised.value.strerror == "step 1: Invalid argument (Invalid source address)"
    assert kernel.answers == []  # nothing is left for the next request to trip over


def test_ensure_tells_what_it_made_and_what_was_there(kernel: Kernel) -> None:
    socket = nl.Socket()
    kernel.answers = [ack(1, errno.EEXIST), ack(3, errno.EEXIST)]
    assert socket.ensure(*requests(4)) == [True, False, True, False]


def test_ensure_forgives_nothing_else(kernel: Kernel) -> None:
    socket = nl.Socket()
    kernel.answers = [ack(0, errno.EEXIST), ack(1, errno.EPERM), ack(2)]
    with pytest.raises(nl.NetlinkError, match="step 1: Operation not permitted"):
        socket.ensure(*requests(3))


def test_a_dump_is_read_to_its_end(kernel: Kernel) -> None:
    socket = nl.Socket()
    kernel.answers = [
        answer(20, 0, b"one1", 2) + answer(20, 0, b"two2", 2),
        answer(20, 0, b"three", 2),
        done(0),
    ]
    assert socket.dump(requests(1)[0]) == [b"one1", b"two2", b"three"]
    assert [flags for _, flags, _, _ in messages(kernel.sent[0])] == [0x301]


def test_a_dump_of_a_table_that_changed_meanwhile_is_asked_for_again(kernel: Kernel) -> None:
    socket = nl.Socket()
    kernel.answers = [
        answer(20, 0, b"old!", 2 | 0x10),
        done(0, 2),
        answer(20, 1, b"new!", 2),
        done(1),
    ]
    assert socket.dump(requests(1)[0]) == [b"new!"]


def test_a_table_that_never_stands_still_is_an_error(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = nl.Socket()
    kernel.answers = [done(n, 2 | 0x10) for n in range(100)]
    monkeypatch.setattr(Patience, "LIMIT_S", 0.0)
    with pytest.raises(nl.NetlinkError, match=r"step 0 \(the table kept changing\): "):
        socket.dump(requests(1)[0])


def test_an_answer_that_was_dropped_does_not_hide_those_that_were_not(kernel: Kernel) -> None:
    socket = nl.Socket()
    kernel.answers = [answer(16, 0, b"link"), OSError(errno.ENOBUFS, "dropped"), ack(1)]
    assert socket.request(*requests(2)) == [b"link"]


def test_an_answer_that_never_comes_is_an_error_and_not_awaited(kernel: Kernel) -> None:
    socket = nl.Socket()
    kernel.answers = [answer(16, 0, b"link")]
    with pytest.raises(BlockingIOError):
        socket.request(*requests(2))


def test_an_answer_that_was_given_up_is_not_taken_for_that_of_the_next_request(
    kernel: Kernel,
) -> None:
    socket = nl.Socket()
    with pytest.raises(BlockingIOError):
        socket.request(*requests(2))
    late = [answer(16, 0, b"late"), ack(0, errno.EPERM), ack(1, errno.EPERM)]
    kernel.answers = [*late, answer(16, 2, b"mine"), ack(2)]
    assert socket.request(*requests(1)) == [b"mine"]


def test_a_refused_dump_is_an_error(kernel: Kernel) -> None:
    socket = nl.Socket()
    kernel.answers = [ack(0, errno.EINVAL, "Invalid values in header")]
    with pytest.raises(nl.NetlinkError, match=r"step 0: .* \(Invalid values in header\)"):
        socket.dump(requests(1)[0])
