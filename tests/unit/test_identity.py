# SPDX-License-Identifier: Apache-2.0
"""A node's address from its key: the standards' own vectors, other implementations, the daemon."""

from __future__ import annotations

import ipaddress
import random

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mycelium_cni.node import identity


def public_key_by_openssl(private: bytes) -> bytes:
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes(*raw)


@pytest.mark.parametrize(
    ("private", "public"),
    [
        pytest.param(
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            id="section-6.1-alice",
        ),
        pytest.param(
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            id="section-6.1-bob",
        ),
        pytest.param(
            "0900000000000000000000000000000000000000000000000000000000000000",
            "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
            id="section-5.2-first-iteration",
        ),
    ],
)
def test_public_key_has_the_vectors_of_rfc_7748(private: str, public: str) -> None:
    assert identity.public_key(bytes.fromhex(private)).hex() == public


def test_a_chain_of_a_thousand_keys_is_the_one_openssl_makes() -> None:
    """RFC 7748's iterated test, in the part that has the base point: each key is the next scalar.

    One wrong bit in any of the keys changes all that follow.
    """
    ours = theirs = bytes([9]) + bytes(31)
    for _ in range(1000):
        ours, theirs = identity.public_key(ours), public_key_by_openssl(theirs)
    assert ours == theirs


@pytest.mark.parametrize(
    "private",
    [bytes(32), b"\xff" * 32, b"\x07" + bytes(31), bytes(31) + b"\x80", bytes(31) + b"\x40"],
    ids=["zero", "ones", "low-bits", "high-bit", "second-bit"],
)
def test_the_bits_that_clamping_sets_and_clears_do_not_count(private: bytes) -> None:
    assert identity.public_key(private) == public_key_by_openssl(private)


@pytest.mark.parametrize(
    ("length", "digest"),
    [  # the official test_vectors.json: the input is the bytes 0, 1, 2, …
        (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        (2, "7b7015bb92cf0b318037702a6cdd81dee41224f734684c2c122cd6359cb1ee63"),
        (3, "e1be4d7a8ab5560aa4199eea339849ba8e293d55ca0a81006726d184519e647f"),
        (4, "f30f5ab28fe047904037f77b6da4fea1e27241c5d132638d8bedce9d40494f32"),
        (5, "b40b44dfd97e7a84a996a91af8b85188c66c126940ba7aad2e7ae6b385402aa2"),
        (6, "06c4e8ffb6872fad96f9aaca5eee1553eb62aed0ad7198cef42e87f6a616c844"),
        (7, "3f8770f387faad08faa9d8414e9f449ac68e6ff0417f673f602a646a891419fe"),
        (8, "2351207d04fc16ade43ccab08600939c7c1fa70a5c0aaca76063d04c3228eaeb"),
        (63, "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b"),
        (64, "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98"),
    ],
)
def test_blake3_has_the_official_vectors_of_one_block(length: int, digest: str) -> None:
    assert identity.blake3(bytes(range(length))).hex() == digest


def test_two_hundred_random_keys_give_what_other_implementations_give() -> None:
    source = random.Random(7748)
    for _ in range(200):
        private = source.randbytes(32)
        public = public_key_by_openssl(private)
        assert identity.public_key(private) == public, private.hex()
        digest = blake3(public).digest()
        assert identity.blake3(public) == digest, public.hex()
        parity = f"{digest[0]:b}".count("1") % 2
        expected = bytes([4 + parity]) + digest[1:16]
        assert identity.address(public) == expected, public.hex()
        assert ipaddress.IPv6Address(expected) in ipaddress.IPv6Network("400::/7")


@pytest.mark.parametrize(
    ("key_file", "public", "address"),
    [  # what `mycelium inspect --json --key-file` of daemon 0.7.10 prints
        pytest.param(
            b"\x01" * 32,
            "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209",
            "414:efbc:51e5:8f3f:549:e713:e46b:c2eb",
            id="raw",
        ),
        pytest.param(
            b"01" * 32 + b"\n",
            "3576bc6c418c620bd453ef338e9c59a260347ef94faba417243207d04323e565",
            "4bf:6e00:3bbd:b908:44be:944b:94d8:e277",
            id="text-of-which-the-first-32-characters-count",
        ),
    ],
)
def test_a_key_file_gives_what_the_daemon_says(key_file: bytes, public: str, address: str) -> None:
    key = identity.public_key(key_file[: identity.KEY_SIZE])
    assert key.hex() == public
    assert str(ipaddress.IPv6Address(identity.address(key))) == address
