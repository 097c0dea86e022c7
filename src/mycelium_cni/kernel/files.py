# SPDX-License-Identifier: Apache-2.0
"""Files whose path others choose, opened without blocking and only if they are regular files; and
directories that stay open."""

from __future__ import annotations

from errno import EINVAL
from posix import O_CLOEXEC, O_NONBLOCK, close, fstat, open

_S_IFMT, _S_IFREG = 0o170000, 0o100000  # linux/stat.h


def is_regular(mode: int) -> bool:
    """Whether the `st_mode` is a regular file's."""
    return mode & _S_IFMT == _S_IFREG


def open_regular(path: str, flags: int) -> int:
    """A descriptor of the file at `path`; one that O_CREAT makes only its owner can access.

    Raises OSError: it cannot be opened, or (EINVAL) is not a regular file. Without O_NONBLOCK,
    opening a FIFO waits for the other end.
    """
    fd = open(path, flags | O_NONBLOCK | O_CLOEXEC, 0o600)
    if is_regular(fstat(fd).st_mode):
        return fd
    close(fd)
    raise OSError(EINVAL, "it is not a regular file", path)


class Directory:
    """An open directory, closed when nothing refers to it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        close(self.fd)
