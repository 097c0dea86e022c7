# SPDX-License-Identifier: Apache-2.0
"""One line per event, on standard error or in a file of the operator's choice."""

from __future__ import annotations

from posix import O_APPEND, O_CLOEXEC, O_CREAT, O_NOFOLLOW, O_WRONLY, close, open, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ORDER = ("error", "warning", "info", "debug")


class Log:
    """The log of one call. What is written never breaks a line, and never fails the call."""

    __slots__ = ("_file", "_level", "_started", "_subject")

    def __init__(self, subject: str, level: str, file: str) -> None:
        self._subject: Final = subject
        self._level: Final = level
        self._file: Final = file
        self._started: Final = _monotonic() if self._shows("info") else None

    def _shows(self, level: str) -> bool:
        return _ORDER.index(level) <= _ORDER.index(self._level)

    def write(self, level: str, event: str) -> None:
        if not self._shows(level):
            return
        from time import gmtime, strftime  # noqa: PLC0415 - see _monotonic

        now = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
        line = f"{now} {level} mycelium-cni {self._subject}: {event}"
        if self._started is not None:
            line += f" ({(_monotonic() - self._started) * 1000:.1f} ms)"
        # Names come from strangers: nothing they hold may move a cursor or look like a second line.
        text = "".join([c if " " <= c <= "~" else "?" for c in line]).encode() + b"\n"
        fd = 2
        try:
            if self._file:
                flags = O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC
                fd = open(self._file, flags, 0o600)
            write(fd, text)
        except OSError:
            return
        finally:
            if fd != 2:
                close(fd)


def _monotonic() -> float:
    # At its default the log says nothing of a call that succeeds, and the time module, which reads
    # the host's time zone as soon as it is loaded, stays away.
    from time import monotonic  # noqa: PLC0415

    return monotonic()
