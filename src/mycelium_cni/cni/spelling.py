# SPDX-License-Identifier: Apache-2.0
"""Which known key an unknown one is probably a misspelling of."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FAR = 3
_LONG = 7  # a known key this long may be part of a longer one: `ingressPolicy`
# Cyrillic and Greek letters that look like Latin ones.
_LOOK_ALIKE = str.maketrans(
    "\u0430\u0435\u0456\u0458\u043e\u0440\u0441\u0443\u0445\u0455\u04bb\u0501\u03b1\u03b9\u03bf\u03c1",
    "aeijopcyxshdaiop",
)


def meant(key: str, known: Iterable[str]) -> str:
    """The known key that `key` probably means, or ''. It may differ by case, by punctuation, by
    look-alike letters of another script, by up to two letters (by one if it is short: `guid` is not
    taken for `guard`), or have something before or after it."""
    best, nearest = "", _FAR
    folded = _folded(key)
    is_word = " " not in key.strip()
    for candidate in known:
        wanted = _folded(candidate)
        distance = _distance(folded, wanted)
        if distance < nearest and distance <= (2 if len(wanted) > 5 else 1):
            best, nearest = candidate, distance
        elif is_word and not best and len(wanted) >= _LONG and _extends(folded, wanted):
            best = candidate
    return best


def _extends(key: str, wanted: str) -> bool:
    return key.startswith(wanted) or key.endswith(wanted)


def _folded(key: str) -> str:
    letters = "".join([_latin(c) for c in key[:64]]).casefold().translate(_LOOK_ALIKE)
    return "".join([c for c in letters if c.isalnum()])


def _latin(character: str) -> str:
    """The Latin letter that a full-width or a mathematical one stands for."""
    number = ord(character)
    if 0xFF01 <= number <= 0xFF5E:
        return chr(number - 0xFEE0)
    return chr(97 + (number - 0x1D400) % 26) if 0x1D400 <= number < 0x1D6A4 else character


def _distance(one: str, other: str) -> int:
    """How many letters are missing, extra, wrong, or swapped with the next (optimal string
    alignment); _FAR where the lengths alone say so."""
    if abs(len(one) - len(other)) >= _FAR:
        return _FAR
    above: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one):
        two_above, above, row = above, row, [i + 1]
        for j, b in enumerate(other):
            cost = min(above[j + 1] + 1, row[j] + 1, above[j] + (a != b))
            if i and j and a == other[j - 1] and b == one[i - 1]:
                cost = min(cost, two_above[j - 1] + 1)
            row.append(cost)
    return row[-1]
