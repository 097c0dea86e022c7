# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a node and its pods. A check reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
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
    Check("interface", "its address gives the node's subnet", daemon.interface, needed=True),
    Check("api", "optional: it lists peers and routes", daemon.api),
    Check("peers", "without a peer there is no overlay", daemon.peers),
    Check("api-exposed", "the API needs no password", daemon.api_exposed),
    Check(
        *("identity", "nobody reaches pods whose subnet is not the daemon's", daemon.identity),
        needed=True,
    ),
    Check("subnet", "the overlay delivers only to the daemon's own subnet", daemon.stranded),
    Check("kernel", "a pod's address is its link's alternative name", node.kernel, needed=True),
    Check("loopback", "the node's own address is on it", node.loopback, needed=True),
    Check("ipv6", "the overlay is IPv6, and the daemon needs it", node.ipv6, needed=True),
    Check("forwarding", "without it pods' packets are dropped silently", node.forwarding),
    Check("ra-routes", "the node would lose its default route", node.ra_routes),
    Check("mtu", "larger packets are lost: TLS and uploads hang", node.mtu),
    Check("bridge", "pods are its ports, and their gateway is its address", node.bridge),
    Check("bridge-ports", "the kernel refuses further ports", limits.bridge_ports, needed=True),
    Check("standing", "while the daemon is down packets would leave unencrypted", node.standing),
    Check("guard", "without it peers and pods can send forged packets", node.guard),
    Check(
        "overlay-routes",
        "other routes take packets for the overlay elsewhere",
        routing.overlay_routes,
    ),
    Check("pod-ways", "packets for a pod must be routed to its link", routing.pod_ways),
    Check("pod-routes", "a daemon in a pod cuts the pod off from the overlay", pods.pod_routes),
    Check("pods", "what ADD made may have been removed", pods.pods),
    Check(
        "route-limit", "at the limit all pods get 'network unreachable' at once", limits.route_limit
    ),
    Check(
        *("neighbour-limit", "at the limit new connections fail with 'no buffer space'"),
        limits.neighbour_limit,
    ),
    Check("firewall", "other programs' rules can drop pods' packets", packetfilter.firewall),
    Check("managers", "on restart they remove what they do not know", managers.managers),
    Check("conf", "the runtime takes the first file of its directory", runtime.conf, needed=True),
    Check("conf-valid", "one broken file keeps containerd from loading any", runtime.conf_valid),
    Check("plugin", "the runtime executes it for every pod", runtime.plugin, needed=True),
    Check("chain", "if one executable is missing, no pod starts", runtime.chain, needed=True),
    Check("services", "programs in pods find the API and each other by them", services.reachable),
    Check("reach", "sends real packets", reach.reach),
)

NAMES: Final = tuple(check.name for check in CHECKS)
# Where there are many pods, the looks of these begin before the first check.
_LOOKS: Final = {"pod-routes", "pods"}


def examine(state: State, wanted: Collection[str] = NAMES) -> Iterator[tuple[Check, list[Finding]]]:
    """Run the checks. One that raises OSError is reported as skipped."""
    with ExitStack() as stack:
        if not _LOOKS.isdisjoint(wanted):
            with suppress(OSError):  # then these checks report it
                stack.callback(pods.look_into_pods(state).close)
        for check in CHECKS:
            if check.name in wanted:
                try:
                    yield check, check.findings(state)
                except OSError as error:
                    yield check, [Finding("skip", f"cannot be read: {refused(error)}")]
