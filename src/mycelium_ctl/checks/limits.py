# SPDX-License-Identifier: Apache-2.0
"""Limits of the kernel that a node with many pods runs into."""

from __future__ import annotations

from typing import Final

from mycelium_cni.kernel import sysctl
from mycelium_ctl.checks.finding import Finding, ok, skip
from mycelium_ctl.node.state import State

BRIDGE_PORTS: Final = 1023  # net/bridge/br_private.h, BR_MAX_PORTS, less port 0
NEARLY: Final = 0.8  # of a limit


def bridge_ports(state: State) -> Finding:
    link = state.bridge
    if not state.bridged or link is None:
        return skip("routed mode has no such limit")
    ports = sum(one.master == link.index for one in state.links)
    found = f"{ports} of {BRIDGE_PORTS} ports of {link.name} are taken"
    if ports < NEARLY * BRIDGE_PORTS:
        return ok(found)
    advice = 'use "mode": "routed" for new pods, or run fewer on this node (kubelet --max-pods)'
    return Finding("fail" if ports >= BRIDGE_PORTS else "warn", found, advice)


def route_limit(state: State) -> Finding:
    try:
        limit = int(sysctl.get("route/max_size"))
    except (OSError, ValueError):
        return skip("this kernel has no such limit")
    used = len(state.routes)
    if used >= NEARLY * limit:
        return Finding(
            "fail",
            f"{used} of {limit} IPv6 routes are used",
            run=(sysctl.command("route/max_size", "2147483647"),),
            fix=lambda: sysctl.put("route/max_size", "2147483647"),
        )
    return ok(f"{used} of {limit} IPv6 routes")


def neighbour_limit(state: State) -> Finding:
    proc = state.where.root / "proc"
    try:
        limit = int((proc / "sys/net/ipv6/neigh/default/gc_thresh3").read_text())
        used = int((proc / "net/stat/ndisc_cache").read_text().split("\n")[1].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return skip("only the initial network namespace shows it")
    if used >= NEARLY * limit:
        return Finding(
            "fail",
            f"{used} of {limit} IPv6 neighbours are known: the table of all namespaces is full",
            run=(sysctl.command("neigh/default/gc_thresh3", "16384"),),
        )
    return ok(f"{used} of {limit} IPv6 neighbours")
