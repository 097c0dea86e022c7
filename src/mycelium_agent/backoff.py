# SPDX-License-Identifier: Apache-2.0
"""When a fact may be repaired again: at once, unless earlier repairs did not last."""

from __future__ import annotations

from typing import Final

HELD_S: Final = 5.0  # a repair that lasts this long, plus the pause before it, has held
PATIENCE: Final = 3  # repairs that did not last before the first pause
FIRST_S, LONGEST_S = 1.0, 60.0


class Backoff:
    """The pauses before repairs, by what is repaired. What is undone again and again is repaired
    after 1 s, 2 s, 4 s …, in the end once a minute. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}  # when, and how many did not last before it

    def due(self, what: str, now: float) -> float:
        """When it may be repaired."""
        at, lost = self._last.get(what, (now, 0))
        return at + _pause(lost)

    def repaired(self, what: str, now: float) -> bool:
        """Note a repair; returns whether the first pause follows it."""
        at, lost = self._last.get(what, (0.0, -1))
        lost = lost + 1 if now - at <= _pause(lost) + HELD_S else 0
        self._last[what] = now, lost
        return lost == PATIENCE

    def is_paused(self, what: str) -> bool:
        """Whether there is a pause after its last repair."""
        return self._last.get(what, (0.0, 0))[1] >= PATIENCE

    def forget(self, now: float) -> None:
        """Forget repairs that have held."""
        self._last = {
            what: (at, lost)
            for what, (at, lost) in self._last.items()
            if now - at <= _pause(lost) + HELD_S
        }


def _pause(lost: int) -> float:
    """After a repair, in seconds."""
    return min(FIRST_S * 2.0 ** (lost - PATIENCE), LONGEST_S) if lost >= PATIENCE else 0.0
