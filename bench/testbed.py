# SPDX-License-Identifier: Apache-2.0
"""A temporary machine for the bench: nodes, pods, and a way to start processes on them.

The bench's process leaves the machine's own network and mount namespaces for new ones. Whatever is
made there goes when the process ends, even if it is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mycelium_cni.kernel import netns as namespaces

SUBNET: Final = "5a1:2b3c:4d5e:6f70"
NODE_ADDRESS: Final = f"{SUBNET}:ff0f::1"

_NETNS: Final = Path("/run/netns")
_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
_ETC: Final = Path("/etc")
_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """The bench cannot go on; the text tells a person why."""


@dataclass(frozen=True)
class Call:
    """A process to be started: on which node, with what, and nothing else in its environment."""

    netns: str
    argv: Sequence[str]
    environment: dict[str, str]
    stdin: Path


@dataclass(frozen=True)
class Done:
    """A process that has ended. Times are of CLOCK_MONOTONIC, which time.monotonic_ns reads too."""

    start_ns: int
    end_ns: int
    peak_kib: int
    stdout: Path

    @property
    def ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def document(self) -> Any:
        return json.loads(self.stdout.read_text())


class Testbed:
    """The namespaces, a folder in memory for files, and the process that starts processes."""

    def __init__(self, spawner: Path) -> None:
        self._spawner_path: Final = spawner
        self._spawner: subprocess.Popen[str] | None = None
        self._home = -1
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise BenchError("making network namespaces takes root: run it again with sudo")
        _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "make namespaces")
        _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "make mounts private")
        # In memory, so that no candidate's files wait for a disk.
        _NETNS.mkdir(parents=True, exist_ok=True)
        _check(_libc.mount(b"bench", bytes(_NETNS), b"tmpfs", 0, None), "mount tmpfs")
        self._home = namespaces.open_netns("/proc/thread-self/ns/net")
        self._folder = Path(tempfile.mkdtemp(dir=_NETNS, prefix="files-"))
        self._spawner = subprocess.Popen(
            [self._spawner_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._spawner is not None:
            self._spawner.kill()
            self._spawner.wait()
        # Only the mounts and this process hold the namespaces: they go with both.
        _libc.umount2(bytes(_NETNS), _MNT_DETACH)

    @property
    def folder(self) -> Path:
        assert self._folder is not None
        return self._folder

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def etc(self, name: str, content: bytes) -> None:
        """A file in /etc as the processes of the bench see it, and nobody else."""
        upper, work = self.folder / "etc", self.folder / "etc-work"
        if not upper.exists():
            upper.mkdir()
            work.mkdir()
            options = f"lowerdir={_ETC},upperdir={upper},workdir={work}"
            mounted = _libc.mount(b"etc", bytes(_ETC), b"overlay", 0, options.encode())
            _check(mounted, "lay a file system over /etc")
        (_ETC / name).write_bytes(content)

    def pods(self, name: str, count: int) -> list[str]:
        """The paths of that many new, empty network namespaces."""
        paths = [str(_NETNS / f"{name}-{number:05d}") for number in range(count)]
        for path in paths:
            Path(path).touch()
            _check(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
            source = b"/proc/thread-self/ns/net"
            _check(_libc.mount(source, path.encode(), None, _MS_BIND, None), f"mount {path}")
        _check(_libc.setns(self._home, _CLONE_NEWNET), "come back")
        return paths

    def node(self, name: str) -> str:
        """A node as the plugin finds it: `lo` up, and the daemon's interface with its address."""
        path = self.pods(name, 1)[0]
        lines = (
            "link set lo up",
            "tuntap add mycelium mode tun",
            f"address add {NODE_ADDRESS}/7 dev mycelium nodad",
            "link set mycelium mtu 1400 up",
        )
        with self.inside(path):
            done = subprocess.run(
                ["ip", "-batch", "-"],
                input="\n".join(lines),
                text=True,
                stderr=subprocess.PIPE,
                check=False,
            )
        if done.returncode:
            raise BenchError(f"cannot make a node: {' '.join(done.stderr.split())}")
        return path

    def remove(self, paths: Sequence[str]) -> None:
        """Release network namespaces, and let the kernel finish before anything is measured."""
        for path in paths:
            _libc.umount2(path.encode(), _MNT_DETACH)
            Path(path).unlink()
        if paths:
            time.sleep(0.2 + len(paths) / 1000)

    @contextmanager
    def inside(self, netns: str) -> Iterator[None]:
        there = namespaces.open_netns(netns)
        try:
            with namespaces.inside(there, home=self._home):
                yield
        finally:
            os.close(there)

    def run(self, calls: Sequence[Call], *, parallel: int = 1, check: bool = True) -> list[Done]:
        """Start processes, so many at a time, and return when all have ended; BenchError if one of
        them fails, unless `check` is false."""
        assert self._spawner is not None
        assert self._spawner.stdin is not None
        assert self._spawner.stdout is not None
        lines = [f"{parallel} {len(calls)}"]
        outputs = []
        for number, call in enumerate(calls):
            outputs.append(self.folder / f"stdout-{number}")
            words = [call.netns, str(call.stdin), str(outputs[-1]), str(len(call.argv))]
            words += [*call.argv, *(f"{key}={value}" for key, value in call.environment.items())]
            lines.append("\t".join(words))
        self._spawner.stdin.write("\n".join(lines) + "\n")
        self._spawner.stdin.flush()
        done = []
        for call, output in zip(calls, outputs, strict=True):
            answer = self._spawner.stdout.readline().split()
            if not answer:
                raise BenchError("the process that starts processes has ended")
            status, start, end, peak = map(int, answer)
            if status and check:
                verb = call.environment.get("CNI_COMMAND")
                said = (
                    output.read_text().strip() or f"exit status {os.waitstatus_to_exitcode(status)}"
                )
                raise BenchError(f"{call.argv[0]}: {verb}: {said}")
            done.append(Done(start, end, peak, output))
        return done


def _check(result: int, what: str) -> None:
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise BenchError(f"cannot {what}: {reason}; run it as root, outside of a container")
