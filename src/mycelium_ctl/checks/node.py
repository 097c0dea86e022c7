# SPDX-License-Identifier: Apache-2.0
"""The node's own facts, by the part of the node that they belong to."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.facts import Address, Fact, Part, Proxy, Route, Switch, Up
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.node import facts, prepare
from mycelium_cni.node.marks import BRIDGE_GROUP
from mycelium_cni.pod import datapath
from mycelium_ctl.checks.finding import Finding, of_error, ok, own, skip
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.expected import Expected, read_guards
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Mark

_NO_ADDRESS = "the interface has no address yet"


def kernel(state: State) -> Finding:
    try:
        datapath.require_alternative_names(state.host)
    except CniError as error:
        return of_error("fail", error)
    return ok(f"Linux {os.uname().release}")


def loopback(state: State) -> Finding:
    """ADD puts the node's address on `lo`; the kernel needs it to reach its own addresses."""
    lo = state.link("lo")
    if lo is not None and not lo.up:
        up = Up(lo.index, "lo", "")
        return Finding(
            "fail", "link lo is down", run=(str(up),), fix=lambda: up.restore(state.host)
        )
    return ok("lo is up")


def ipv6(state: State) -> list[Finding] | Finding:
    if not nodestate.switch("all", "forwarding"):
        return Finding("fail", "this kernel runs without IPv6", "boot without ipv6.disable=1")
    links = ["all", "default", "lo", state.config.interface]
    links += [state.config.bridge_name] if state.bridged else []
    off = [name for name in links if nodestate.switch(name, "disable_ipv6") == "1"]
    wanted = [Switch(sysctl.conf(name, "disable_ipv6"), "0", "") for name in off]
    return [
        Finding(
            "fail",
            f"IPv6 is off: {switch.path.replace('/', '.')} is 1",
            "the daemon's interface lost its address with it: restart the daemon afterwards"
            if name == state.config.interface
            else "",
            run=(str(switch),),
            fix=partial(switch.restore, state.host),
        )
        for name, switch in zip(off, wanted, strict=True)
    ] or ok("IPv6 is on")


def forwarding(state: State) -> Finding:
    if nodestate.switch("all", "forwarding") == "1":
        return ok("on")
    if not state.attachments:
        return _first_pod(state, "off: the first pod switches it on")
    return Finding(
        "fail",
        "off, with pods attached: somebody has reset net.ipv6.conf.all.forwarding",
        run=(own("setup"),),
        fix=_setup(state),
    )


def ra_routes(state: State) -> list[Finding] | Finding:
    risky = prepare.links_at_risk(state.host)
    forwards = nodestate.switch("all", "forwarding") == "1"
    when = "at its next change of forwarding" if forwards else "when forwarding is switched on"
    found = []
    for name in risky:
        switch = Switch(sysctl.conf(name, "accept_ra"), "2", "")
        found.append(
            Finding(
                "fail" if forwards else "warn",
                f"{name} has routes from router advertisements and accept_ra=1: lost {when}",
                run=(str(switch),),
                fix=partial(switch.restore, state.host),
            )
        )
    return found or ok("no route that forwarding could remove")


def bridge(state: State) -> list[Finding] | Finding:
    name, link = state.config.bridge_name, state.bridge
    if not state.bridged:
        return skip("routed mode needs none")
    bridged = [one for one in state.attachments if one.bridged]
    if link is None:
        if not bridged:
            return _first_pod(state, f"there is no {name}: the first pod makes it")
        return Finding(
            "fail",
            f"bridge {name} is missing, and pods of this node need it",
            run=(own("setup"),),
            fix=_setup(state),
        )
    if link.kind != "bridge":
        return Finding(
            "fail",
            f"{name} is {link.kind or 'hardware'}, not a bridge",
            'rename it, or set "bridge" in the network configuration to another name',
        )
    if waiting := _spanning_tree(state) or _isolated(state):
        return waiting
    # On somebody else's bridge, `setup` makes what pods of older versions need.
    wanted = _of_bridge if link.group == BRIDGE_GROUP else _of_any_bridge
    return _missing(state, wanted, f"{name} is complete")


def _spanning_tree(state: State) -> Finding | None:
    """Spanning tree can block a port for half a minute, or forever."""
    link = state.bridge
    waiting = [
        one.link.name
        for one in state.attachments
        if link and one.link.master == link.index and one.link.port_state in _WAITING
    ]
    if not waiting or link is None or not link.up:
        return None
    off = [f"ip link set dev {quoted(link.name)} type bridge stp_state 0"]
    # A port waits out its delay unless it is set down and up.
    again = [f"ip link set dev {quoted(name)} {state}" for name in waiting for state in _AGAIN]
    return Finding(
        "fail",
        f"spanning tree on {link.name} keeps {waiting[0]} waiting ({len(waiting)} in all)",
        "pods are not bridges and do not need it",
        run=(*off, *again),
    )


