# SPDX-License-Identifier: Apache-2.0
"""The IPv6 switches of the network namespace the calling thread is in: /proc/sys/net/ipv6.

/proc/sys/net follows the calling thread into a namespace; /sys/class/net does not.

The kernel keeps the directory net/ipv6 of all namespaces in one chain, the oldest last, and each
look-up goes through it (fs/dcache.c, __d_lookup), that of a new namespace twice: a millisecond of
an ADD on a node of a thousand pods. A `socket` of the namespace keeps the directory open for the
next switch, and where there are many namespaces it is looked up in a procfs of our own.
"""

from __future__ import annotations

from errno import ENODEV, ENOENT
from posix import (
    O_CLOEXEC,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    close,
    open,
    pread,
    read,
    stat,
    strerror,
    write,
)

from mycelium_cni.kernel.files import Directory
from mycelium_cni.kernel.shell import quoted

try:
    from posix import mount_proc  # type: ignore[attr-defined]  # the static executable adds it
except ImportError:  # pip-installed: a call takes 25 ms anyway
    mount_proc = None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from mycelium_cni.kernel.netlink import Socket

_ROOT = "/proc/sys/net/ipv6/"
# From so many namespaces on, mounting a procfs takes less time than looking among them.
MANY: Final = 128


def conf(link: str, switch: str) -> str:
    """The name of a switch of one link, or of `all` or `default`."""
    return f"conf/{link}/{switch}"


def command(name: str, value: str) -> str:
    """The `sysctl` line that sets it."""
    path = f"net/ipv6/{name}"
    # sysctl(8) takes dots for separators unless a slash comes first; link names may have dots.
    return f"sysctl -w {quoted(path if '.' in path else path.replace('/', '.'))}={value}"


def ipv6_is_off(link: str) -> bool:
    """Whether IPv6 is off on a link. Raises OSError."""
    return get(conf(link, "disable_ipv6")) != "0"


def get(name: str, socket: Socket | None = None) -> str:
    """The value; raises OSError that names the file, with ENODEV where there is no such link."""
    path = _ROOT + name
    fd = _open(name, O_RDONLY, socket)
    try:
        return read(fd, 64).strip().decode()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        close(fd)


# Written only if they differ, because writing the same value has effects (net/ipv6/addrconf.c). For
# `disable_ipv6` the kernel takes the rtnl lock, and while another task holds that, it restarts the
# call again and again. For `forwarding` it drops routes learned from router advertisements.
_COMPARED = ("/disable_ipv6", "/forwarding")


def put(name: str, value: str, socket: Socket | None = None) -> None:
    """Set it to the value; raises OSError that names the file."""
    path = _ROOT + name
    compared = name.endswith(_COMPARED)
    fd = _open(name, O_RDWR if compared else O_WRONLY, socket)
    try:
        # From the start, without moving on: the kernel ignores what is written after it.
        if not compared or pread(fd, 64, 0).strip() != value.encode():
            write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        close(fd)


def use_own_proc(socket: Socket) -> None:
    """Look for the settings of the socket's namespace, which the calling thread is in, in a procfs
    that is mounted nowhere; in /proc if that is refused. Closing `socket.proc` takes the kernel an
    RCU grace period (fs/namespace.c, dissolve_on_fput); what was opened in it stays.
    """
    if mount_proc:
        try:
            socket.proc = Directory(mount_proc())
            socket.switches = _directory(socket)
        except OSError:
            socket.proc = None


def require_right() -> None:
    """Part of STATUS. Raises OSError that names the file if settings cannot be written, as ADD does
    for each pod: /proc/sys is read-only in a container that is not privileged."""
    close(_open(conf("lo", "disable_ipv6"), O_RDWR, None))


def _open(name: str, flags: int, socket: Socket | None) -> int:
    path = _ROOT + name
    try:
        if socket is None:
            return open(path, flags | O_CLOEXEC)
        if socket.switches is None:
            socket.switches = _directory(socket)
        return open(name, flags | O_CLOEXEC, dir_fd=socket.switches.fd)
    except OSError as error:
        if error.errno != ENOENT:
            raise OSError(error.errno, error.strerror, path) from None
        if _exists(_ROOT):
            raise OSError(ENODEV, strerror(ENODEV), path) from None
        reason = "no IPv6 in this kernel (boot without ipv6.disable=1), or /proc is not mounted"
        raise OSError(ENOENT, reason, path) from None


def _directory(socket: Socket) -> Directory:
    path, base = (_ROOT[6:], socket.proc.fd) if socket.proc else (_ROOT, None)
    return Directory(open(path, O_PATH | O_CLOEXEC, dir_fd=base))


def _exists(path: str) -> bool:
    try:
        stat(path)
    except OSError:
        return False
    return True
