# SPDX-License-Identifier: Apache-2.0
"""Whether packets really pass: echo requests from the node to its pods and to the overlay, and from
pods to the node, to each other and to the overlay.

Not everything that drops a packet can be found by reading state, so this sends some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Final

from mycelium_ctl.checks import suspects
from mycelium_ctl.checks.finding import Finding, ok, own, skip
from mycelium_ctl.checks.pods import has_route
from mycelium_ctl.checks.routing import Packet, find_ways
from mycelium_ctl.echo import HOPS_TO_PEER, Echoes, ask_all
from mycelium_ctl.node.state import Attached, State, show_subnet
from mycelium_ctl.view import count

AT_ONCE: Final = 256  # pods that ask at the same time, with a socket each
# Bridged pods that ask a neighbour. Both of them get a neighbour entry, in a table that all network
# namespaces of the machine share, of 1,024 by default (gc_thresh3).
NEIGHBOURS_ASKED: Final = 128
OTHERS_ASKED: Final = 8  # nodes of the overlay: some are off, some do not answer
OVERLAY_ROUND_S: Final = 0.25
MOST_LOOKED: Final = 8  # silent pods for which it looks for what may drop their packets


def reach(state: State) -> list[Finding] | Finding:
    """Every live pod answers its node, and gets answers from it, from a neighbour where policies
    let it, and from the overlay."""
    live = [one for one in state.attachments if one.octets and _can_answer(state, one)]
    if state.attachments and not state.may_configure:
        return skip("no packets are sent: that needs root")
    if not live:
        return skip("no pod is attached")
    try:
        with Echoes() as node:
            asked = {node: {one.octets: 0 for one in live}}
            answered = ask_all(asked, live[0].subnet)[node]
            found, other = _overlay(state, node)
    except OSError as error:
        return skip(f"no packets can be sent from here: {error.strerror}")
    silent = [one for one in live if one.octets not in answered]
    found += [_silent(state, one, looked=place < MOST_LOOKED) for place, one in enumerate(silent)]
    talking = [one for one in live if one.octets in answered]
    for start in range(0, len(talking), AT_ONCE):
        found += _outwards(state, talking, start, other)
    return found or ok(f"{count(len(live), 'pod answers', 'pods answer')} the node")


def _can_answer(state: State, one: Attached) -> bool:
    """Whether a pod lives, and its configuration gives it a way back to the node."""
    return one.answers and (
        state.address is None
        or state.config_of(one.network) is None
        or has_route(state, one, state.address)
    )


def _silent(state: State, one: Attached, *, looked: bool) -> Finding:
    why = suspects.of_pod(state, one) if looked else ""
    return Finding(
        "fail",
        f"{one.who} does not answer the node's echo requests{why}",
        f"see what is lost where: {own('doctor', one.who)}",
    )


def _overlay(state: State, node: Echoes) -> tuple[list[Finding], bytes]:
    """Ask some nodes of the overlay; the one that answers, b"" if none does. Those that the kernel
    does not send to the daemon are left to the check `overlay-routes`."""
    interface = state.interface
    if interface is None or not interface.up or state.address is None:
        return [], b""
    others = state.others[:OTHERS_ASKED]
    ways = find_ways(state.host, *map(Packet, others))
    others = [each for each, way in zip(others, ways, strict=True) if way.leads(interface.index)]
    asked = dict.fromkeys(others, HOPS_TO_PEER - 1)
    answered = ask_all({node: asked}, state.address[:8], OVERLAY_ROUND_S)[node]
    first = next((each for each in others if each in answered), b"")
    if first or not others:
        return [], first
    nodes = ", ".join(show_subnet(each[:8]) for each in others)
    return [
        Finding(
            "fail",
            f"no node of the overlay answers this one, of {nodes}{suspects.of_node(state)}",
            "see that the daemon runs and reaches its peers: journalctl -u mycelium",
        )
    ], b""


def _outwards(
    state: State, live: Sequence[Attached], start: int, other: bytes
) -> Iterator[Finding]:
    """From each pod to the node, to the next pod whose network lets it in, and to another node; on
    a large bridge only some pods ask another."""
    own_address = state.address or bytes(16)
    step = 1 + sum(one.bridged for one in live) // NEIGHBOURS_ASKED
    # A bridge takes all packets of its pods for the node's subnet, also of a pod that has another
    # interface; pods of the other mode are not there (docs/operate.md).
    by_bridge = {one.link.nsid for one in live if one.bridged}
    with ExitStack() as stack:
        asked: dict[Echoes, dict[bytes, int]] = {}
        asking: dict[Echoes, tuple[Attached, dict[bytes, str]]] = {}
        for place, one in enumerate(live[start : start + AT_ONCE], start):
            targets = {own_address: "its node"}
            if other:
                targets[other] = f"node {show_subnet(other[:8])}"
            neighbour = live[(place + 1) % len(live)]
            apart = neighbour.bridged != (one.link.nsid in by_bridge)
            asks = not one.bridged or place % step == 0
            if (
                asks
                and neighbour.link.nsid != one.link.nsid
                and not apart
                and _lets_in(state, neighbour)
            ):
                targets[neighbour.octets] = neighbour.who
            targets = {to: who for to, who in targets.items() if has_route(state, one, to)}
            if not targets:
                continue
            with state.inside(one) as entered:
                if not entered:
                    continue
                echoes = None
                with suppress(OSError):
                    echoes = stack.enter_context(Echoes())
            if echoes:
                asked[echoes] = {to: HOPS_TO_PEER if to == other else 0 for to in targets}
                asking[echoes] = one, targets
        answered = ask_all(asked, own_address[:8])
    for echoes, (one, targets) in asking.items():
        lost = [who for to, who in targets.items() if to not in answered[echoes]]
        if lost:
            yield Finding(
                "fail",
                f"{one.who} gets no answer from {' and '.join(lost)}, though it answers the node"
                f"{suspects.of_pod(state, one)}",
                f"see what is lost where: {own('doctor', one.who)}",
            )


def _lets_in(state: State, one: Attached) -> bool:
    config = state.config_of(one.network)
    return config is None or config.policy.ingress != "closed"