def _isolated(state: State) -> Finding | None:
    """Isolated ports of a bridge, or ports that are switched off, do not reach each other."""
    bridge = state.bridge
    if bridge is None or not bridge.up:
        return None
    ports = [one.link for one in state.attachments if one.link.master == bridge.index]
    off = [link for link in ports if link.up and link.carrier and not link.port_state]
    apart = [link for link in ports if link.isolated]
    if not off and len(apart) < 2:
        return None
    state_words = f"state {nl.BR_STATE_FORWARDING}"
    lines = [f"bridge link set dev {quoted(link.name)} {state_words}" for link in off]
    lines += [f"bridge link set dev {quoted(link.name)} isolated off" for link in apart]
    names = ", ".join(link.name for link in off or apart)
    what = "are switched off" if off else "do not reach each other, being isolated"
    return Finding(
        "fail",
        f"ports {what}: {names}",
        run=tuple(lines),
    )


_AGAIN = ("down", "up")
_WAITING = (1, 2, 4)  # linux/if_bridge.h: BR_STATE_LISTENING, _LEARNING, _BLOCKING


def standing(state: State) -> list[Finding] | Finding:
    return _missing(state, _stands, "without the daemon, the node refuses overlay packets")


def _of_bridge(fact: Fact) -> bool:
    of_link = isinstance(fact, Part) and fact.index != facts.LOOPBACK
    of_switch = isinstance(fact, Switch) and not _routing(fact)
    return of_link or of_switch or isinstance(fact, facts.Bridge)


def _of_any_bridge(fact: Fact) -> bool:
    return _of_bridge(fact) and not _answers(fact)


def _answers(fact: Fact) -> bool:
    """What pods of other plugins need of a bridge, and ours do not; 0.1.0 made a bridge without."""
    return isinstance(fact, Proxy) or (isinstance(fact, Switch) and "proxy" in fact.path)


def _stands(fact: Fact) -> bool:
    return isinstance(fact, Route) or (isinstance(fact, Address) and fact.index == facts.LOOPBACK)


def _routing(fact: Fact) -> bool:
    """These switches have checks of their own."""
    return isinstance(fact, Switch) and fact.path.endswith(("/forwarding", "/accept_ra"))


def _missing(
    state: State, wanted: Callable[[Fact], bool], all_there: str
) -> list[Finding] | Finding:
    """The node's facts of one kind that are missing or stale.

    A node that no pod has used yet is not broken: the first pod makes them all.
    """
    if state.address is None:
        return skip(_NO_ADDRESS)
    try:
        expected = Expected(state)
    except CniError as error:
        return of_error("skip", error)
    except ToolError as error:
        return Finding("fail", str(error), own("setup"))
    missing = [fact for fact in expected.missing if wanted(fact)]
    stale = [fact for fact in expected.stale if wanted(fact)]
    found = [
        Finding("warn", f"stale: {fact.label} ({fact.why})", run=(fact.removal,), fix=_setup(state))
        for fact in stale
    ]
    found += [
        Finding(
            "fail" if state.attachments and fact.needed and not _answers(fact) else "warn",
            f"missing: {fact.label} ({fact.why})",
            run=(str(fact),),
            fix=_setup(state),
        )
        for fact in missing
    ]
    return found or ok(all_there)


def guard(state: State) -> Finding:
    """Judged as STATUS does: before the node is prepared there is nothing to guard."""
    node = state.node
    if node is None:
        return skip(_NO_ADDRESS)
    all_ = read_guards(state, node)
    faults = ((each.fault(state.seen), each.wanted.policy) for each in all_)
    try:
        wrong, policy = next((each for each in faults if each[0]), ("", state.config.policy))
    except CniError as error:
        required = any(each.wanted.policy.required for each in all_)
        return of_error("fail" if required else "warn", error)
    if not wrong:
        if state.attachments and not all(each.holds(state.seen) for each in all_):
            return Finding(
                "warn",
                "up, but its rules differ from the configuration: the next ADD loads them",
                run=(own("setup"),),
                fix=_setup(state),
            )
        return ok(f"up, ingress {policy.ingress}")
    prepared = (facts.LOOPBACK, node.address) in state.seen.addresses
    if not prepared and not state.attachments:
        return _first_pod(state, "not up: the first pod loads it")
    mark: Mark = "fail" if policy.required else "warn"
    return Finding(mark, f"down: {wrong}", run=(own("setup"),), fix=_setup(state))


def mtu(state: State) -> list[Finding] | Finding:
    link = state.interface
    if link is None:
        return skip("there is no interface yet")
    found = [
        Finding(
            "warn",
            f"{one.who} has {one.link.mtu} bytes, {link.name} carries {link.mtu}",
            f"remove mtu from the network configuration, or set {link.mtu}; then delete the pod",
        )
        for one in state.attachments
        if one.link.mtu > link.mtu
    ]
    return found or ok(f"{link.mtu} bytes, and no pod has more")


def _first_pod(state: State, found: str) -> Finding:
    return Finding("warn", found, run=(own("setup"),), fix=_setup(state))


def _setup(state: State) -> Callable[[], object]:
    return lambda: Expected(State(state.where)).make()
