# SPDX-License-Identifier: Apache-2.0
"""Which known key an unknown one is probably a misspelling of."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FAR = 3


def meant(key: str, known: Iterable[str]) -> str:
    """The known key from which `key` differs by case, by punctuation, or by a letter or two; '' if
    there is none. By one letter only if it is short: `guid` is not taken for `guard`."""
    best, nearest = "", _FAR
    folded = _folded(key)
    for candidate in known:
        wanted = _folded(candidate)
        distance = _distance(folded, wanted)
        if distance < nearest and distance <= (2 if len(wanted) > 5 else 1):
            best, nearest = candidate, distance
    return best


def _folded(key: str) -> str:
    return "".join([c for c in key[:64].casefold() if c.isalnum()])


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
