# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: open one, enter and leave it, tell whether two are the same."""

from __future__ import annotations

from errno import EINVAL
from fcntl import ioctl
from posix import O_CLOEXEC, O_NONBLOCK, O_RDONLY, close, fstat, open, stat, strerror

from mycelium_cni.kernel.files import is_regular

try:
    from posix import setns  # type: ignore[attr-defined,unused-ignore]  # CPython 3.12; the static executable adds it to its 3.11
except ImportError:  # pip-installed on 3.11: 2 ms per pod for ctypes
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)

    def setns(fd: int, nstype: int = 0) -> None:  # type: ignore[misc,unused-ignore]  # 3.12's takes any file
        if _libc.setns(fd, nstype):
            raise OSError(ctypes.get_errno(), strerror(ctypes.get_errno()))


CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
SIOCGSKNS = 0x894C  # linux/sockios.h: the namespace a socket lives in


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at `path`.

    Raises OSError: the path does not exist, or (EINVAL) is not a network namespace, such as the
    plain file that a bind mount leaves behind after a reboot.
    """
    # A namespace looks like a plain file to stat(2). Anything else is not even opened: opening a
    # device or a FIFO has side effects.
    if is_regular(stat(path).st_mode):
        fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        try:
            if ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET:
                return fd
        except OSError:  # ENOTTY: no namespace at all
            pass
        close(fd)
    raise OSError(EINVAL, "not a network namespace", path)


def netns_of(socket: int) -> int:
    """A descriptor of the network namespace a socket was opened in; needs no /proc."""
    try:
        return ioctl(socket, SIOCGSKNS)
    except OSError as error:
        reason = f"find our own network namespace: {error.strerror}"
        raise OSError(error.errno, reason) from None


def same_netns(one: int, other: int) -> bool:
    """Whether two descriptors are of one namespace."""
    a, b = fstat(one), fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def enter(fd: int) -> None:
    """Move the calling thread into the network namespace."""
    # CLONE_NEWNET always: with 0 the kernel would enter a namespace of any type.
    try:
        setns(fd, CLONE_NEWNET)
    except OSError as error:
        reason = f"enter the network namespace: {error.strerror}"
        raise OSError(error.errno, reason) from None


def require_right(socket: int) -> None:
    """Part of STATUS. Raises OSError if we may not enter network namespaces, as ADD does."""
    home = netns_of(socket)
    try:
        enter(home)
    finally:
        close(home)


class inside:  # noqa: N801 - reads as the statement it is: `with inside(pod, home=host):`
    """Run a block in the network namespace `there`, and be back at `home` whatever happens in it.

    The thread has no way home but `home`, so failing to return is not an error to handle: the
    exception from __exit__ ends the call.
    """

    __slots__ = ("_home", "_there")

    def __init__(self, there: int, *, home: int) -> None:
        self._there = there
        self._home = home

    def __enter__(self) -> None:
        enter(self._there)

    def __exit__(self, *_: object) -> None:
        enter(self._home)
