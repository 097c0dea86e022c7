# SPDX-License-Identifier: Apache-2.0
"""What the guard costs packets: iperf3 between two pods of a node, with our tables, without, and
with nothing but the connection tracking that some of them need."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Semaphore, Thread
from typing import IO, Any, Final

from bench.candidates import Candidate, Executables, Pod, ours
from bench.testbed import BenchError, Testbed
from mycelium_cni import guard
from mycelium_cni.kernel import nftables as nf
from mycelium_lab.lab import Lab, Namespace

PODS: Final = "pod to pod"
HOSTS: Final = "host to host"
UNGUARDED: Final = "without the guard"
TRACKED: Final = "connection tracking alone"
GUARDED: Final = "with the guard"
_TRACKING: Final = {"ingress": "cluster", "ipMasq": True}
SETUPS: Final[dict[str, dict[str, object]]] = {
    "routed": {},
    "bridge": {"mode": "bridge"},
    "routed, cluster + ipMasq": _TRACKING,
    "bridge, cluster + ipMasq": {"mode": "bridge", **_TRACKING},
}
_DATAGRAM: Final = 64  # bytes: small, so that the packet costs and not its content
_ERRORS: Final = 100  # fewer than the guard lets a pod send at once
_UNREACHABLE: Final = bytes((1, 4)) + bytes(6)  # type, code, checksum (the kernel's part), unused


@dataclass(frozen=True)
class Pair:
    """From one network namespace to another."""

    source: str
    address: str
    listening: Semaphore  # of the server, which opens a new socket after each test

    def gbits(self, testbed: Testbed, megabytes: int) -> float:
        """TCP throughput, in Gbit/s."""
        sums = self._iperf3(testbed, "-n", f"{megabytes}M")
        return float(sums["sum_received"]["bits_per_second"]) / 1e9

    def packet_us(self, testbed: Testbed, count: int) -> float:
        """The time that one UDP datagram takes its sender, all the way to the other pod: on one
        CPU the kernel delivers it before it takes the next. In microseconds."""
        wanted = ("-n", str(count * _DATAGRAM), "-u", "-b", "0", "-l", str(_DATAGRAM), "-A", "0,1")
        total = self._iperf3(testbed, *wanted)["sum"]
        return float(total["seconds"]) / int(total["packets"]) * 1e6

    def error_us(self, testbed: Testbed) -> float:
        """The same of an ICMPv6 error about a packet that the other pod might have sent, in
        microseconds: what the guard judges most closely, and limits."""
        with testbed.inside(self.source):
            sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        with sender:
            sender.connect((self.address, 0))
            own = socket.inet_pton(socket.AF_INET6, sender.getsockname()[0])
            there = socket.inet_pton(socket.AF_INET6, self.address)
            datagram = bytes((0, 7, 0, 7, 0, 8, 0, 0))
            quoted = bytes((0x60, 0, 0, 0, 0, 8, 17, 64)) + there + own + datagram
            start = time.perf_counter()
            for _ in range(_ERRORS):
                sender.send(_UNREACHABLE + quoted)
            return (time.perf_counter() - start) / _ERRORS * 1e6

    def _iperf3(self, testbed: Testbed, *options: str) -> Any:
        if not self.listening.acquire(timeout=30):
            raise BenchError("iperf3 does not listen")
        with testbed.inside(self.source):
            client = subprocess.Popen(
                ["iperf3", "-c", self.address, "-J", *options], stdout=subprocess.PIPE, text=True
            )
        document = json.loads(client.communicate()[0])
        if "error" in document:
            raise BenchError(f"iperf3: {document['error']}")
        return document["end"]


@contextmanager
def pairs(
    testbed: Testbed, programs: Executables, make_pods: Callable[[str, int], Sequence[Pod]]
) -> Iterator[dict[str, dict[str, Pair]]]:
    """For each setup a pair with the guard, one without, and, where the guard tracks connections,
    one where only the kernel does; on nodes otherwise alike."""
    with ExitStack() as stack:
        found: dict[str, dict[str, Pair]] = {}
        for number, (setup, configuration) in enumerate(SETUPS.items()):
            plugin = ours(f"traffic {number}", programs.static, **configuration)
            tracked = (TRACKED,) if configuration.items() >= _TRACKING.items() else ()
            found[setup] = {}
            for place, rules in enumerate((UNGUARDED, *tracked, GUARDED)):
                node = testbed.node(f"traffic-{number}-{place}")
                pair = _pair(testbed, plugin, node, make_pods(f"talk-{number}-{place}", 2), rules)
                found[setup][rules] = stack.enter_context(pair)
        yield found


@contextmanager
def _pair(
    testbed: Testbed, plugin: Candidate, node: str, pods: Sequence[Pod], rules: str
) -> Iterator[Pair]:
    source, target = pods
    results = [
        testbed.run([plugin.call(testbed, "ADD", node, pod)])[0].document
        for pod in (source, target)
    ]
    with testbed.inside(node):
        if rules != GUARDED:
            guard.remove()
        if rules == TRACKED:
            _track()
    address = results[1]["ips"][0]["address"].partition("/")[0]
    with _server(testbed, target.netns) as listening:
        yield Pair(source.netns, address, listening)


def _track() -> None:
    """Have the kernel track connections, and be ready to translate them."""
    table = nf.Table(nf.NFPROTO_INET, "tracking")
    established = nf.mask(nf.host32(nf.CT_ESTABLISHED)), nf.compare(nf.NFT_CMP_NEQ, bytes(4))
    with nf.Socket() as socket:
        socket.commit(
            table.add("bench: what tracking costs"),
            table.chain("nat", *nf.base("nat", nf.NF_INET_POST_ROUTING, 100)),
            table.chain("forward", *nf.base("filter", nf.NF_INET_FORWARD, 0)),
            table.rule("forward", "", nf.ct_state(), *established, nf.verdict(nf.NF_ACCEPT)),
        )


@contextmanager
def overlay_pairs(testbed: Testbed, programs: Executables) -> Iterator[dict[str, Pair]]:
    """Between two nodes that the real daemon connects: from host to host, and from pod to pod."""
    with Lab([str(programs.static)], overlay="daemon") as lab, ExitStack() as stack:
        nodes = [lab.node("left"), lab.node("right")]
        lab.connect(*nodes)
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "mycelium-cni"}
        pods = [node.pod("pod") for node in nodes]
        results = [
            node.plugin("ADD", conf, pod).succeeded() for node, pod in zip(nodes, pods, strict=True)
        ]
        addresses = str(nodes[1].overlay_address), results[1]["ips"][0]["address"].partition("/")[0]
        found = {}
        sides: list[tuple[str, Sequence[Namespace], str]] = [
            (HOSTS, nodes, addresses[0]),
            (PODS, pods, addresses[1]),
        ]
        for name, (source, target), address in sides:
            listening = stack.enter_context(_server(testbed, target.path))
            found[name] = Pair(source.path, address, listening)
        yield found


@contextmanager
def _server(testbed: Testbed, netns: str) -> Iterator[Semaphore]:
    """Its semaphore counts the times at which it began to listen."""
    listening = Semaphore(0)
    with testbed.inside(netns):
        server = subprocess.Popen(
            ["iperf3", "-s", "--forceflush"], stdout=subprocess.PIPE, text=True
        )

    def read(report: IO[str]) -> None:
        for line in report:
            if "listening" in line:
                listening.release()

    try:
        assert server.stdout is not None
        Thread(target=read, args=(server.stdout,)).start()
        yield listening
    finally:
        server.kill()
        server.wait()
