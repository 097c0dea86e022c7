# SPDX-License-Identifier: Apache-2.0
"""Pods attached as a runtime attaches them, with CHECK, DEL and pings of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, TypeVar

import pytest

from mycelium_lab.lab import Lab, Namespace, Node, PluginCall, Pod

T = TypeVar("T")
Mode = Literal["routed", "bridge"]
MODES: tuple[Mode, ...] = ("routed", "bridge")
both_modes = pytest.mark.parametrize("mode", MODES)

BRIDGE = "mycelium-br"
OVERLAY = "400::/7"
PROTOCOL = "77"  # how `ip` shows the routes and neighbours of the plugin


def network(mode: str = "routed", version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    """A network configuration that does not depend on the state of the machine."""
    # The machine's own /etc/netseed must not count in a test.
    base = {"name": "overlay", "type": "mycelium-cni", "mode": mode, "netseed": "/nonexistent"}
    return {"cniVersion": version, **base, **keys}


@dataclass(frozen=True)
class Attached:
    """A pod on Mycelium, and what the runtime knows of it."""

    node: Node
    pod: Pod
    conf: dict[str, Any]
    result: dict[str, Any]
    ifname: str

    @property
    def place(self) -> int:
        """The index of the pod link among the interfaces of the result."""
        index: int = self.result["ips"][-1]["interface"]
        return index

    @property
    def address(self) -> str:
        text: str = self.result["ips"][-1]["address"]
        return text.partition("/")[0]

    @property
    def pod_link(self) -> str:
        name: str = self.result["interfaces"][self.place]["name"]
        return name

    @property
    def pod_mac(self) -> str:
        mac: str = self.result["interfaces"][self.place]["mac"]
        return mac

    @property
    def gateway(self) -> str:
        text: str = self.result["ips"][-1]["gateway"]
        return text

    @property
    def host_link(self) -> str:
        name: str = self.result["interfaces"][self.place - 1]["name"]
        return name

    def check(self, **changes: Any) -> PluginCall:
        """CHECK with the result of ADD; `changes` replaces keys of the configuration."""
        conf = {**self.conf, "prevResult": self.result, **changes}
        return self.node.plugin("CHECK", conf, self.pod, ifname=self.ifname)

    def delete(self) -> PluginCall:
        """DEL as a runtime calls it."""
        conf = {**self.conf, "prevResult": self.result}
        return self.node.plugin("DEL", conf, self.pod, ifname=self.ifname)


def attach(
    node: Node,
    pod: Pod | str,
    conf: dict[str, Any] | None = None,
    *,
    ifname: str = "eth0",
    args: str = "",
) -> Attached:
    """ADD, which must succeed. A name makes a new pod."""
    pod = node.pod(pod) if isinstance(pod, str) else pod
    conf = network() if conf is None else conf
    call = node.plugin("ADD", conf, pod, ifname=ifname, args=args)
    assert call.code == 0, call
    return Attached(node, pod, conf, call.result, ifname)


def refused(call: PluginCall, *codes: int, says: str = "") -> dict[str, Any]:
    """The one error object of a call that must fail, with one of these codes and this text."""
    assert call.code == 1, call
    error: dict[str, Any] = call.result
    assert isinstance(error["code"], int), call
    assert error["msg"], call
    assert not codes or error["code"] in codes, error
    assert says in f"{error['msg']} {error.get('details', '')}", error
    assert "Traceback" not in call.stderr, call
    return error


def silent(call: PluginCall) -> None:
    """Assert that a call succeeded and printed nothing."""
    assert (call.code, call.stdout) == (0, ""), call


def reaches(source: Namespace, address: str | None, source_address: str | None = None) -> bool:
    """Whether `address` answers one of three echo requests.

    One lost answer proves nothing: the kernel answers through one socket per CPU, which all network
    namespaces share, and drops an answer when others have filled it.
    """
    return any(source.ping(str(address), source=source_address) is not None for _ in range(3))


class SharedNodes:
    """Two connected nodes for each mode, made when they are first needed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._labs: dict[str, Lab] = {}
        self._numbers = count(1)

    def pair(self, mode: str) -> tuple[Node, Node]:
        """The two nodes of this mode."""
        if mode not in self._labs:
            self._labs[mode] = Lab(self._command)
            left, right = (self._labs[mode].node(name) for name in ("left", "right"))
            self._labs[mode].connect(left, right)
        left, right = self._labs[mode].nodes
        return left, right

    @property
    def nodes(self) -> list[Node]:
        """All nodes that have been made."""
        return [node for lab in self._labs.values() for node in lab.nodes]

    def new_pods(self, node: Node, number: int = 1) -> list[Pod]:
        """New pods, with names that no other has."""
        return [node.pod(f"p{next(self._numbers)}") for _ in range(number)]

    def close(self) -> None:
        for lab in self._labs.values():
            lab.close()


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each of these returns, all of them running at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
