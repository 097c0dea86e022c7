# SPDX-License-Identifier: Apache-2.0
"""The plugin's requests to the kernel, recorded with strace, for floor.c to repeat.

Recorded from the executable itself, so the floor follows every change of the plugin.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mycelium_cni.guard import counterpart, mac_of
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_mac, parse_address
from mycelium_cni.pod.attachment import Attachment

_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
_POLL = re.compile(r"\[\{fd=(\d+), events=\w+\}\], 1, (\d+)$")
_SYSCTL = "/proc/sys/"
_RESERVED = "/"  # what the plugin opens to have descriptors left for its undo
_HOST_END, _POD_END = 0, 1
_CLONES = ("clone", "clone3", "fork", "vfork")

STRACE: Final = (
    # Constants as numbers, and every byte read or written as a hexadecimal dump.
    *("strace", "-ff", "-qq", "-X", "raw", "-e", "signal=none", "-e", "read=all"),
    *("-e", "write=all", "-o"),
)


@dataclass(frozen=True)
class PodNames:
    """What differs from pod to pod in the plugin's requests. The texts of all pods have equal
    lengths, so that the requests have."""

    network: str
    container: str
    netns: str
    address: str
    ifname: str = "eth0"

    def words(self) -> list[bytes]:
        """The bytes to look for in a request, the same order for every pod."""
        attachment = Attachment(self.network, self.container, self.ifname)
        pod_mac = mac_of(parse_address(self.address))
        macs = (counterpart(pod_mac), pod_mac)
        return [
            self.netns.encode(),
            self.container.encode(),
            attachment.host_link.encode(),
            *macs,
            *(format_mac(mac).encode() for mac in macs),
            parse_address(self.address),
            self.address.encode(),
        ]


@dataclass(frozen=True)
class Step:
    """One system call: a letter that floor.c knows, and what it takes. `patches` are places where
    the index of an end of the pair belongs."""

    call: str
    fd: int = 0
    argument: int = 0
    data: bytes = b""
    patches: tuple[tuple[int, int], ...] = ()

    def encode(self) -> bytes:
        head = (ord(self.call), self.fd, len(self.patches), self.argument, len(self.data))
        patches = b"".join(struct.pack("=HH", *patch) for patch in self.patches)
        return struct.pack("=BBHII", *head) + patches + self.data


class Recording:
    """The calls of one ADD or DEL of one pod, for any pod."""

    def __init__(self, steps: list[Step], recorded: PodNames) -> None:
        self.steps: Final = steps
        self._words: Final = recorded.words()

    def encode(self, pod: PodNames) -> bytes:
        """The recording for `pod`, as floor.c reads it."""
        swap = list(zip(self._words, pod.words(), strict=True))
        encoded = b""
        for step in self.steps:
            data = step.data
            for old, new in swap:
                data = data.replace(old, new)
            if step.call in "XU" and len(data) != len(step.data):
                raise ValueError("the names of two pods are of different lengths")
            encoded += replace(step, data=data).encode()
        return encoded


def read(folder: Path, pid: int, recorded: PodNames) -> Recording:
    """What strace has left in `folder`/strace.<pid>, with the parts of its children."""
    return Recording(list(_Reader(folder, recorded).steps(pid)), recorded)


@dataclass
class _Call:
    name: str
    arguments: list[str]
    result: int
    data: bytes


def _calls(file: Path) -> Iterator[_Call]:
    """The calls in a file of strace's, each with the bytes that it read or wrote."""
    call: _Call | None = None
    for line in file.read_text(errors="replace").splitlines():
        if line.startswith(" | "):
            if call is not None:
                call.data += bytes.fromhex(line[10:59])
        elif found := _CALL.match(line):
            if call is not None:
                yield call
            name, arguments, result = found.groups()
            call = _Call(name, arguments.split(", "), int(result), b"")
    if call is not None:
        yield call


def _number(word: str) -> int:
    return sum(int(part, 0) for part in word.split("|"))


