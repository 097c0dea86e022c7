# SPDX-License-Identifier: Apache-2.0
"""The cluster that this node belongs to: the subnets of its nodes, and what they hear of ours.

Each agent publishes the subnet and the address of its node in annotations of the Node, and keeps
the subnets of all nodes in a file, which the policy `ingress: cluster` reads on every ADD
(`clusterFile`). The file stays as it is while the API does not answer.

Whoever is root on another node can change that node's annotations. So an annotation counts only if
it is a /64 of the overlay, and a Node counts once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import SystemRandom
from typing import Any, Final
from urllib.parse import quote

from mycelium_agent.kubernetes import Api, ApiError, Json
from mycelium_agent.log import Log
from mycelium_cni.cni.config import MOST_PREFIXES, parse_subnet
from mycelium_cni.kernel.address import format_address, format_prefix
from mycelium_ctl import files
from mycelium_ctl.errors import ToolError
from mycelium_ctl.receipt import Receipt
from mycelium_ctl.view import count

SUBNET: Final = "mycelium-cni/subnet"
ADDRESS: Final = "mycelium-cni/address"
NODES: Final = "/api/v1/nodes"
FIRST_S, LONGEST_S = 1.0, 60.0  # pauses between attempts
GONE: Final = 410  # HTTP: list again


class Cluster:
    """`wake` is called when `keep` has something to do."""

    def __init__(self, api: Api, node: str, log: Log, wake: Callable[[], object]) -> None:
        self._api: Final = api
        self._node: Final = node
        self._log: Final = log
        self._wake: Final = wake
        self._known: dict[str, str] = {}  # nodes, each with its subnet
        self._refused: dict[str, str] = {}  # nodes, and what they claim instead
        self._text: str | None = None  # of the file; None until the API has answered
        self._ours: dict[str, str] = {}  # our annotations as they should be
        self._shown: dict[str, str] | None = None  # as they are; None without such a Node
        self._unpublished: Final = threading.Event()
        self._said: dict[str, str] = {}  # troubles, by subject: each is said once

    def start(self) -> None:
        """Follow the nodes and publish ours from now on, until the process ends."""
        for each in (self._follow, self._tell):
            threading.Thread(target=each, daemon=True).start()

    # In the main thread

    def keep(self, file: Path, root: Path) -> None:
        """Make the file hold what the API last said, if it has said anything. `root`: of the node,
        whose `uninstall` removes the file."""
        text = self._text
        if text is None:
            return
        try:
            before = files.read(file).decode(errors="replace")
        except OSError:
            before = None
        if before == text:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            Receipt(root).adopt(file)
            files.write(file, text)
        except (ToolError, OSError) as error:
            self._trouble("cluster", str(error))
            return
        self._well("cluster")
        nodes = count(text.count("\n"), "node")
        self._log.write("info", f"cluster: {file} has the subnets of {nodes}")

    def publish(self, address: bytes | None) -> None:
        """Say what our node's address is; while it is not known, what was said stands."""
        if address is None:
            return
        subnet = format_prefix((address[:8] + bytes(8), 64))
        self._ours = {SUBNET: subnet, ADDRESS: format_address(address)}
        self._compare()

    def _compare(self) -> None:
        if self._ours and self._shown is not None and self._ours != self._shown:
            self._unpublished.set()

    # In a thread: publish

    def _tell(self) -> None:
        pauses, published = _Pauses(), 0.0
        while self._unpublished.wait():
            self._unpublished.clear()
            ours = self._ours
            try:
                path = f"{NODES}/{quote(self._node, safe='')}"
                self._api.patch(path, {"metadata": {"annotations": ours}})
            except ApiError as error:
                self._trouble("annotations", str(error))
                self._unpublished.set()
            else:
                self._shown = ours
                self._well("annotations")
                self._log.write("info", f"cluster: published {ours[SUBNET]}")
                if time.monotonic() - published > LONGEST_S:  # nobody keeps removing them
                    pauses.end()
                published = time.monotonic()
            pauses.wait()

    # In a thread: follow

    def _follow(self) -> None:
        pauses = _Pauses()
        version = ""
        while True:
            started = time.monotonic()
            try:
                if not version:
                    listed, version = self._api.list(NODES)
                    self._take(listed)
                    self._well("nodes")
                with closing(self._api.watch(NODES, version)) as events:
                    for kind, item in events:
                        version = str(item.get("resourceVersion") or version)
                        if kind != "BOOKMARK":
                            self._note(item, gone=kind == "DELETED")
                            self._settle()
                        pauses.end()
                self._well("nodes")
            except ApiError as error:
                version = ""
                if error.status != GONE:
                    self._trouble("nodes", str(error))
                pauses.wait()
            else:
                if time.monotonic() - started < FIRST_S:
                    pauses.wait()

    def _take(self, listed: list[Json]) -> None:
        """All nodes that there are."""
        names = {str(item.get("name")) for item in listed}
        for nodes in (self._known, self._refused):
            for name in nodes.keys() - names:
                del nodes[name]
        for item in listed:
            self._note(item)
        self._settle()

    def _note(self, item: Json, *, gone: bool = False) -> None:
        """A node as it is now."""
        name = str(item.get("name"))
        said = item.get("annotations")
        annotations: dict[str, Any] = said if isinstance(said, dict) and not gone else {}
        if name == self._node:
            shown = {key: str(annotations.get(key)) for key in (SUBNET, ADDRESS)}
            self._shown = None if gone else shown
            self._compare()
        self._known.pop(name, None)
        if SUBNET not in annotations:
            self._refused.pop(name, None)
            return
        claim = str(annotations[SUBNET])[:64]
        try:
            self._known[name] = format_prefix(parse_subnet(claim))
        except ValueError as error:
            if self._refused.get(name) != claim:
                self._refused[name] = claim
                self._log.write("warning", f"cluster: node {name}: {SUBNET} is ignored: {error}")
        else:
            self._refused.pop(name, None)

    def _settle(self) -> None:
        """Have the file written if the set has changed."""
        subnets = sorted(set(self._known.values()))
        if len(subnets) > MOST_PREFIXES:
            words = f"{len(subnets)} nodes have a subnet, and only {MOST_PREFIXES} can be allowed"
            self._trouble("cluster size", words)
        else:
            self._well("cluster size")
        text = "".join([f"{subnet}\n" for subnet in subnets[:MOST_PREFIXES]])
        if text != self._text:
            self._text = text
            self._wake()

    def _trouble(self, subject: str, words: str) -> None:
        """Say what is wrong, once."""
        if self._said.get(subject) != words:
            self._said[subject] = words
            self._log.write("warning", f"{subject}: {words}")

    def _well(self, subject: str) -> None:
        """Say that a trouble is over."""
        if self._said.pop(subject, ""):
            self._log.write("info", f"{subject}: recovered")


class _Pauses:
    """Of a thread whose attempts may fail: 1, 2, 4 … s, and not all nodes at once."""

    def __init__(self) -> None:
        self._next = FIRST_S

    def end(self) -> None:
        """The last attempt has succeeded."""
        self._next = FIRST_S

    def wait(self) -> None:
        time.sleep(self._next * SystemRandom().uniform(0.5, 1.0))
        self._next = min(2 * self._next, LONGEST_S)
