# SPDX-License-Identifier: Apache-2.0
"""What is measured, and in which order: candidates take turns, so that other load on the machine
affects all of them."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from bench import traffic
from bench.candidates import (
    Candidate,
    Executables,
    Floor,
    Pod,
    bridge_of_grid,
    floor,
    grid,
    ours,
    reference,
)
from bench.testbed import NODE_ADDRESS, BenchError, Call, Done, Testbed
from mycelium_cni import guard
from mycelium_cni.cni.config import Config, Network
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import netns as namespaces
from mycelium_cni.node import subnet

STATIC: Final = "mycelium-cni, static"
PIP: Final = "mycelium-cni, pip"
BRIDGE_MODE: Final = "mycelium-cni, static, bridge mode"
FLOOR: Final = "C floor"
FLOOR_BRIDGE: Final = "C floor, bridge mode"
GRID: Final = "the grid's Go plugin"
BRIDGE: Final = "bridge + host-local"
PTP: Final = "ptp + host-local"
LOOPBACK: Final = "loopback"
KERNEL: Final = "the kernel alone"
_ORDER: Final = (
    *(STATIC, BRIDGE_MODE, PIP, FLOOR, FLOOR_BRIDGE, KERNEL, LOOPBACK, BRIDGE, GRID, PTP),
    *(traffic.UNGUARDED, traffic.TRACKED, traffic.GUARDED, traffic.HOSTS, traffic.PODS),
)

PARALLEL: Final = (1, 4, 16)  # ADDs at a time
_SETTLE_S: Final = 0.06  # the kernel goes on working for 30 ms after a DEL
_PING_WAIT_S: Final = 0.002


@dataclass(frozen=True)
class Size:
    """How much of everything. QUICK only shows that all of it works."""

    rounds: int = 60
    first_rounds: int = 12
    slow_rounds: int = 6  # of ptp, which waits for duplicate address detection
    start_rounds: int = 150
    packet_rounds: int = 20
    burst: int = 100
    burst_repeats: int = 2
    levels: tuple[int, ...] = (1, 10, 250, 1000)
    level_rounds: int = 20
    tool_levels: tuple[int, ...] = (10, 1000)  # of `levels`
    tool_rounds: int = 10
    stale: int = 100
    gc_rounds: int = 5
    # Many short rounds: the medians of five pairs differed by 2 to 5 % between nodes without rules.
    traffic_rounds: int = 100
    traffic_megabytes: int = 500
    traffic_packets: int = 200_000
    packets_every: int = 10
    traffic_s: float = 300.0
    overlay_rounds: int = 20
    overlay_megabytes: int = 100
    stage_s: float = 50.0  # a stage that has taken this long starts no further round


FULL: Final = Size()
QUICK: Final = Size(
    rounds=5,
    first_rounds=2,
    slow_rounds=1,
    start_rounds=10,
    packet_rounds=4,
    burst=8,
    burst_repeats=1,
    levels=(1, 4, 150),  # from 128 on ADD mounts a procfs
    level_rounds=3,
    tool_levels=(4, 150),
    tool_rounds=2,
    stale=12,
    gc_rounds=2,
    traffic_rounds=1,
    traffic_megabytes=50,
    traffic_packets=10_000,
    traffic_s=8,
    overlay_rounds=1,
    overlay_megabytes=5,
    stage_s=8,
)


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one thing."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def p10(self) -> float:
        return self._decile(0)

    @property
    def p90(self) -> float:
        return self._decile(8)

    def _decile(self, index: int) -> float:
        if len(self.values) < 2:
            return self.values[0]
        return quantiles(self.values, n=10, method="inclusive")[index]


# measure → candidate → sample; `bench.report` says in what
Figures = dict[str, dict[str, Sample]]


class Bench:
    """One run. Every stage adds to `figures`."""

    def __init__(
        self, testbed: Testbed, programs: Executables, size: Size, say: Callable[[str], None]
    ) -> None:
        self.testbed: Final = testbed
        self.size: Final = size
        self._say: Final = say
        self._programs: Final = programs
        self._raw: Final[dict[str, dict[str, list[float]]]] = {}
        self._numbers = 0
        self._random: Final = random.Random(4)  # the same order of turns in every run
        folder = programs.reference
        self.static: Final = ours(STATIC, programs.static)
        self.pip: Final = ours(PIP, programs.pip)
        self.bridge: Final = reference("bridge", folder, bridge="cni0", isGateway=True)
        self.ptp: Final = reference("ptp", folder)
        self.loopback: Final = Candidate(
            LOOPBACK, [str(folder / "loopback")], {"type": "loopback"}, str(folder)
        )
        self.bridged: Final = ours(BRIDGE_MODE, programs.static, mode="bridge")
        candidates = (self.static, self.pip, self.bridge, self.ptp, self.bridged)
        self.nodes: Final = {
            each.name: testbed.node(f"node{number}") for number, each in enumerate(candidates)
        }
        for candidate in candidates:
            self._first_pod(candidate, self.nodes[candidate.name])
        others = [self.bridge]
        if programs.grid and programs.daemon:
            theirs = grid(GRID, testbed, programs.grid, programs.daemon)
            self.nodes[GRID] = testbed.node("grid")
            bridge_of_grid(testbed, self.nodes[GRID])
            self._first_pod(theirs, self.nodes[GRID])
            others.append(theirs)
        self.floor: Final = self._floor(self.static, self.nodes[STATIC])
        beneath_bridged = self._floor(self.bridged, self.nodes[BRIDGE_MODE])
        self.nodes[FLOOR], self.nodes[FLOOR_BRIDGE] = self.nodes[STATIC], self.nodes[BRIDGE_MODE]
        self.attaching: Final = [
            *(self.static, self.pip, self.bridged, self.floor, beneath_bridged, *others)
        ]

    @property
    def figures(self) -> Figures:
        return {
            measure: {name: Sample(by_candidate[name]) for name in _ORDER if name in by_candidate}
            for measure, by_candidate in self._raw.items()
        }

    def all(self) -> Figures:
        for stage in (
            self.first_pods,
            self.attach_and_detach,
            self.start_up,
            self.first_packet,
            self.bursts,
            self.stale,
            self.growth,
            self.traffic,
            self.overlay,
        ):
            start = time.monotonic()
            stage()
            self._say(f"{stage.__name__.replace('_', ' ')}: {time.monotonic() - start:.0f} s")
        return self.figures

    # Stages

    def first_pods(self) -> None:
        """ADD on nodes that have had no pod; of other candidates one is enough, and is measured
        above. All nodes go at the end: after one in bridge mode, ADD would wait for the kernel."""
        nodes: list[str] = []
        for turn in self._turns(self.size.first_rounds):
            for number, candidate in enumerate((self.static, self.bridged)):
                nodes.append(self.testbed.node(f"first-{turn}-{number}"))
                self._first_pod(candidate, nodes[-1])
        self.testbed.remove(nodes)

    def attach_and_detach(self) -> None:
        """ADD and DEL of a pod, each for a new and empty namespace."""
        every = max(self.size.rounds // self.size.slow_rounds, 1)
        for turn in self._turns(self.size.rounds):
            slow = [self.ptp] if turn % every == 0 else []
            candidates = [*self.attaching, *slow]
            self._random.shuffle(candidates)
            pods = self._pods(f"turn{turn}", len(candidates))
            for candidate, pod in zip(candidates, pods, strict=True):
                node = self.nodes[candidate.name]
                done = self.testbed.run([candidate.call(self.testbed, "ADD", node, pod)])[0]
                self._note("ADD", candidate, done.ms)
                self._note("peak memory of ADD", candidate, done.peak_kib / 1024)
                done = self.testbed.run([candidate.call(self.testbed, "DEL", node, pod)])[0]
                self._note("DEL", candidate, done.ms)
                time.sleep(_SETTLE_S)
            self.testbed.remove([pod.netns for pod in pods])

    def start_up(self) -> None:
        """VERSION, which is little more than starting, and STATUS; and how large the files are."""
        for candidate in (self.loopback, self.static, self.bridge):
            self._note("size", candidate, Path(candidate.argv[0]).stat().st_size / 1e6)
        for _ in self._turns(self.size.start_rounds):
            for candidate in (self.loopback, self.static, self.bridge, self.pip):
                node = self.nodes.get(candidate.name, self.nodes[STATIC])
                done = self.testbed.run([candidate.call(self.testbed, "VERSION", node)])[0]
                self._note("VERSION", candidate, done.ms)
                self._note("peak memory of VERSION", candidate, done.peak_kib / 1024)
            for candidate in (self.static, self.bridge, self.pip):
                node = self.nodes[candidate.name]
                done = self.testbed.run([candidate.call(self.testbed, "STATUS", node)])[0]
                self._note("STATUS", candidate, done.ms)

    def first_packet(self) -> None:
        """From ADD's end to the first answer: in turns node to pod and pod to node."""
        for turn in self._turns(self.size.packet_rounds):
            slow = [self.ptp] if turn % 4 == 0 and turn // 4 < self.size.slow_rounds else []
            for candidate in (self.static, self.bridge, *slow):
                node = self.nodes[candidate.name]
                pod = self._pods(f"packet{turn}-{candidate.name.split()[0]}", 1)[0]
                with self.testbed.inside(node if turn % 2 == 0 else pod.netns):
                    prober = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
                with prober:
                    done = self.testbed.run([candidate.call(self.testbed, "ADD", node, pod)])[0]
                    ip = done.document["ips"][0]
                    target = ip["address"].partition("/")[0]
                    if turn % 2:
                        target = NODE_ADDRESS if candidate is self.static else ip["gateway"]
                    answered = _first_answer(prober, target)
                    self._note("first packet", candidate, (answered - done.end_ns) / 1e6)
                self.testbed.run([candidate.call(self.testbed, "DEL", node, pod)])
                time.sleep(_SETTLE_S)
                self.testbed.remove([pod.netns])

    def bursts(self) -> None:
        """Many ADDs, some of them at a time."""
        count = self.size.burst
        for repeat in self._turns(self.size.burst_repeats):
            for parallel in PARALLEL:
                for candidate in (self.static, self.pip, self.floor, self.bridge):
                    node = self.nodes[candidate.name]
                    pods = self._pods(f"b{repeat}-{parallel}-{candidate.name.split()[0]}", count)
                    calls = [candidate.call(self.testbed, "ADD", node, pod) for pod in pods]
                    done = self.testbed.run(calls, parallel=parallel)
                    wall = max(d.end_ns for d in done) - min(d.start_ns for d in done)
                    self._note(f"{count} ADDs, {parallel} at a time", candidate, wall / 1e6)
                    for each in done:
                        self._note(f"one ADD of {parallel} at a time", candidate, each.ms)
                    self._detach(candidate, node, pods)

    def stale(self) -> None:
        """GC of many attachments; and for comparison one request to the kernel that deletes as many
        links."""
        count, node = self.size.stale, self.nodes[STATIC]
        for turn in self._turns(self.size.gc_rounds):
            pods = self._pods(f"stale{turn}", count)
            with self.testbed.inside(node):
                self._note(f"GC of {count} stale", KERNEL, _delete_at_once(pods))
            time.sleep(_SETTLE_S)
            self._attach(self.static, node, pods)
            time.sleep(_SETTLE_S)
            valid: dict[str, object] = {"cni.dev/valid-attachments": []}
            call = self.static.call(self.testbed, "GC", node, **valid)
            done = self.testbed.run([call])[0]
            self._note(f"GC of {count} stale", self.static, done.ms)
            left = self._links_left(node)
            if left:
                raise BenchError(f"GC left {left} links")
            time.sleep(_SETTLE_S)
            self.testbed.remove([pod.netns for pod in pods])

    def growth(self) -> None:
        """ADD of the n-th pod of a node, for several n in turns: nodes with n-1 pods, side by
        side, so that all are measured in the same state of the machine. Some only of the first
        and of the last, among them the floors, each recorded on the node where it is measured."""
        levels = self.size.levels
        pods = {level: self._pods(f"level{level}", level - 1) for level in levels}
        nodes = {level: self._full("routed", self.static, pods[level]) for level in levels}
        measured = [(self.static, level, nodes[level]) for level in levels]
        ends = (levels[0], levels[-1])
        for level in ends:
            measured.append((self.bridge, level, self._full("bridge", self.bridge, pods[level])))
        time.sleep(1)
        self._ask_the_tool({n: nodes[n] for n in self.size.tool_levels})
        for level in ends:
            bridged = self._full("bridged", self.bridged, pods[level])
            beneath = self._floor(self.static, nodes[level])
            beneath_bridged = self._floor(self.bridged, bridged)
            measured += [
                (self.bridged, level, bridged),
                (beneath, level, nodes[level]),
                (beneath_bridged, level, bridged),
            ]
        time.sleep(1)
        measured.sort(key=itemgetter(1))
        for turn in self._turns(self.size.level_rounds):
            attached = self._pods(f"nth-{turn}", len(measured))
            for pod, (candidate, level, node) in zip(attached, measured, strict=True):
                for verb in ("ADD", "DEL"):
                    done = self.testbed.run([candidate.call(self.testbed, verb, node, pod)])[0]
                    self._note(f"{verb} of pod {level}", candidate, done.ms)
                time.sleep(_SETTLE_S)
            self.testbed.remove([pod.netns for pod in attached])

    def traffic(self) -> None:
        """TCP, small packets and errors between two pods, with the guard and without, and with
        connection tracking alone; and what the guard costs an ADD when its rules are loaded."""
        for candidate in (self.static, self.bridged):
            for took_ms in self._asked_of_guard(candidate):
                self._note("the guard's part of an ADD", candidate, took_ms)
        with traffic.pairs(self.testbed, self._programs, self._pods) as pairs:
            for turn in self._turns(self.size.traffic_rounds, self.size.traffic_s):
                for setup, by_rules in pairs.items():
                    for name, pair in list(by_rules.items())[:: 1 if turn % 2 else -1]:
                        gbits = pair.gbits(self.testbed, self.size.traffic_megabytes)
                        self._note(f"TCP, {setup}", name, gbits)
                        if turn % self.size.packets_every == 0:
                            packet = pair.packet_us(self.testbed, self.size.traffic_packets)
                            self._note(f"packet, {setup}", name, packet)
                            error = pair.error_us(self.testbed)
                            self._note(f"ICMPv6 error, {setup}", name, error)

    def overlay(self) -> None:
        """TCP over the overlay of the real daemon, from pod to pod and from host to host."""
        if self._programs.daemon is None:
            return
        with traffic.overlay_pairs(self.testbed, self._programs) as pairs:
            for turn in self._turns(self.size.overlay_rounds):
                for name, pair in list(pairs.items())[:: 1 if turn % 2 else -1]:
                    gbits = pair.gbits(self.testbed, self.size.overlay_megabytes)
                    self._note("TCP over the overlay", name, gbits)

    # Parts of the stages

    def _turns(self, most: int, limit_s: float = 0) -> Iterator[int]:
        """Numbers of rounds, until the stage has had its time; at least one."""
        end = time.monotonic() + (limit_s or self.size.stage_s)
        for turn in range(most):
            yield turn
            if time.monotonic() > end:
                return

    def _note(self, measure: str, candidate: Candidate | str, value: float) -> None:
        name = candidate if isinstance(candidate, str) else candidate.name
        self._raw.setdefault(measure, {}).setdefault(name, []).append(value)

    def _pods(self, name: str, count: int) -> list[Pod]:
        name = name.replace(",", "").replace(" ", "-")
        first, self._numbers = self._numbers, self._numbers + count
        paths = self.testbed.pods(name, count)
        return [Pod(first + number, path) for number, path in enumerate(paths)]

    def _first_pod(self, candidate: Candidate, node: str) -> None:
        self._note("the node's first ADD", candidate, self._warm_up(candidate, node).ms)

    def _warm_up(self, candidate: Candidate, node: str) -> Done:
        """What only the first pod of a node needs: forwarding, the bridge, host-local's folder.
        Returns its ADD."""
        pod = self._pods(f"warm-{node.rpartition('/')[2]}", 1)[0]
        done = self.testbed.run([candidate.call(self.testbed, "ADD", node, pod)])[0]
        self.testbed.run([candidate.call(self.testbed, "DEL", node, pod)])
        time.sleep(_SETTLE_S)
        self.testbed.remove([pod.netns])
        return done

    def _floor(self, plugin: Candidate, node: str) -> Floor:
        """The floor beneath a plugin on this node, as it is now."""
        pod = self._pods(f"recorded-{self._numbers}", 1)[0]
        return floor(self.testbed, self._programs.floor, plugin, node, pod)

    def _full(self, kind: str, candidate: Candidate, pods: Sequence[Pod]) -> str:
        """A new node with these pods. They may be another node's too: a further interface does no
        harm."""
        node = self.testbed.node(f"{kind}-with-{len(pods)}")
        self._warm_up(candidate, node)
        self._attach(candidate, node, pods, CNI_IFNAME=f"{kind}0")
        return node

    def _attach(
        self, candidate: Candidate, node: str, pods: Sequence[Pod], **environment: str
    ) -> None:
        calls = [candidate.call(self.testbed, "ADD", node, pod) for pod in pods]
        for call in calls:
            call.environment.update(environment)
        self.testbed.run(calls, parallel=2)

    def _detach(self, candidate: Candidate, node: str, pods: Sequence[Pod]) -> None:
        calls = [candidate.call(self.testbed, "DEL", node, pod) for pod in pods]
        self.testbed.run(calls, parallel=8)
        time.sleep(3 * _SETTLE_S)
        self.testbed.remove([pod.netns for pod in pods])

    def _ask_the_tool(self, nodes: dict[int, str]) -> None:
        """The commands that read all of a node, with that many pods on it."""
        pods = {level: self._pods(f"tool-{level}", 1) for level in nodes}
        for level, node in nodes.items():
            self._attach(self.static, node, pods[level])
        empty = self.testbed.file("empty", b"")
        for _ in self._turns(self.size.tool_rounds):
            for level, node in nodes.items():
                for command in ("list", "status", "doctor"):
                    argv = [*self.static.argv, command]
                    call = Call(node, argv, {"PATH": os.environ["PATH"]}, empty)
                    # Without a daemon and a configuration none of them says that all is well.
                    done = self.testbed.run([call], check=False)[0]
                    self._note(f"{command} with {level} pods", self.static, done.ms)
        for level, node in nodes.items():
            self._detach(self.static, node, pods[level])

    def _asked_of_guard(self, candidate: Candidate) -> list[float]:
        node = self.nodes[candidate.name]
        network = Network(candidate.call(self.testbed, "ADD", node).stdin.read_bytes())
        config = Config(network)
        took = []
        with self.testbed.inside(node), nl.Socket() as host:
            wanted = guard.Wanted(network.name, config, subnet.find(host, config))
            for _ in range(self.size.start_rounds):
                start = time.perf_counter()
                changed = guard.ensure(host, wanted)
                took.append((time.perf_counter() - start) * 1000)
                if changed:
                    raise BenchError("the guard had to be loaded where it should have been")
        return took

    def _links_left(self, node: str) -> int:
        with self.testbed.inside(node):
            kernel = nl.Socket()
        veth: Any = (nl.IFLA_LINKINFO, [(nl.IFLA_INFO_KIND, b"veth")])
        left = kernel.dump(nl.link(nl.RTM_GETLINK, "list links", veth))
        kernel.close()
        return len(left)