class _Reader:
    """Keeps the system calls of a process that are requests to the kernel's network, and drops the
    interpreter's."""

    def __init__(self, folder: Path, recorded: PodNames) -> None:
        self._folder = folder
        self._recorded = recorded
        self._host_link = recorded.words()[2]
        self._pod_mac = recorded.words()[4]
        self._ends = {_HOST_END: 0, _POD_END: 0}
        self._netfilter: set[int] = set()  # descriptors of sockets to nfnetlink

    def steps(self, pid: int, inherited: dict[int, int] | None = None) -> Iterator[Step]:
        # descriptor → the end of the pair that lies in its namespace
        ours = dict(inherited or {})
        here = _HOST_END
        child = 0
        for call in _calls(self._folder / f"strace.{pid}"):
            first = call.arguments[0]
            fd = int(first) if first.isdigit() else -1
            if call.result < 0 and call.name != "recvfrom":
                continue
            if call.name == "socket":
                ours[call.result] = here
                kinds = list(map(_number, call.arguments))
                if kinds[::2] == [socket.AF_NETLINK, nl.NETLINK_NETFILTER]:
                    self._netfilter.add(call.result)
                yield Step("S", call.result, data=struct.pack("=3i", *kinds))
            elif call.name == "fsopen":
                ours[call.result] = here
                kind = first.strip('"').encode() + b"\0"
                yield Step("A", argument=_number(call.arguments[1]), data=kind)
            elif call.name == "openat":
                path = call.arguments[1].strip('"')
                below = max(fd, 0)  # 0: no directory
                if (
                    below in ours
                    or path.startswith(_SYSCTL)
                    or path in (_RESERVED, self._recorded.netns)
                ):
                    ours[call.result] = _POD_END if path == self._recorded.netns else here
                    flags = _number(call.arguments[2])
                    yield Step("P", below, flags, path.encode() + b"\0")
            elif call.name in ("stat", "newfstatat") and self._recorded.netns in call.arguments[-3]:
                yield Step("T", data=self._recorded.netns.encode() + b"\0")
            elif call.name in _CLONES and call.result > 0:
                part = list(self.steps(call.result, ours))
                part.append(Step("E"))
                yield Step("K", argument=sum(len(step.encode()) for step in part))
                yield from part
                child = call.result
            elif call.name == "close" and child == 0 and fd in range(3):
                yield Step("C", fd)
            elif call.name == "setsid":
                yield Step("D")
            elif call.name == "poll" and (polled := _POLL.match(", ".join(call.arguments))):
                yield Step("Q", int(polled[1]), int(polled[2]))
            elif fd not in ours:
                continue
            elif call.name == "fsconfig":
                yield Step("G", fd, _number(call.arguments[1]))
            elif call.name == "fsmount":
                ours[call.result] = here
                yield Step("M", fd, data=struct.pack("=2i", *map(_number, call.arguments[1:])))
            elif call.name == "setsockopt":
                words = (*call.arguments[1:3], call.arguments[3].strip("[]"))
                option = struct.pack("=3i", *map(_number, words))
                yield Step("O", fd, data=option)
            elif call.name == "sendto":
                patches = tuple(self._patches(call.data, fd, ours[fd]))
                if child:  # from here on the parent only waits
                    yield Step("U", fd, data=call.data, patches=patches)
                    return
                yield Step("X", fd, data=call.data, patches=patches)
            elif call.name == "recvfrom":
                yield Step("V", fd)
                if self._learn(call.data):
                    yield Step("L")
            elif call.name == "ioctl":
                request = _number(call.arguments[1])
                if call.result not in ours and call.result < 256:
                    ours[call.result] = _HOST_END
                yield Step("I", fd, request)
            elif call.name == "setns":
                here = ours[fd]
                yield Step("N", fd, _number(call.arguments[1]))
            elif call.name in ("fstat", "newfstatat"):
                yield Step("F", fd)
            elif call.name in ("read", "pread64"):
                yield Step("R", fd)
            elif call.name == "write":
                yield Step("W", fd, data=call.data)
            elif call.name == "close":
                del ours[fd]
                self._netfilter.discard(fd)
                yield Step("C", fd)

    def _learn(self, answer: bytes) -> bool:
        """Whether the answer describes the pod's pair, and is the first to do so."""
        kind = int.from_bytes(answer[4:6], "little")
        if self._ends[_HOST_END] or kind != nl.RTM_NEWLINK or self._host_link not in answer:
            return False
        attributes = nl.decode(answer, 16 + nl.IFINFOMSG.size)
        self._ends[_HOST_END] = nl.IFINFOMSG.unpack_from(answer, 16)[2]
        self._ends[_POD_END] = nl.u32(attributes[nl.IFLA_LINK])
        return True

    def _patches(self, batch: bytes, fd: int, end: int) -> Iterator[tuple[int, int]]:
        """The places in a batch that hold the index of the pair's end in this namespace."""
        index = self._ends[end]
        if fd in self._netfilter:
            # The guard's sets know a pod by its port and, next to it, its MAC.
            key = struct.pack("=I", index) + self._pod_mac
            yield from ((found.start(), end) for found in re.finditer(re.escape(key), batch))
            return
        start = 0
        while index and start < len(batch):
            length, kind = struct.unpack_from("=IH", batch, start)
            for place in _index_places(batch, start, length, kind):
                if struct.unpack_from("=I", batch, place) == (index,):
                    yield place, end
            start += length + 3 & ~3


def _index_places(batch: bytes, start: int, length: int, kind: int) -> Iterator[int]:
    if kind in (nl.RTM_NEWROUTE, nl.RTM_DELROUTE, nl.RTM_GETROUTE):
        place = start + 16 + nl.RTMSG.size
        while place + 4 <= start + length:
            size, name = struct.unpack_from("=HH", batch, place)
            if name == nl.RTA_OIF:
                yield place + 4
            place += max(size + 3 & ~3, 4)
    elif kind == nl.RTM_SETNEIGHTBL:
        index = struct.pack("=HH", 8, nl.NDTPA_IFINDEX)
        yield batch.index(index, start + 16) + len(index)
    else:
        yield start + 16 + 4  # ifinfomsg, ifaddrmsg and ndmsg all have it there


def names_of(number: int, network: str, netns: str, subnet: str) -> PodNames:
    """Names for the pod with this number; all numbers below 4096² give texts of equal lengths."""
    address = f"{subnet}:ff0f:1111:1{number >> 12:03x}:1{number & 4095:03x}"
    return PodNames(network, f"bench-{number:08d}", netns, address)


def environment(names: PodNames, verb: str) -> dict[str, str]:
    """The CNI_* variables of a call, and nothing else."""
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": names.container,
        "CNI_NETNS": names.netns,
        "CNI_IFNAME": names.ifname,
    }
