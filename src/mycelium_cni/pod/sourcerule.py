# SPDX-License-Identifier: Apache-2.0
"""The rule that keeps packets from a pod's address on its link, where no route can.

Source routes go with their link (facts.source_routes), but Talos builds its kernel without
CONFIG_IPV6_SUBTREES, and 0.1.0 did not make them. A rule outlives its link. Its table is empty
then, so it does no harm, but must be deleted. The alias of the host link says that there is one;
only the network namespace of that link's peer is entered, and only the rule of its own address and
table is deleted.
"""

from __future__ import annotations

from errno import ENOENT
from posix import close, listdir, readlink

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import parse_address
from mycelium_cni.kernel.netns import inside, netns_of, open_netns
from mycelium_cni.node.marks import word
from mycelium_cni.pod import facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelium_cni.kernel.facts import Rule
    from mycelium_cni.kernel.link import Link
    from mycelium_cni.pod.facts import Shape
    from mycelium_cni.undo import Undo

_FIRST_TABLE = 77_000_000  # plus the pod link's index; RT_TABLE_* and people use small numbers


def table(shape: Shape) -> int:
    """The number of a link's own table."""
    return _FIRST_TABLE + shape.pod.index


def add(pod: nl.Socket, shape: Shape, undo: Undo) -> None:
    """Make the table, and the rule for it. The alias of the host link must name the table already,
    so that DEL finds the rule even if this process is killed."""
    number = table(shape)
    rule = facts.source_rule(shape.address, number)
    undo.push(_drop, pod, rule)
    routes = [fact.message() for fact in facts.own_routes(shape, number)]
    # Not every other link has a rule: what they send must not find this link's routes.
    unwanted = [fact.drop() for fact in facts.shadowing(shape)]
    pod.request(*routes, rule.message(), *unwanted)


def forget(host: nl.Socket, links: list[Link], path: str) -> None:
    """Part of DEL and GC: drop the rules of these host links. `path` is where the pod's network
    namespace may be; else those of all processes are searched. A namespace that cannot be found or
    entered keeps a rule without effect."""
    wanted: dict[bytes, list[Link]] = {}
    for link in links:
        if word(link.alias, "table"):
            wanted.setdefault(link.attribute(nl.IFLA_LINK_NETNSID), []).append(link)
    if not wanted:
        return
    home = netns_of(host.fileno())
    for netns in _namespaces(path):
        try:
            answer = nl.decode(host.request(nl.get_nsid(netns))[0], 4)
            led = wanted.pop(answer[nl.NETNSA_NSID], [])
            if led:
                with inside(netns, home=home):
                    pod = nl.Socket()
                for link in led:
                    number, address = int(word(link.alias, "table")), word(link.alias, "address")
                    _drop(pod, facts.source_rule(parse_address(address), number))
        except (OSError, ValueError):  # ValueError: an alias that somebody else has written
            continue
        finally:
            close(netns)
        if not wanted:
            break


def _namespaces(path: str) -> Iterator[int]:
    """A descriptor of the network namespace at `path`, and of each that a process is in."""
    seen = set()
    places = [path, *[f"/proc/{name}/ns/net" for name in listdir("/proc") if name.isdigit()]]
    for place in places:
        try:
            # All processes of a pod are in the same one.
            name = readlink(place) if place != path else ""
            if name not in seen:
                seen.add(name)
                yield open_netns(place)
        except (OSError, ValueError):
            continue


def _drop(pod: nl.Socket, rule: Rule) -> None:
    try:
        pod.request(rule.drop())
    except nl.NetlinkError as error:
        if error.errno != ENOENT:
            raise
