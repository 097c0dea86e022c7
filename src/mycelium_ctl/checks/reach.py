# SPDX-License-Identifier: Apache-2.0
"""Whether packets really pass: echo requests from the node to its pods, and from pod to pod.

Not everything that drops a packet can be found by reading state, so this sends some.
"""

from __future__ import annotations

from mycelium_ctl.checks import packetfilter
from mycelium_ctl.checks.finding import Finding, ok, own, skip
from mycelium_ctl.echo import Echoes
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.view import count


def reach(state: State) -> list[Finding] | Finding:
    """Every live pod answers its node, and a neighbour where policies let it."""
    live = [one for one in state.attachments if one.octets and _can_answer(state, one)]
    if state.attachments and not state.may_configure:
        return skip("no packets are sent: that needs root")
    if not live:
        return skip("no pod is attached")
    try:
        with Echoes() as echoes:
            answered = echoes.ask({one.octets for one in live})
    except OSError as error:
        return skip(f"no packets can be sent from here: {error.strerror}")
    silent = [one for one in live if one.octets not in answered]
    found = [_silent(state, one) for one in silent]
    found += _across(state, [one for one in live if one not in silent])
    return found or ok(f"{count(len(live), 'pod answers', 'pods answer')} the node")


def _can_answer(state: State, one: Attached) -> bool:
    """Whether a pod lives, and its configuration gives it a way back to the node."""
    config = state.config_of(one.network)
    if not one.answers or one.bridged or config is None or state.address is None:
        return one.answers
    node = int.from_bytes(state.address, "big")
    for route in config.routes:
        base, length = route.destination
        covered = node >> 128 - length == int.from_bytes(base, "big") >> 128 - length
        if covered and "table" not in route.metrics:
            return True
    return False


def _silent(state: State, one: Attached) -> Finding:
    return Finding(
        "fail",
        f"{one.who} does not answer the node's echo requests{packetfilter.drops()}",
        f"see what is lost where: {own('doctor', one.who)}",
    )


def _across(state: State, live: list[Attached]) -> list[Finding]:
    """From each pod to the next one whose network is open to its neighbours."""
    if state.config.policy.ingress == "closed" or len(live) < 2:
        return []
    found = []
    for one, other in zip(live, [*live[1:], live[0]], strict=True):
        with state.inside(one) as entered:
            if not entered:
                continue
            try:
                with Echoes(one.octets) as echoes:
                    answered = echoes.ask({other.octets})
            except OSError:
                answered = set()
        if not answered:
            found.append(
                Finding(
                    "fail",
                    f"{other.who} does not answer {one.who}, though both answer the node"
                    f"{packetfilter.drops()}",
                    f"see what is lost where: {own('doctor', one.who)}",
                )
            )
    return found
