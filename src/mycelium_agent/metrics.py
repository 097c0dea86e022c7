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

from mycelium_agent.calls import Calls
from mycelium_cni.cni.errors import __version__
from mycelium_cni.guard import TABLE_NAME
from mycelium_ctl.checks.ruleset import read_dropping
from mycelium_ctl.node.state import State

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def text(state: State, calls: Calls, repairs: Mapping[str, int], *, ready: bool) -> str:
    """All of them. `repairs`: what the agent has made, by kind."""
    return "".join(f"{line}\n" for line in _lines(state, calls, repairs, ready=ready))


def _lines(state: State, calls: Calls, repairs: Mapping[str, int], *, ready: bool) -> Iterator[str]:
    yield from _one("gauge", "mycelium_cni_info", "The version.", {"version": __version__}, 1)
    yield from _one("gauge", "mycelium_cni_ready", "Whether STATUS succeeds.", {}, int(ready))
    modes = Counter("bridge" if one.bridged else "routed" for one in state.attachments)
    about = "Pods on Mycelium, by mode."
    yield from _each("gauge", "mycelium_cni_attachments", about, _by("mode", modes))
    about = "Facts of the node and its pods that the agent has repaired, by kind."
    yield from _each("counter", "mycelium_cni_repairs_total", about, _by("kind", repairs))
    yield from _of_calls(calls)
    with suppress(OSError):
        drops: Counter[str] = Counter()
        for rule in read_dropping():
            if rule.table == TABLE_NAME:
                drops[rule.reason] += rule.packets
        about = "Packets that the guard has dropped since its rules were loaded, by reason."
        name = "mycelium_cni_guard_dropped_packets_total"
        yield from _each("counter", name, about, _by("reason", drops))
    daemon = state.daemon
    answers = int(daemon.subnet is not None)
    yield from _one("gauge", "mycelium_daemon_up", "Whether its API answers.", {}, answers)
    if daemon.peers is not None:
        peers = {"connected": daemon.alive_peers, "all": len(daemon.peers)}
        yield from _each("gauge", "mycelium_daemon_peers", "Its peers.", _by("state", peers))
    if daemon.routes is not None:
        about = "Subnets that it has a route to."
        yield from _one("gauge", "mycelium_daemon_routes", about, {}, len(daemon.routes))


def _of_calls(calls: Calls) -> Iterator[str]:
    number = sorted(calls.number.copy().items())
    about = "Calls of the plugin, by verb and error code, 0 for none."
    samples = [({"verb": verb, "code": str(code)}, count) for (verb, code), count in number]
    yield from _each("counter", "mycelium_cni_calls_total", about, samples)
    about = "What calls took, without the start of their process."
    took = calls.seconds.copy()
    yield from _each("counter", "mycelium_cni_call_seconds_total", about, _by("verb", took))


Sample = tuple[Mapping[str, str], float]  # labels, value


def _by(label: str, values: Mapping[str, float]) -> list[Sample]:
    return [({label: text}, values[text]) for text in sorted(values)]


def _one(kind: str, name: str, about: str, labels: Mapping[str, str], value: int) -> Iterator[str]:
    return _each(kind, name, about, [(labels, value)])


def _each(kind: str, name: str, about: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{shown}}} {value:.15g}" if shown else f"{name} {value:.15g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
