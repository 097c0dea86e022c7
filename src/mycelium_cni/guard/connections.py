# SPDX-License-Identifier: Apache-2.0
"""Connections that outlive what allowed them: an address's last owner, or a policy.

Packets of a tracked connection pass before any policy applies, so it must be ended.
"""

from __future__ import annotations

from errno import EINVAL

from mycelium_cni.cni.errors import NODE_MISCONFIGURED, CniError
from mycelium_cni.guard.wanted import address_of
from mycelium_cni.kernel import conntrack
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_address
from mycelium_cni.kernel.link import find_link
from mycelium_cni.kernel.snapshot import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from mycelium_cni.cni.config import Policy
    from mycelium_cni.guard.wanted import Wanted
    from mycelium_cni.kernel.link import Link


def end_former(wanted: Wanted, address: bytes) -> None:
    """Part of ADD if another pod may have had the address: end that pod's connections, which are
    all that are tracked for it. Whatever the policy: it may be tightened later.

    Raises CniError (NODE_MISCONFIGURED) or OSError if they cannot be ended.
    """
    _end(wanted.policy, address, lambda each: address in (each.source, each.server))


def end_left(addresses: Collection[bytes]) -> None:
    """Part of DEL, once the pods' links are gone: end their connections, unless another pod has the
    address by now. What was listed before it came is not its own. Raises OSError."""
    if not conntrack.is_in_use():
        return
    with nl.Socket(nl.NETLINK_NETFILTER) as socket, nl.Socket() as host:
        holding = min(addresses) if len(addresses) == 1 else b""
        found = conntrack.connections(socket, holding)
        free = {each for each in addresses if not find_link(host, format_address(each))}
        conntrack.end(socket, [each for each in found if free & {each.source, each.server}])


def end_forbidden(host: nl.Socket, wanted: Wanted, links: Iterable[Link]) -> None:
    """After a change of a network's policy: end connections to the pods of these links that it
    forbids. Those that pods have opened go on, and so do allowed ones: the node may be translating
    their addresses. Raises as `end_former`."""
    pods = {address_of(link) for link in links}
    policy, nodes = wanted.policy, {address for _, address in Snapshot(host).addresses}

    def is_allowed(source: bytes) -> bool:
        if policy.ingress == "closed" or source in nodes:
            return source in nodes
        number = int.from_bytes(source, "big")
        return source[:8] == wanted.subnet or any(
            not (number ^ int.from_bytes(base, "big")) >> 128 - length
            for base, length in policy.allow_from
        )

    _end(policy, wanted.subnet, lambda e: e.server in pods and not is_allowed(e.source))


def _end(policy: Policy, holding: bytes, doomed: Callable[[conntrack.Connection], bool]) -> None:
    if not conntrack.is_in_use():
        return
    with nl.Socket(nl.NETLINK_NETFILTER) as socket:
        try:
            found = conntrack.connections(socket, holding)
        except nl.NetlinkError as error:
            if error.errno != EINVAL:
                raise
            if policy.ingress != "open":
                raise CniError(
                    NODE_MISCONFIGURED,
                    "the kernel tracks connections, and cannot be told to end those of the "
                    "address's last owner",
                    run="modprobe nf_conntrack_netlink",
                ) from None
            return
        conntrack.end(socket, [each for each in found if doomed(each)])
