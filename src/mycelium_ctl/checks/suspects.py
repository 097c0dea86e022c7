# SPDX-License-Identifier: Apache-2.0
"""What may have dropped packets that did not arrive, where no reading of state can decide it.

Rules that are not understood, programs at a link (tc, XDP), and what makes the kernel silent. Each
question is about the namespace that the calling thread is in.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

from mycelium_cni import guard
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nf
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.link import Link
from mycelium_ctl.checks.routing import policies
from mycelium_ctl.checks.ruleset import Ruleset, takes
from mycelium_ctl.node.state import Attached, State

MOST: Final = 4  # that are named

# Expressions that send packets elsewhere or change their addresses (net/netfilter/nft_*.c).
_REWRITERS: Final = frozenset(("nat", "redir", "masq", "tproxy", "synproxy", "dup"))

# linux/rtnetlink.h and if_link.h
_RTM_GETQDISC, _TCA_KIND, _IFLA_XDP, _IFLA_XDP_ATTACHED = 38, 1, 43, 2
# Queues that lose packets only when they are full.
_QUEUES: Final = frozenset(
    ("noqueue", "pfifo_fast", "pfifo", "bfifo", "mq", "fq", "fq_codel", "codel", "sfq", "cake")
)


def of_node(state: State, *attached: Attached) -> str:
    """What may drop the packets of these pods on the node, for the end of a sentence."""
    links = {one.link.name for one in attached} | set(state.own_links)
    return _listed([*chains(), *_at_links(links)])


def of_pod(state: State, one: Attached) -> str:
    """The same, in the pod too."""
    found = [*chains(), *_at_links({one.link.name, *state.own_links})]
    with state.inside(one) as entered:
        if entered:
            inner = [*chains(), *_at_links({one.pod_link, "lo"})]
            found += [f"in the pod {each}" for each in inner]
    return _listed(found)


def _listed(found: list[str]) -> str:
    return f" (what may drop them: {', '.join(found[:MOST])})" if found else ""


def chains() -> Iterator[str]:
    """Chains of other programs that drop something, and what else the namespace may drop all by."""
    try:
        ruleset = Ruleset()
    except OSError:
        return
    others = [
        each for each in ruleset.chains.values() if not each.table.startswith(guard.TABLE_NAME)
    ]
    for chain in others:
        if chain.policy == nf.NF_DROP or any(takes(each) for rule in chain.rules for each in rule):
            yield f"chain {chain}"
    for chain in others:
        if any(name in _REWRITERS for rule in chain.rules for name, _ in rule):
            yield f"chain {chain}, which rewrites packets"
    try:
        with open("/proc/thread-self/net/ip6_tables_names") as listed:  # noqa: PTH123 - of this namespace
            if tables := listed.read().split():
                yield f"ip6tables-legacy, table {tables[0]}"
    except OSError:
        pass
    yield from policies()
    if sysctl.get("icmp/echo_ignore_all") != "0":
        yield sysctl.command("icmp/echo_ignore_all", "1").removeprefix("sysctl -w ")


def _at_links(names: Container[str]) -> Iterator[str]:
    """Programs and queues at these links that may drop any packet."""
    with nl.Socket() as socket:
        links = [Link(payload) for payload in socket.dump(nl.link(nl.RTM_GETLINK, "list links"))]
        question = nl.Message(_RTM_GETQDISC, 0, bytes(_TCMSG_SIZE), "list queues")
        queues = [
            (int.from_bytes(payload[4:8], "little"), nl.decode(payload, _TCMSG_SIZE)[_TCA_KIND])
            for payload in socket.dump(question)
        ]
    for link in links:
        if link.name not in names:
            continue
        xdp = nl.decode(link.attribute(_IFLA_XDP), 0)
        if xdp.get(_IFLA_XDP_ATTACHED, b"\0") != b"\0":
            yield f"an XDP program at {link.name}"
        for index, kind in queues:
            if index == link.index and nl.text(kind) not in _QUEUES:
                yield f"tc {nl.text(kind)} at {link.name}"


_TCMSG_SIZE: Final = 20
