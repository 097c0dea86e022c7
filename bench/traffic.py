# SPDX-License-Identifier: Apache-2.0
"""What the guard costs packets: iperf3 between two pods of a node, with our tables and without."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final

from bench.candidates import Candidate, Executables, Pod, ours
from bench.testbed import BenchError, Testbed
from mycelium_cni import guard

_TRACKED: Final = {"ingress": "cluster", "ipMasq": True}
SETUPS: Final[dict[str, dict[str, object]]] = {
    "routed": {},
    "bridge": {"mode": "bridge"},
    "routed, cluster + ipMasq": _TRACKED,
    "bridge, cluster + ipMasq": {"mode": "bridge", **_TRACKED},
}
_DATAGRAM: Final = 64  # bytes: small, so that the packet costs and not its content


@dataclass(frozen=True)
class PodPair:
    """From one pod to another of the same node."""

    source: str
    address: str

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

    def _iperf3(self, testbed: Testbed, *options: str) -> Any:
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
    testbed: Testbed, programs: Executables, pods: Sequence[Pod]
) -> Iterator[dict[str, tuple[PodPair, PodPair]]]:
    """For each setup a pair with the guard and one without, on nodes otherwise alike.
    Takes four pods a setup."""
    remaining = iter(pods)
    with ExitStack() as stack:
        found = {}
        for number, (name, configuration) in enumerate(SETUPS.items()):
            plugin = ours(f"traffic {number}", programs.static, **configuration)
            with_guard, without = (
                stack.enter_context(
                    _pair(
                        testbed, plugin, f"traffic-{number}-{guarded}", remaining, guarded=guarded
                    )
                )
                for guarded in (True, False)
            )
            found[name] = (with_guard, without)
        yield found


@contextmanager
def _pair(
    testbed: Testbed, plugin: Candidate, name: str, pods: Iterator[Pod], *, guarded: bool
) -> Iterator[PodPair]:
    node = testbed.node(name)
    source, target = next(pods), next(pods)
    results = [
        testbed.run([plugin.call(testbed, "ADD", node, pod)])[0].document
        for pod in (source, target)
    ]
    if not guarded:
        with testbed.inside(node):
            guard.remove()
    with testbed.inside(target.netns):
        server = subprocess.Popen(
            ["iperf3", "-s", "--forceflush"], stdout=subprocess.PIPE, text=True
        )
    try:
        assert server.stdout is not None
        while "listening" not in (line := server.stdout.readline()):
            if not line:
                raise BenchError("iperf3 does not listen")
        # It prints a report of every round, and would block if nobody read it.
        Thread(target=server.stdout.read).start()
        yield PodPair(source.netns, results[1]["ips"][0]["address"].partition("/")[0])
    finally:
        server.kill()
        server.wait()
