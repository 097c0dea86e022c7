# SPDX-License-Identifier: Apache-2.0
"""The network namespaces of pods: which exist, how to enter them, and who is in them."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Set
from contextlib import ExitStack
from errno import EINVAL, EMFILE, ENFILE
from functools import cache
from pathlib import Path
from typing import Final

from mycelium_cni.kernel import netlink as nl

NS_GET_USERNS: Final = 0xB701  # linux/nsfs.h
_FULL: Final = (EMFILE, ENFILE)  # no more descriptors: that says nothing of a namespace
_AT_ONCE: Final = 32  # namespaces that are open while the kernel is asked for their numbers


class PodNetns:
    """A network namespace: how to enter it, and who is in it."""

    __slots__ = ("inode", "names", "paths", "processes")

    def __init__(self, inode: int) -> None:
        self.inode: Final = inode
        self.names: Final[list[str]] = []  # mounts, such as /run/netns/cni-…
        self.paths: Final[list[str]] = []  # of the mounts, as this process reaches them
        self.processes: Final[list[int]] = []

    @property
    def path(self) -> str:
        """The first way in. A mount stays; a process may have ended."""
        return (self.paths or [_of_process(pid) for pid in self.processes])[0]

    def open(self) -> int:
        """A descriptor of it, by a mount or by a process that has not ended meanwhile: an exec
        probe is in a pod for a moment only. Raises OSError if there is no way in any more."""
        for path in (*self.paths, *map(_of_process, self.processes)):
            try:
                return self._open(path)
            except OSError as error:
                last = error
                if error.errno in _FULL:
                    break
        raise last

    def _open(self, path: str) -> int:
        """Raises OSError, also when something else is at the path by now: a container can put
        anything there, and opening a device can have effects."""
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # opens nothing yet
        try:
            there = os.fstat(place)
            if (there.st_dev, there.st_ino) != (_file_system(), self.inode):
                raise OSError(EINVAL, "is not that namespace any more", path)
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)


@cache
def _file_system() -> int:
    """The device number of the file system that has all namespaces."""
    return os.stat("/proc/self/ns/net").st_dev  # noqa: PTH116


def _of_process(pid: int) -> str:
    return f"/proc/{pid}/ns/net"


def read_netns(host: nl.Socket, wanted: Set[int]) -> dict[int, PodNetns]:
    """The namespaces that processes or mounts of this machine hold, of the `wanted` numbers (nsid),
    by which this namespace knows them. One that only an open file holds has no path, and is left
    out. Raises OSError if there is no descriptor to open one with."""
    found: dict[int, PodNetns] = {}
    waiting = _held()
    while waiting and len(found) < len(wanted):
        with ExitStack() as stack:
            opened: list[tuple[int, PodNetns]] = []
            while waiting and len(opened) < _AT_ONCE:
                try:
                    fd = waiting[-1].open()
                except OSError as error:
                    if error.errno in _FULL:
                        if not opened:
                            raise
                        break
                    waiting.pop()  # there is no way in any more
                    continue
                stack.callback(os.close, fd)
                opened.append((fd, waiting.pop()))
            answers = host.answers([nl.get_nsid(fd) for fd, _ in opened])
        for answer, (_, held) in zip(answers, opened, strict=True):
            if isinstance(answer, bytes):
                number = nl.decode(answer, 4).get(nl.NETNSA_NSID, b"\xff\xff\xff\xff")
                nsid = int.from_bytes(number, "little", signed=True)
                if nsid in wanted:
                    found[nsid] = held
    return found


def _held() -> list[PodNetns]:
    by_inode: dict[int, PodNetns] = {}
    mount_namespaces: dict[int, str] = {}
    for pid in ("self", *sorted(name for name in os.listdir("/proc") if name.isdecimal())):  # noqa: PTH208 - 3 times as fast, for thousands of processes
        path = f"/proc/{pid}/ns/net"
        try:
            inode = os.stat(path).st_ino  # noqa: PTH116
            mount_namespaces.setdefault(os.stat(f"/proc/{pid}/ns/mnt").st_ino, pid)  # noqa: PTH116
        except OSError:
            continue  # it has just ended
        if pid != "self":
            by_inode.setdefault(inode, PodNetns(inode)).processes.append(int(pid))
    for pid in mount_namespaces.values():
        for inode, name in _named_netns(pid):
            held = by_inode.setdefault(inode, PodNetns(inode))
            held.paths.append(f"/proc/{pid}/root{name}")
            if name not in held.names:
                held.names.append(name)
    return list(by_inode.values())


def _named_netns(pid: str) -> Iterator[tuple[int, str]]:
    """Inode and path of the network namespaces that are mounted where a process sees them. Mounts
    of other user namespaces do not count: anybody can make those, and no runtime does."""
    try:
        if not _mounts_are_ours(pid):
            return
        with Path(f"/proc/{pid}/mountinfo").open(errors="surrogateescape") as lines:
            for line in lines:
                words = line.split(" ")
                if words[3].startswith("net:["):
                    octal = re.compile(r"\\([0-7]{3})")
                    yield int(words[3][5:-1]), octal.sub(lambda m: chr(int(m[1], 8)), words[4])
    except OSError as error:
        if error.errno in _FULL:
            raise
        return  # it has just ended


def _mounts_are_ours(pid: str) -> bool:
    """Whether a process's mount namespace belongs to the user namespace that this process is in."""
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(mounts, NS_GET_USERNS)
    finally:
        os.close(mounts)
    try:
        return os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116
    finally:
        os.close(owner)
