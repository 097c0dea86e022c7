# SPDX-License-Identifier: Apache-2.0
"""How long a call waits for something or tries it again: never beyond the call's end."""

from __future__ import annotations

from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

# What ADD awaits takes a kernel worker microseconds, but often on this CPU: it runs once we sleep.
_FIRST_PAUSE_S = 0.00005
_LONGEST_PAUSE_S = 0.05  # a hundred ADDs that ask all the time would keep the kernel's lock busy


class Patience:
    """The time left to wait for one thing: LIMIT_S from the first look, or until `call_end`, which
    `main` sets for the whole call."""

    # Every runtime waits more than ten seconds. Three are left for the rest of ADD, or its undo.
    LIMIT_S: ClassVar = 7.0
    call_end: ClassVar = float("inf")

    __slots__ = ("_end", "_pause")

    def __init__(self) -> None:
        self._end = 0.0  # the clock is not read if nothing has to be awaited
        self._pause = _FIRST_PAUSE_S

    @property
    def is_over(self) -> bool:
        now = monotonic()
        self._end = self._end or min(now + self.LIMIT_S, Patience.call_end)
        return now >= self._end

    def pause(self) -> None:
        """Wait before the next look, a little longer each time."""
        sleep(self._pause)
        self._pause = min(self._pause * 1.5, _LONGEST_PAUSE_S)
