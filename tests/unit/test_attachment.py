# SPDX-License-Identifier: Apache-2.0
"""Names of attachments: distinct for distinct attachments, and always valid for the kernel."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mycelium_cni.guard import counterpart, mac_of
from mycelium_cni.kernel.address import (
    format_address,
    format_mac,
    parse_address,
    parse_mac,
    parse_prefix,
)
from mycelium_cni.node import marks
from mycelium_cni.overlay import on_mycelium
from mycelium_cni.pod.addresses import random_address, stable_address
from mycelium_cni.pod.attachment import Attachment

IFNAMSIZ, IFALIASZ, ALTIFNAMSIZ = 16, 256, 128  # linux/if.h, linux/if_link.h: with the final NUL
SUBNET = bytes.fromhex("05a12b3c4d5e6f70")

identifiers = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,80}", fullmatch=True)
ifnames = st.text(st.characters(codec="ascii", exclude_characters="/:% "), min_size=1, max_size=15)
attachments = st.builds(Attachment, identifiers, identifiers, ifnames)
addresses = st.binary(min_size=16, max_size=16)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("net", "a-b", "c"), ("net", "a", "b-c")),
        (("a-b", "c", "eth0"), ("a", "b-c", "eth0")),
        (("a", "b", "eth0"), ("ab", "", "eth0")),
        (("net", "c1", "eth0"), ("net", "c10", "eth0")),
        (("net", "c1", "0eth"), ("net", "c10", "eth")),
        (("net", "c", "eth0"), ("net", "c", "eth1")),
        (("net1", "c", "eth0"), ("net2", "c", "eth0")),
        (("x", "y", "eth0"), ("y", "x", "eth0")),
    ],
    ids="+".join,
)
def test_attachments_whose_words_run_together_have_names_of_their_own(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    a, b = Attachment(*one), Attachment(*other)
    assert a.host_link != b.host_link


def test_a_hundred_thousand_attachments_have_a_hundred_thousand_names() -> None:
    words = itertools.product(("net", "net-1"), (f"c{n}" for n in range(5_000)), "abcdefghij")
    names = [Attachment(*triple).host_link for triple in words]
    assert len(set(names)) == len(names) == 100_000


@given(attachments)
def test_the_names_of_an_attachment_are_what_the_kernel_takes(one: Attachment) -> None:
    assert one.host_link.startswith("myc")
    assert len(one.host_link.encode()) < IFNAMSIZ
    assert set(one.host_link[3:]) <= set("0123456789abcdef")


@given(addresses, addresses)
def test_every_address_has_a_mac_and_it_is_nobody_elses(one: bytes, other: bytes) -> None:
    mac = mac_of(one)
    host_mac = counterpart(mac)
    for octets in (mac, host_mac):
        assert len(octets) == 6
        assert octets[0] & 0b11 == 0b10  # locally administered, unicast
    assert counterpart(host_mac) == mac != host_mac
    assume(one != other)
    assert len({mac, host_mac, mac_of(other), counterpart(mac_of(other))}) == 4


def test_the_names_never_change_from_one_release_to_the_next() -> None:
    """DEL of a later release must find what an earlier one made; and a pod that gets its address
    again, its neighbours."""
    # printf 'net\0c1\0eth0' | b2sum -l 144
    assert Attachment("net", "c1", "eth0").host_link == "myc" + B2SUM_144[:12]
    # printf net | b2sum -l 32
    assert marks.group("net") == 0x60000000 | int(B2SUM_32, 16) & 0x0FFFFFFF
    # printf '\5\241\0\0\0\0\0\0\0\0\0\0\0\0\0\11' | b2sum -l 40
    assert mac_of(parse_address("5a1::9")).hex() == "62" + B2SUM_40


B2SUM_144 = "ad4d248d5f41b933dffd22b5e62f226fe9b4"
B2SUM_32 = "fcaf59ed"
B2SUM_40 = "e606bc0185"


@given(identifiers, identifiers)
def test_a_group_is_never_the_default_one_nor_one_for_deletion(one: str, other: str) -> None:
    assert marks.group(one) & marks.GROUP_MASK == marks.GROUP
    assert marks.group(one) != 0
    assert marks.DELETE_GROUP & marks.GROUP_MASK != marks.GROUP
    assume(one != other)
    assert marks.group(one) != marks.group(other)


hostile = st.text(max_size=400) | st.text(max_size=400).map(
    lambda t: t.encode("utf-8", "ignore").decode("latin-1")
)


@given(attachments, addresses, hostile)
@example(Attachment("n" * 300, "c" * 300, "e" * 15), b"\xff" * 16, "p" * 600)
@example(Attachment("n", "c", "\x1b[31m\n"), bytes(16), "x\ny address=::1")
def test_an_alias_fits_the_kernel_and_the_eye(one: Attachment, address: bytes, pod: str) -> None:
    text = format_address(address)
    alias = one.alias("bridge", text, pod)
    assert len(alias.encode()) < IFALIASZ
    assert alias.isascii()
    assert alias.isprintable()
    words = alias.split(" ")
    assert words[0] == "mycelium-cni"
    keys = [word.partition("=")[0] for word in words[1:]]
    assert keys == ["v"] + ["pod"] * bool(pod) + [
        "address",
        "mode",
        "ifname",
        "network",
        "container",
    ]
    assert f"address={text}" in words  # whatever else had to be cut


def test_an_alias_tells_who_the_link_belongs_to() -> None:
    alias = Attachment("net", "c1", "eth0").alias("routed", "5a1::9", "shop/web-0")
    assert alias == (
        "mycelium-cni v=2 pod=shop/web-0 address=5a1::9 mode=routed ifname=eth0 network=net "
        "container=c1"
    )


def test_a_word_that_was_cut_shows_it() -> None:
    alias = Attachment("net", "c1", "eth0").alias("routed", "5a1::9", "shop/" + "w" * 200)
    assert f" pod=shop/{'w' * 74}~ " in alias


@given(addresses)
def test_an_address_has_one_spelling_the_canonical_one(address: bytes) -> None:
    text = format_address(address)
    reference = ipaddress.IPv6Address(address)
    mapped = reference.ipv4_mapped is not None
    compatible = not mapped and address[:12] == bytes(12) and address[12:14] != b"\0\0"
    if not mapped and not compatible:  # inet_ntop writes IPv4 in those two
        assert text == str(reference)
    assert len(text) < ALTIFNAMSIZ
    if not mapped:
        assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("5A1:2B3C::1", "5a1:2b3c::1"),
        ("05a1:2b3c:0000:0:0:0:0:0001", "5a1:2b3c::1"),
        ("5a1:0:0:1:0:0:0:1", "5a1:0:0:1::1"),
        ("400::", "400::"),
        ("::", "::"),
        ("5a1:1:1:1:1:1:0:1", "5a1:1:1:1:1:1:0:1"),  # one zero group is not shortened
    ],
)
def test_every_spelling_of_an_address_becomes_the_canonical_one(text: str, canonical: str) -> None:
    assert format_address(parse_address(text)) == canonical


@pytest.mark.parametrize(
    "text",
    ["", "5a1", "5a1::1%eth0", "5a1::1/64", " 5a1::1", "5a1::1\n", "5a1::g", "1.2.3.4",
     "::ffff:1.2.3.4", "::ffff:102:304", "5a1::1::", "5a1:1:1:1:1:1:1:1:1", "5a1::\0",
     "\uff15a1::1", "0x5a1::1", "[5a1::1]", "\ud800"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv6 address"):
        parse_address(text)


@given(addresses, st.integers(0, 128))
def test_a_prefix_has_its_host_bits_cleared(address: bytes, length: int) -> None:
    assume(ipaddress.IPv6Address(address).ipv4_mapped is None)
    text = f"{format_address(address)}/{length}"
    network = ipaddress.IPv6Network((address, length), strict=False)
    assert parse_prefix(text) == (network.network_address.packed, length)


@pytest.mark.parametrize(
    "text",
    ["400::", "400::/", "400::/129", "400::/-1", "400::/7/7", "400::/ 7", "400::/+7", "/7", "",
     "400::/\u0667", "400::/0007", "400::/9999999999999999999999", "10.0.0.0/8", "default"],
)  # fmt: skip
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv6"):
        parse_prefix(text)


@pytest.mark.parametrize("text", ["c2:11:22:33:44:55", "C2:11:22:33:44:5F", "00:00:00:00:00:01"])
def test_a_unicast_mac_is_read(text: str) -> None:
    mac = parse_mac(text)
    assert mac == bytes.fromhex(text.replace(":", ""))
    assert format_mac(mac) == text.lower()


@pytest.mark.parametrize(
    "text",
    ["", "c2:11:22:33:44", "c2:11:22:33:44:55:66", "c2-11-22-33-44-55", "c211.2233.4455",
     "c2:11:22:33:44:5g", "c2:11:22:33:44: 5", "c2:11:22:33:44:+5", "ff:ff:ff:ff:ff:ff",
     "01:00:00:00:00:00", "00:00:00:00:00:00", "c2:11:22:33:44:55\n",
     "c2:11:22:33:44:\u0665\u0665"],
)  # fmt: skip
def test_what_no_link_can_have_as_its_mac_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a unicast MAC address"):
        parse_mac(text)


def test_random_addresses_lie_in_the_subnet_carry_the_mark_and_differ() -> None:
    made = [random_address(SUBNET) for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert {address[:10] for address in made} == {SUBNET + b"\xff\x0f"}
    for place in range(10, 16):  # every one of the 48 bits is random
        assert len({address[place] for address in made}) == 256


def test_the_two_seeds_that_zero_os_refuses_are_never_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = iter([bytes(6), b"\xff" * 6, b"\0\0\0\0\0\1"])
    monkeypatch.setattr("mycelium_cni.pod.addresses.urandom", lambda size: next(drawn)[:size])
    assert random_address(SUBNET)[10:] == b"\0\0\0\0\0\1"


def test_a_stable_address_depends_on_its_owner_and_the_subnet_alone() -> None:
    owner = ("net", "shop", "web-0", "eth0")
    address = stable_address(SUBNET, *owner)
    assert address == stable_address(SUBNET, *owner)
    assert address[:10] == SUBNET + b"\xff\x0f"
    # printf 'net\0shop\0web-0\0eth0' | b2sum -l 48
    assert address[10:].hex() == B2SUM_48
    others = {stable_address(SUBNET, *owner[:n], "x", *owner[n + 1 :]) for n in range(4)}
    others.add(stable_address(bytes(8), *owner))
    assert len(others | {address}) == 6


B2SUM_48 = "97882b92fc6a"


@pytest.mark.parametrize(
    ("text", "inside"),
    [("400::", True), ("5ff:ffff::", True), ("3ff:ffff::", False), ("600::", False), ("::", False)],
)
def test_the_overlay_is_400_slash_7(text: str, inside: bool) -> None:
    assert on_mycelium(parse_address(text)) is inside
