# SPDX-License-Identifier: Apache-2.0
"""Files in directories that others write to: reads never block, writes are atomic."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import EACCES, EAGAIN, EINVAL, EISDIR, EPERM
from pathlib import Path
from typing import Final

from mycelium_ctl.errors import ToolError

SIZE_LIMIT: Final = 1 << 20  # bytes; these files have hundreds

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read(path: Path, *, end: bool = False) -> bytes:
    """The first SIZE_LIMIT + 1 bytes of a regular file; with `end`, the last SIZE_LIMIT. Raises
    OSError, also for anything but a regular file: opening a FIFO can block forever, opening a
    device can have effects."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # opens nothing yet
    try:
        kind = stat.S_IFMT(os.fstat(place).st_mode)
        if kind != stat.S_IFREG:
            number = EISDIR if kind == stat.S_IFDIR else EINVAL
            raise OSError(number, f"it is {_KINDS.get(kind, 'not a regular file')}", str(path))
        # Some regular files have their readers wait: /proc/kmsg does.
        fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            if end:
                file.seek(max(0, os.fstat(place).st_size - SIZE_LIMIT))
            found = file.read(SIZE_LIMIT + 1)
            if found is None:
                raise OSError(EAGAIN, "it has nothing to read now", str(path))
            return found
    finally:
        os.close(place)


def write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file so that its readers see it whole or not at all. Raises ToolError.

    It is written beside its place, under a name that nobody can guess and runtimes ignore, and then
    renamed: containerd reloads on a rename, not on the creation of a file.
    """
    import tempfile  # a twentieth of `status`, which writes nothing

    if path.exists() and not path.is_file():
        raise ToolError(f"cannot write {path}: it is not a regular file")
    beside = ""
    try:
        fd, beside = tempfile.mkstemp(".new", f".{path.name}.", path.parent)
        with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content.encode() if isinstance(content, str) else content)
            os.fchmod(fd, mode)
        Path(beside).replace(path)
    except OSError as error:
        if beside:
            with suppress(OSError):
                Path(beside).unlink()
        way = "; run it as root" if error.errno in (EACCES, EPERM) else ""
        raise ToolError(f"cannot write {path}: {error.strerror}{way}") from error


def writable(path: Path) -> bool:
    """Whether this path, or the nearest parent that exists, is writable."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    return os.access(there, os.W_OK)
