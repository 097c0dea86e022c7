# SPDX-License-Identifier: Apache-2.0
"""The node in numbers, read when they are asked for, in Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4. What cannot be read is
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final

from mycelium_cni.cni.errors import __version__
from mycelium_cni.guard import TABLE_NAME
from mycelium_ctl.checks.ruleset import read_dropping
from mycelium_ctl.node.state import State

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def text(state: State, repairs: Mapping[str, int], *, ready: bool) -> str:
    """All of them. `repairs`: what the agent has made, by kind."""
    return "".join(f"{line}\n" for line in _lines(state, repairs, ready=ready))


def _lines(state: State, repairs: Mapping[str, int], *, ready: bool) -> Iterator[str]:
    yield from _one("gauge", "mycelium_cni_info", "The version.", {"version": __version__}, 1)
    yield from _one("gauge", "mycelium_cni_ready", "Whether STATUS is content.", {}, int(ready))
    modes = Counter("bridge" if one.bridged else "routed" for one in state.attachments)
    about = "Pods on Mycelium, by mode."
    yield from _each("gauge", "mycelium_cni_attachments", about, "mode", sorted(modes.items()))
    about = "Facts of the node and its pods that the agent has made again, by kind."
    name = "mycelium_cni_repairs_total"
    yield from _each("counter", name, about, "kind", sorted(repairs.items()))
    with suppress(OSError):
        drops: Counter[str] = Counter()
        for rule in read_dropping():
            if rule.table == TABLE_NAME:
                drops[rule.reason] += rule.packets
        about = "Packets that the guard has dropped since its rules were loaded, by reason."
        name = "mycelium_cni_guard_dropped_packets_total"
        yield from _each("counter", name, about, "reason", sorted(drops.items()))
    daemon = state.daemon
    answers = int(daemon.subnet is not None)
    yield from _one("gauge", "mycelium_daemon_up", "Whether its API answers.", {}, answers)
    if daemon.peers is not None:
        peers = [("connected", daemon.alive_peers), ("all", len(daemon.peers))]
        yield from _each("gauge", "mycelium_daemon_peers", "Its peers.", "state", peers)
    if daemon.routes is not None:
        about = "Subnets that it has a route to."
        yield from _one("gauge", "mycelium_daemon_routes", about, {}, len(daemon.routes))


def _one(kind: str, name: str, about: str, labels: Mapping[str, str], value: int) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    yield f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _each(
    kind: str, name: str, about: str, label: str, values: Iterable[tuple[str, int]]
) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
    for text, value in values:
        yield f'{name}{{{label}="{_escaped(text)}"}} {value}'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
