# SPDX-License-Identifier: Apache-2.0
"""Commands that a person may paste into a shell."""

from __future__ import annotations

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PLAIN = frozenset(_LETTERS + _LETTERS.upper() + "0123456789-_.:/@%+=")


def quoted(word: str) -> str:
    """A word, quoted if need be: names of links and files may hold anything."""
    return word if word and _PLAIN.issuperset(word) else "'" + word.replace("'", "'\\''") + "'"
