# SPDX-License-Identifier: Apache-2.0
"""Commands that a person may paste into a shell."""

from __future__ import annotations


def quoted(word: str) -> str:
    """A word as a shell takes it: names of links and files may hold anything."""
    plain = word.isascii() and all(c.isalnum() or c in "-_.:/@%+=" for c in word)
    return word if plain and word else "'" + word.replace("'", "'\\''") + "'"
