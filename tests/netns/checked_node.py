# SPDX-License-Identifier: Apache-2.0
"""Two connected nodes, two pods on the first, and the files that doctor looks at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attaching import Mode
from tool import Tool

from mycelium_lab.lab import Lab, Namespace, Pod

PING_S = 0.25


class CheckedNode:
    """Two connected nodes, two pods on the first, and the files that doctor looks at."""

    def __init__(self, command: list[str], mode: Mode) -> None:
        self.mode: Mode = mode
        self.lab = Lab(command)
        self.node, self.other = self.lab.node("left"), self.lab.node("right")
        self.lab.connect(self.node, self.other)
        self.root = Path(tempfile.mkdtemp())
        for folder in ("etc/cni/net.d", "opt/cni/bin"):
            (self.root / folder).mkdir(parents=True)
        for name in ("mycelium-cni", "loopback"):
            path = self.root / "opt/cni/bin" / name
            path.write_text(f'#!/bin/sh\nexec {" ".join(command)} "$@"\n')
            path.chmod(0o755)
        plugin = {"type": "mycelium-cni", "mode": mode, "netseed": "/nonexistent"}
        conflist = {"cniVersion": "1.0.0", "name": "mycelium", "plugins": [plugin]}
        (self.root / "etc/cni/net.d/10-mycelium.conflist").write_text(json.dumps(conflist))
        self.tool = Tool(self.node, self.root)
        self.tool("setup")
        self.web = self._attach("web")
        self.db = self._attach("db")
        listed = {each["pod"]: each for each in self.tool.json("list")}
        self.address: str = listed["web"]["address"]
        self.neighbour: str = listed["db"]["address"]
        link: str = listed["web"]["hostLink"]
        own = str(self.node.overlay_address)
        self.words = {
            "LINK": link,
            "WAY": "mycelium-br" if mode == "bridge" else link,
            "ADDR": self.address,
            "NODE": own,
            "SUB": ":".join(own.split(":")[:4]),
            "NEXT": listed["db"]["hostLink"],
            "BITS": "64" if mode == "bridge" else "128",
            "GATEWAY": f"{':'.join(own.split(':')[:4])}::1" if mode == "bridge" else "fe80::1",
            "FAR": f"{':'.join(str(self.other.overlay_address).split(':')[:4])}::/64",
            "IN": f"nsenter --net={self.web.path}",
            "PATH": os.environ["PATH"],
        }

    def _attach(self, name: str) -> Pod:
        return self.tool.attach(name, mode=self.mode, netseed="/nonexistent")

    def shell(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Run lines in a shell of the node."""
        (link,) = self.web.ip("link", "show", "eth0")
        words = {**self.words, "MAC": link["address"]}
        return self.node.run(["sh", "-c", lines], env=words, check=False)

    def lost(self, *, wait_s: float = PING_S) -> list[str]:
        """The paths on which no echo request is answered."""
        ways: dict[str, tuple[Namespace, str]] = {
            "node to pod": (self.node, self.address),
            "pod to node": (self.web, str(self.node.overlay_address)),
            "pod to pod": (self.web, self.neighbour),
            "pod to overlay": (self.web, str(self.other.overlay_address)),
            "overlay to pod": (self.other, self.address),
        }

        def answers(way: tuple[Namespace, str]) -> bool:
            return any(way[0].ping(way[1], wait_s=wait_s) is not None for _ in range(2))

        with ThreadPoolExecutor(len(ways)) as pool:
            answered = list(pool.map(answers, ways.values()))
        return [name for name, good in zip(ways, answered, strict=True) if not good]

    def doctor(self, *argv: str) -> list[dict[str, Any]]:
        """The findings that are failures or warnings."""
        done = self.tool("doctor", "--json", *argv)
        assert done.stderr == ""
        findings: list[dict[str, Any]] = json.loads(done.stdout)
        amiss = [each for each in findings if each["state"] in ("fail", "warn")]
        failed = any(each["state"] == "fail" for each in amiss)
        assert done.returncode == (1 if failed else 0)
        return amiss

    def close(self) -> None:
        self.lab.close()
        shutil.rmtree(self.root)


class CheckedNodes:
    """One for each mode, made when it is first needed, and used until a test fails on it."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._made: dict[Mode, CheckedNode] = {}

    @contextmanager
    def of(self, mode: Mode) -> Iterator[CheckedNode]:
        if mode not in self._made:
            self._made[mode] = CheckedNode(self._command, mode)
        try:
            yield self._made[mode]
        except BaseException:
            self._made.pop(mode).close()  # the next fault gets a node without this one
            raise

    def close(self) -> None:
        for checked in self._made.values():
            checked.close()
