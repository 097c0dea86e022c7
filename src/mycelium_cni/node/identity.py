# SPDX-License-Identifier: Apache-2.0
"""X25519 key → public key → BLAKE3 → Mycelium address: who a node is, computed from its key file.

Used only where there is a key file (bridge mode's `netseed`), at a cost of 1 ms. Both
functions are the shortest form of their standard: one scalar, one hash block, no state. Neither is
constant time: the caller is root on the node that owns the key, and nobody else can time it.
"""

from __future__ import annotations

from _struct import pack, unpack

KEY_SIZE = 32

_P = 2**255 - 19


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a 32-byte private key (RFC 7748, section 5, base point 9)."""
    scalar = int.from_bytes(private, "little") & ((1 << 254) - 8) | (1 << 254)
    x2, z2, x3, z3, swapped = 1, 0, 9, 1, 0
    for shift in range(254, -1, -1):
        bit = scalar >> shift & 1
        if swapped != bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = bit
        a, b = x2 + z2, x2 - z2
        aa, bb = a * a % _P, b * b % _P
        e = aa - bb
        da, cb = (x3 - z3) * a % _P, (x3 + z3) * b % _P
        x3, z3 = (da + cb) ** 2 % _P, 9 * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, e * (aa + 121665 * e) % _P
    # Bit 0 of every scalar is 0 ("clamping"), so the ladder ends unswapped.
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(32, "little")


def address(public: bytes) -> bytes:
    """The 16-byte address of a node: 400::/7, and otherwise the hash of its public key.

    The first byte is 0x04 or 0x05: 0x04 with the parity of the set bits of the byte it replaces
    (mycelium, crypto.rs, `PublicKey::address`).
    """
    digest = blake3(public)[:16]
    return bytes((0x04 | digest[0].bit_count() & 1,)) + digest[1:]


_IV = (
    *(0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A),
    *(0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19),
)
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_COLUMNS_AND_DIAGONALS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)
_CHUNK_START_CHUNK_END_ROOT = 1 | 2 | 8
_MASK = 0xFFFFFFFF


def blake3(block: bytes) -> bytes:
    """BLAKE3 of at most 64 bytes: one compression (BLAKE3 paper, section 2.2), 32 bytes out."""
    words = unpack("<16I", block.ljust(64, b"\0"))
    v = [*_IV, *_IV[:4], 0, 0, len(block), _CHUNK_START_CHUNK_END_ROOT]
    for _ in range(7):
        pairs = iter(words)
        for a, b, c, d in _COLUMNS_AND_DIAGONALS:
            for word, right_d, right_b in ((next(pairs), 16, 12), (next(pairs), 8, 7)):
                v[a] = v[a] + v[b] + word & _MASK
                x = v[d] ^ v[a]
                v[d] = (x >> right_d | x << 32 - right_d) & _MASK
                v[c] = v[c] + v[d] & _MASK
                x = v[b] ^ v[c]
                v[b] = (x >> right_b | x << 32 - right_b) & _MASK
        words = tuple(words[i] for i in _PERMUTATION)
    return pack("<8I", *(v[i] ^ v[i + 8] for i in range(8)))
