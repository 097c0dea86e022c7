# SPDX-License-Identifier: Apache-2.0
"""One line per event, on standard error or in a file of the operator's choice."""

from __future__ import annotations

from posix import O_APPEND, O_CREAT, O_NOFOLLOW, O_WRONLY, close, write
from time import gmtime, monotonic, strftime

from mycelium_cni.kernel.files import open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ORDER = ("error", "warning", "info", "debug")


class Log:
    """The log of one call. Each event is one line. Writing it never fails or delays the call. If
    the file cannot be written, standard error gets the reason and the line."""

    __slots__ = ("_file", "_level", "_started", "_subject")

    def __init__(self, subject: str, level: str, file: str) -> None:
        self._subject: Final = subject
        self._level: Final = level
        self._file: Final = file
        self._started: Final = monotonic() if self._shows("info") else None

    def _shows(self, level: str) -> bool:
        return _ORDER.index(level) <= _ORDER.index(self._level)

    def write(self, level: str, event: str) -> None:
        if not self._shows(level):
            return
        if self._started is not None:
            event += f" ({(monotonic() - self._started) * 1000:.1f} ms)"
        lines = self._line(level, event)
        if self._file:
            try:
                _append(self._file, lines)
            except OSError as error:
                reason = f"cannot write logFile {self._file}: {error.strerror}"
                lines = self._line("error", reason) + lines
            else:
                return
        try:
            write(2, lines)
        except OSError:
            return

    def _line(self, level: str, event: str) -> bytes:
        now = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
        line = f"{now} {level} mycelium-cni {self._subject}: {event}"
        # Names are untrusted: nothing in them may move a cursor or look like a second line.
        return "".join([c if " " <= c <= "~" else "?" for c in line]).encode() + b"\n"


def _append(path: str, line: bytes) -> None:
    """Add a line to a file. Raises OSError: it cannot be written, or is not a regular file. Writing
    to another kind of file may wait for its reader."""
    fd = open_regular(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW)
    try:
        write(fd, line)
    finally:
        close(fd)
