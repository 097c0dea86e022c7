# SPDX-License-Identifier: Apache-2.0
"""IPv6 addresses, prefixes and MACs: bytes as the kernel has them, text as people write it."""

from __future__ import annotations

from _socket import AF_INET6, inet_ntop, inet_pton


def parse_address(text: str) -> bytes:
    """The 16 bytes of an IPv6 address; raises ValueError. No zone, no prefix length, and no
    IPv4-mapped one (::ffff:192.0.2.1), which every Go program prints and treats as IPv4."""
    try:
        address = inet_pton(AF_INET6, text)
    except (OSError, ValueError):  # ValueError: NUL, or not ASCII
        address = _V4_MAPPED
    if address.startswith(_V4_MAPPED):
        raise ValueError(f"{text!a} is not an IPv6 address")
    return address


def parse_prefix(text: str) -> tuple[bytes, int]:
    """Network and prefix length of `address/length`, host bits cleared; raises ValueError."""
    base, slash, digits = text.partition("/")
    length = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else 129
    if not slash or length > 128:
        raise ValueError(f"{text!a} is not an IPv6 prefix such as 400::/7")
    number = int.from_bytes(parse_address(base), "big") >> 128 - length << 128 - length
    return number.to_bytes(16, "big"), length


def parse_mac(text: str) -> bytes:
    """The 6 bytes of a unicast MAC address written `c2:11:22:33:44:55`; raises ValueError."""
    octets = text.split(":")
    if len(octets) == 6 and all(len(o) == 2 and set(o) <= _HEX for o in octets):
        mac = bytes.fromhex(text.replace(":", ""))
        if any(mac) and not mac[0] & 1:
            return mac
    raise ValueError(f"{text!a} is not a unicast MAC address such as 02:00:5e:10:00:01")


def format_address(address: bytes) -> str:
    """Canonical text (RFC 5952): one spelling of each address, as its alternative name needs."""
    return inet_ntop(AF_INET6, address)


def format_prefix(prefix: tuple[bytes, int]) -> str:
    return f"{inet_ntop(AF_INET6, prefix[0])}/{prefix[1]}"


def format_mac(mac: bytes) -> str:
    return mac.hex(":")


def covers(prefix: tuple[bytes, int], address: bytes) -> bool:
    """Whether the address lies in the prefix."""
    base, length = prefix
    differ = int.from_bytes(base, "big") ^ int.from_bytes(address, "big")
    return not differ >> 128 - length


def link_local(mac: bytes) -> bytes:
    """The link-local address that belongs to a MAC (modified EUI-64, RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


_V4_MAPPED = bytes(10) + b"\xff\xff"


_HEX = frozenset("0123456789abcdefABCDEF")
