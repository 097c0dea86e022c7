# SPDX-License-Identifier: Apache-2.0
"""Everything about one attachment: its facts, its routes both ways, and test packets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mycelium_cni.kernel.address import format_address
from mycelium_cni.kernel.facts import Fact
from mycelium_cni.kernel.snapshot import Snapshot
from mycelium_ctl.checks.finding import Finding, ok, skip
from mycelium_ctl.checks.pods import ExpectedPod, astray_in_pod, commands, inside
from mycelium_ctl.checks.routing import ELSEWHERE, Packet, Way, find_ways
from mycelium_ctl.checks.ruleset import read_dropping
from mycelium_ctl.echo import (
    ALL_HOPS,
    ANSWER_S,
    ECHO_REPLY,
    ERRORS,
    HOPS_TO_PEER,
    OVERLAY_S,
    Pinger,
    Question,
)
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.state import Attached, State

Sections = dict[str, list[Finding]]
SMALL: Final = 64  # bytes, headers included
TRIES: Final = 3  # one lost echo proves little (mycelium_ctl.echo)
_SNMP: Final = {
    "Ip6InDiscards": "packets discarded on the way in",
    "Ip6InNoRoutes": "packets without a route",
    "Ip6OutNoRoutes": "packets sent without a route",
    "Ip6InAddrErrors": "packets to a wrong address",
    "Ip6InTooBigErrors": "packets too big for the next link",
    "Ip6OutDiscards": "packets discarded on the way out",
}


def find(state: State, wanted: str) -> list[Attached]:
    """The attachments with this pod name (`shop/web`), container ID or beginning of it, address or
    link."""
    return [
        one
        for one in state.attachments
        if wanted in (one.who, one.pod, one.address, one.link.name, one.container)
        or (len(wanted) >= 6 and one.container.startswith(wanted))
    ]


def examine_pod(state: State, one: Attached) -> Sections:
    """The findings about an attachment, by heading."""
    return {
        "On the node": _on_node(state, one),
        "In the pod": _in_pod(state, one),
        "There and back": list(_ways(state, one)),
        "Packets": list(_packets(state, one)),
    }


def _told(facts: list[Fact], seen: Snapshot) -> list[Finding]:
    return [
        ok(f"{fact.label}: {fact.why}")
        if fact.holds(seen)
        else Finding(
            "fail" if fact.is_missed(seen) else "warn",
            f"missing: {fact.label} ({fact.why})",
            run=commands(fact, seen),
        )
        for fact in facts
    ]


def _on_node(state: State, one: Attached) -> list[Finding]:
    expected = ExpectedPod(state, one)
    return _told([*expected.on_node(), *expected.reach()], state.seen)


def _in_pod(state: State, one: Attached) -> list[Finding]:
    expected = ExpectedPod(state, one)
    with state.look_inside(one) as seen:
        if not seen:
            return [skip("the pod's network namespace cannot be entered from here")]
        told = _told(expected.in_pod(seen), seen)
    return [
        Finding(found.mark, found.found, run=tuple(inside(state, one, line) for line in found.run))
        for found in told
    ]


def _ways(state: State, one: Attached) -> Iterator[Finding]:
    """Where the kernel sends a packet at each hop."""
    interface = state.interface
    names = {link.index: link.name for link in state.links}
    far = format_address(ELSEWHERE[0])
    with state.look_inside(one) as seen:
        if seen:
            [way] = find_ways(seen.socket, Packet(ELSEWHERE[0], one.octets))
            astray = astray_in_pod(ExpectedPod(state, one), seen)
    if seen:
        yield _hop("pod → overlay, in the pod", way, one.link.peer, one.pod_link, far)
        yield from astray
    if interface is None:
        yield skip("pod → overlay, on the node: there is no interface")
        return
    came_in = one.link.master or one.link.index
    way, back = find_ways(
        state.host,
        Packet(ELSEWHERE[0], one.octets, came_in),
        Packet(one.octets, ELSEWHERE[0], interface.index),
    )
    where = names.get(way.link, "?")
    yield _hop("pod → overlay, on the node", way, interface.index, where, far)
    where = names.get(back.link, "?")
    yield _hop("overlay → pod, on the node", back, came_in, where, one.address)


def _hop(what: str, way: Way, wanted: int, name: str, destination: str) -> Finding:
    if way.link == wanted:
        return ok(f"{what}: dev {name}")
    where = way.refusal or f"sent to {name}"
    return Finding("fail", f"{what}: {where}", f"look at `ip -6 route get {destination}` there")


def _packets(state: State, one: Attached) -> Iterator[Finding]:
    """Send echo requests on every path a pod needs; for a lost one, tell which counters grew."""
    own = state.address
    if own is None or not one.octets:
        return
    yield _probe(
        state, None, Question("node → pod", SMALL, "", "", one.address, ALL_HOPS, ANSWER_S)
    )
    with state.inside(one) as entered:
        if not entered:
            yield skip("packets from the pod: its network namespace cannot be entered from here")
            return
    yield _probe(
        state, one, Question("pod → node", SMALL, "", "", format_address(own), ALL_HOPS, ANSWER_S)
    )
    by_bridge = any(a.bridged for a in state.attachments if a.link.nsid == one.link.nsid)
    others = (a for a in state.attachments if a.octets and a.link.nsid != one.link.nsid)
    other = next((a for a in others if a.bridged == by_bridge), None)
    config = state.config_of(other.network) if other else None
    if other is None or (config and config.policy.ingress == "closed"):
        yield skip("pod → pod: no other pod of its mode lets it in")
    else:
        what = f"pod → pod {other.who}"
        yield _probe(state, one, Question(what, SMALL, "", "", other.address, ALL_HOPS, ANSWER_S))
    if not state.others:
        why = state.daemon.trouble or "the daemon knows no other node"
        yield Finding("warn", f"pod → overlay: not tried, {why}", "give the daemon a peer")
        return
    peer = state.others[0]
    what = f"pod → node of {nodestate.show_subnet(peer[:8])}"
    asked = Question(what, SMALL, "", "", format_address(peer), HOPS_TO_PEER, OVERLAY_S)
    yield _probe(state, one, asked)


def _probe(state: State, source: Attached | None, asked: Question) -> Finding:
    """Ask up to TRIES times. With few hops the answer is an error, which counts if it
    comes from another node."""
    what = asked.what
    before = _counters(state)
    reason = f"no answer within {asked.within_s:g} s"
    for _ in range(TRIES):
        try:
            answer = _ask(state, source, asked)
        except OSError as error:
            reason = error.strerror or str(error)
            break
        if answer is None:
            continue
        kind, whose, took = answer
        far = (
            asked.hops == HOPS_TO_PEER and nodestate.subnet_of(whose) != (state.address or b"")[:8]
        )
        if kind == ECHO_REPLY or far:
            return ok(f"{what}: answered after {took:.2f} ms")
        reason = f"{ERRORS[kind]}, says {whose}"
        break
    after = _counters(state)
    growth = {name: number - before.get(name, 0) for name, number in after.items()}
    grew = [f"{name} +{number}" for name, number in growth.items() if number > 0]
    counted = f"; counters that grew: {', '.join(grew[:6])}" if grew else ""
    return Finding("fail", f"{what}: {reason}{counted}", "`mycelium-cni doctor` names causes")


def _ask(
    state: State, source: Attached | None, question: Question
) -> tuple[int, str, float] | None:
    if source is None:
        pinger = Pinger()
    else:
        with state.inside(source):
            pinger = Pinger(source.octets)
    try:
        return pinger.ask(question)
    finally:
        pinger.close()


def _counters(state: State) -> dict[str, int]:
    """What counts lost packets: rules that drop, links, and the kernel's own counters for IPv6."""
    found: dict[str, int] = {}
    try:
        for rule in read_dropping():
            found[f"rule `{rule.reason}` of chain {rule.table} {rule.chain}"] = rule.packets
    except OSError:
        pass  # no packet filter, or no right to read it
    try:
        with open("/proc/thread-self/net/snmp6") as lines:  # noqa: PTH123 - of this namespace
            for line in lines:
                name, number = line.split()
                if name in _SNMP:
                    found[_SNMP[name]] = int(number)
    except (OSError, ValueError):
        pass
    for link in nodestate.read_links(Snapshot(state.host)):
        found[f"dropped by link {link.name}"] = link.dropped_packets
    return found
