# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a node and its pods. A check reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from mycelium_ctl.checks import (
    daemon,
    limits,
    managers,
    node,
    packetfilter,
    pods,
    reach,
    routing,
    runtime,
    services,
)
from mycelium_ctl.checks.finding import Check, Finding
from mycelium_ctl.errors import refused
from mycelium_ctl.node.state import State

CHECKS: Final = (
    Check("daemon", "it makes the interface and carries every packet", daemon.daemon, needed=True),
    Check("interface", "its address tells the node's subnet", daemon.interface, needed=True),
    Check("api", "optional: it lists peers and routes", daemon.api),
    Check("peers", "without a peer there is no overlay", daemon.peers),
    Check("api-exposed", "the API asks nobody for a password", daemon.api_exposed),
    Check(
        *("identity", "nobody reaches pods whose subnet is not the daemon's", daemon.identity),
        needed=True,
    ),
    Check("subnet", "the overlay delivers only to the daemon's own subnet", daemon.stranded),
    Check("kernel", "a pod's address is its link's other name", node.kernel, needed=True),
    Check("loopback", "the node's own address is on it", node.loopback, needed=True),
    Check("ipv6", "the overlay is IPv6, and the daemon needs it", node.ipv6, needed=True),
    Check("forwarding", "without it packets of pods are dropped in silence", node.forwarding),
    Check("ra-routes", "the node would lose its default route", node.ra_routes),
    Check("mtu", "larger packets are lost: TLS and uploads hang", node.mtu),
    Check("bridge", "pods are its ports, and their gateway is its address", node.bridge),
    Check("bridge-ports", "the kernel refuses further ports", limits.bridge_ports, needed=True),
    Check("standing", "while the daemon is away packets would leave in clear", node.standing),
    Check("guard", "peers and pods could send what is not theirs to send", node.guard),
    Check(
        "overlay-routes",
        "other routes take packets for the overlay elsewhere",
        routing.overlay_routes,
    ),
    Check("pod-ways", "packets for a pod must be routed to its link", routing.pod_ways),
    Check("pod-routes", "a daemon in a pod cuts the pod off from the overlay", pods.pod_routes),
    Check("pods", "ADD made it, and somebody has removed it", pods.pods),
    Check("route-limit", "then all pods get 'network unreachable' at once", limits.route_limit),
    Check(
        *("neighbour-limit", "then new connections fail with 'no buffer space'"),
        limits.neighbour_limit,
    ),
    Check("firewall", "pods are reached by forwarding only", packetfilter.firewall),
    Check("managers", "they remove what they do not know when they restart", managers.managers),
    Check("conf", "the runtime takes the first file of its directory", runtime.conf, needed=True),
    Check("conf-valid", "one broken file keeps containerd from loading any", runtime.conf_valid),
    Check("plugin", "the runtime executes it for every pod", runtime.plugin, needed=True),
    Check("chain", "one missing executable, and no pod starts", runtime.chain, needed=True),
    Check("services", "programs in pods find the API and each other by them", services.reachable),
    Check("reach", "tries with real packets", reach.reach),
)

NAMES: Final = tuple(check.name for check in CHECKS)


def examine(state: State, wanted: Collection[str] = NAMES) -> Iterator[tuple[Check, list[Finding]]]:
    """Run the checks; one that the kernel refuses an answer is skipped, and says so."""
    for check in CHECKS:
        if check.name in wanted:
            try:
                yield check, check.findings(state)
            except OSError as error:
                yield check, [Finding("skip", f"cannot be read: {refused(error)}")]
