# SPDX-License-Identifier: Apache-2.0
"""The plugin in a process that forks for every call, and in which any one request can be refused.

Executed in a node's network namespace. A job comes on standard input; for each of its cases a line
of JSON goes to standard output. A point is a system call of the plugin, or a message to the kernel.
At the point whose number the case has, a system call fails without being made; a message is sent
with a type that no kernel knows, and the errno of the refusal is replaced by that of the case.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import importlib
import json
import os
import pkgutil
import posix
import struct
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import mycelium_cni
from mycelium_cni.kernel import netlink
from mycelium_cni.kernel.patience import Patience

# System calls by the names that Python gives them, and how each can fail.
CALLS = {
    "open": ["EACCES", "EMFILE", "ENFILE", "ENOMEM", "ENOENT"],
    "read": ["EIO", "ENOMEM"],
    "pread": ["EIO", "ENOMEM"],
    "write": ["EIO", "EPERM", "EINVAL", "ENOSPC"],
    "stat": ["EACCES", "ENOENT"],
    "readlink": ["EACCES", "ENOENT"],
    "listdir": ["EACCES", "EMFILE"],
    "ioctl": ["EPERM", "ENOTTY"],
    "setns": ["EPERM", "EINVAL", "ENOMEM"],
    "fork": ["EAGAIN", "ENOMEM"],
    "socket": ["EMFILE", "ENFILE", "EPERM", "EAFNOSUPPORT", "EPROTONOSUPPORT"],
    "setsockopt": ["ENOPROTOOPT", "EPERM"],
    "bind": ["EPERM", "ENOMEM"],
    "send": ["ENOBUFS", "ENOMEM", "EPERM"],
    "recv": ["ENOMEM", "EIO"],
}
# Errnos of the kernel's answers: to any message, to those that make or change something, to those
# that make what must not be there yet.
_ASKED = [
    "EPERM",
    "ENOMEM",
    "ENOBUFS",
    "EOPNOTSUPP",
    "EINVAL",
    "EINTR",
    "EAGAIN",
    "EBUSY",
    "ENODEV",
]
_MADE = [*_ASKED, "ENOENT", "ESRCH", "ENFILE", "EMFILE", "ENOSPC", "EADDRNOTAVAIL"]
REFUSALS = {"ask": _ASKED, "make": _MADE, "new": [*_MADE, "EEXIST"]}
_ENDS = ((netlink.NETLINK_NETFILTER, 16), (netlink.NETLINK_NETFILTER, 17))  # of nf_tables' batches
_NEW = (0, 3, 6, 9, 12)  # NFT_MSG_NEW*
_NEW_ROUTE = (netlink.NETLINK_ROUTE, netlink.RTM_NEWROUTE)
UNKNOWN = 0x0FFF

# To DEL and GC these mean that there is nothing to delete: no kernel answers so if there is.
ABSENT = ("ENOENT", "ENODEV", "ESRCH", "EADDRNOTAVAIL")

points: list[str] = []
fault: tuple[int, int] = -1, 0
subtrees = True  # whether the kernel has routes for one source (CONFIG_IPV6_SUBTREES)


def fails_here(point: str) -> bool:
    """Count a point. Returns whether it is the one that fails."""
    points.append(point)
    return len(points) - 1 == fault[0]


def failing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if fails_here(name):
            named = [each for each in arguments[:1] if isinstance(each, str)]
            raise OSError(fault[1], os.strerror(fault[1]), *named)
        return call(*arguments, **options)

    return wrapper


def enter(call: Callable[..., Any]) -> Callable[..., Any]:
    """setns(2); only entering fails: a process may return to the namespace that it came from."""
    away = False

    def wrapper(*arguments: Any) -> Any:
        nonlocal away
        (call if away else failing("setns", call))(*arguments)
        away = not away

    return wrapper


class Socket(_socket.socket):
    """A netlink socket: each of its calls is a point, and each message that it sends."""

    def __init__(self, *arguments: Any) -> None:
        self._refused: dict[int, int] = {}
        failing("socket", super().__init__)(*arguments)

    def bind(self, address: Any) -> None:
        failing("bind", super().bind)(address)

    def setsockopt(self, *arguments: Any) -> None:
        failing("setsockopt", super().setsockopt)(*arguments)

    def send(self, batch: bytes, *_: Any) -> int:  # type: ignore[override] # ours are bytes
        changed = b""
        while batch:
            length, kind, flags, sequence, port = struct.unpack_from("=IHHII", batch)
            makes = kind & 3 == 0 if self.proto == netlink.NETLINK_ROUTE else kind & 0xFF in _NEW
            new = flags & netlink.NLM_F_EXCL
            label = f"{'ask' if not makes else 'new' if new else 'make'} {self.proto}:{kind}"
            of_source = (self.proto, kind) == _NEW_ROUTE and batch[16 + 2] > 0  # rtm_src_len
            if of_source and not subtrees:
                kind, self._refused[sequence] = UNKNOWN, errno.EINVAL
            elif (self.proto, kind) not in _ENDS and fails_here(label):
                kind, self._refused[sequence] = UNKNOWN, fault[1]
            changed += struct.pack("=IHHII", length, kind, flags, sequence, port)
            changed += batch[16 : length + 3 & ~3]
            batch = batch[length + 3 & ~3 :]
        return int(failing("send", super().send)(changed))

    def recv(self, *arguments: Any) -> bytes:
        datagram = bytearray(failing("recv", super().recv)(*arguments))
        at = 0
        while at < len(datagram):
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", datagram, at)
            if kind == netlink.NLMSG_ERROR and sequence in self._refused:
                struct.pack_into("=i", datagram, at + 16, -self._refused[sequence])
            at += length + 3 & ~3
        return bytes(datagram)


def add_failure_points() -> None:
    """Put the points into every module of the plugin."""
    for found in pkgutil.walk_packages(mycelium_cni.__path__, "mycelium_cni."):
        importlib.import_module(found.name)
    named = {getattr(posix, name): name for name in CALLS if hasattr(posix, name)}
    setns = vars(sys.modules["mycelium_cni.kernel.netns"])["setns"]
    named |= {fcntl.ioctl: "ioctl"}
    wrappers = {call: failing(name, call) for call, name in named.items()}
    wrappers[setns] = enter(setns)
    for module in [m for name, m in sys.modules.items() if name.startswith("mycelium_cni.")]:
        for name, value in [*vars(module).items()]:
            if callable(value) and value.__hash__ and value in wrappers:
                setattr(module, name, wrappers[value])
    vars(netlink)["socket"] = Socket


def call(env: dict[str, str], conf: dict[str, Any], number: int = -1, refusal: int = 0) -> Any:
    """One call of the plugin: exit status, standard output and error, and its points."""
    files = [os.memfd_create(name) for name in ("in", "out", "err", "points")]
    os.write(files[0], json.dumps(conf).encode())
    os.lseek(files[0], 0, os.SEEK_SET)
    child = os.fork()
    if child == 0:
        _serve(files, env, number, refusal)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = []
    for fd in files:
        os.lseek(fd, 0, os.SEEK_SET)
        said.append(os.read(fd, os.fstat(fd).st_size).decode())
        os.close(fd)
    return code, said[1], said[2], json.loads(said[3] or "[]")


def _serve(files: list[int], env: dict[str, str], number: int, refusal: int) -> NoReturn:
    global fault
    code = 99
    try:
        for target, fd in enumerate(files[:3]):
            os.dup2(fd, target)
        for fd in files[:3]:
            os.close(fd)
        posix.environ.clear()
        posix.environ.update({key.encode(): value.encode() for key, value in env.items()})
        from mycelium_cni.main import main

        fault = number, refusal
        if refusal:  # what was refused may never exist
            Patience.LIMIT_S = 1
        code = main()
        os.write(files[3], json.dumps(points).encode())
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}".encode())
    finally:
        os._exit(code)


def run(job: dict[str, Any]) -> None:
    """All cases of a verb, or those that the job names; or one call on a kernel without what the
    job says it is without."""
    global subtrees
    conf, verb = job["conf"], job["verb"]
    env = job["env"]
    if job.get("without") == "IPV6_SUBTREES":
        subtrees = False
        code, said, error, _ = call({**env, "CNI_COMMAND": verb}, conf)
        sys.stdout.write(said)
        sys.stderr.write(error)
        sys.exit(code)

    def say(verb: str, *fault: int, **keys: Any) -> Any:
        return call({**env, "CNI_COMMAND": verb}, {**conf, **keys}, *fault)

    def prepared() -> dict[str, Any]:
        """What a verb needs beforehand."""
        if verb in ("ADD", "STATUS"):
            return {}
        if verb == "CHECK" and checked:
            return checked
        code, said, *_ = say("ADD")
        assert code == 0, said
        if verb == "CHECK":
            checked["prevResult"] = json.loads(said)
        return checked

    def finished(code: int) -> Any:
        """What a runtime does next."""
        if verb in ("DEL", "GC"):
            return say(verb) if code else None
        return say("DEL") if verb == "ADD" and code == 0 else None

    checked: dict[str, Any] = {}
    code, said, error, known = say(verb, **prepared())
    assert code == 0, said + error
    finished(code)
    # A child deletes the links; until they are gone the parent repeats one request.
    end = known.index("fork") + 9 if "fork" in known else None
    cases = job.get("cases") or [
        (number, name)
        for number, point in enumerate(known[:end])
        for name in CALLS.get(point) or REFUSALS[point.partition(" ")[0]]
        if verb not in ("DEL", "GC") or name not in ABSENT
    ]
    for number, name in cases:
        code, said, error, met = say(verb, number, getattr(errno, name), **prepared())
        point = met[number] if number < len(met) else None
        then = finished(code)
        line = {"number": number, "errno": name, "point": point, "code": code}
        line |= {"stdout": said, "stderr": error, "then": then and then[:3]}
        sys.stdout.write(json.dumps(line) + "\n")
    if checked:
        say("DEL")


if __name__ == "__main__":
    add_failure_points()
    run(json.loads(sys.stdin.read()))