def _delete_at_once(pods: Sequence[Pod]) -> float:
    """Make a pair of links to each pod and delete them with one request: its milliseconds."""
    kernel = nl.Socket()
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    group: Any = (nl.IFLA_GROUP, 0x7FFFFFFF)
    for number, pod in enumerate(pods):
        there = namespaces.open_netns(pod.netns)
        ends: Any = ((nl.IFLA_IFNAME, "eth0"), (nl.IFLA_NET_NS_FD, there))
        peer = nl.IFINFOMSG.pack(nl.AF_UNSPEC, 0, 0, 0, 0) + nl.encode(ends)
        kind: Any = (
            nl.IFLA_LINKINFO,
            [(nl.IFLA_INFO_KIND, b"veth"), (nl.IFLA_INFO_DATA, [(nl.VETH_INFO_PEER, peer)])],
        )
        name: Any = (nl.IFLA_IFNAME, f"stale{number}")
        kernel.request(nl.link(nl.RTM_NEWLINK, "make a pair", name, group, kind, flags=flags))
        os.close(there)
    start = time.perf_counter()
    kernel.request(nl.link(nl.RTM_DELLINK, "delete all", group))
    took = time.perf_counter() - start
    kernel.close()
    return took * 1000


def _first_answer(prober: socket.socket, target: str) -> int:
    """Send echo requests until one is answered: the time of the answer (CLOCK_MONOTONIC, ns)."""
    prober.settimeout(_PING_WAIT_S)
    for sequence in range(2000):
        # Type, code, checksum (the kernel's part), identifier, sequence number.
        request = bytes((128, 0, 0, 0, 0xBE, 0x7C)) + sequence.to_bytes(2, "big")
        try:
            prober.sendto(request, (target, 0))
            while prober.recv(1500)[:1] != b"\x81":
                pass
        except OSError:  # no answer yet, or no route yet
            continue
        return time.monotonic_ns()
    raise BenchError(f"{target} does not answer")
