# SPDX-License-Identifier: Apache-2.0
"""Load the guard, tell whether it is loaded, and delete a pod's entries.

`rules`, `repair` and `nftables` are imported only where something is loaded: once per node and
network, or per bridged pod.
"""

from __future__ import annotations

from errno import (
    EAFNOSUPPORT,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    EOPNOTSUPP,
    EPROTONOSUPPORT,
    ERESTART,
)

from mycelium_cni.cni.errors import NODE_MISCONFIGURED, CniError, refusal
from mycelium_cni.guard.question import ask_table, is_loaded
from mycelium_cni.guard.wanted import BRIDGE_FAMILY, Port, Wanted, address_of, ours, port_of
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.link import Link, list_veths
from mycelium_cni.kernel.patience import Patience
from mycelium_cni.node.marks import DELETE_GROUP, GROUP_MASK, network_word, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Final

    from mycelium_cni.guard.content import Tables
    from mycelium_cni.guard.repair import Survey
    from mycelium_cni.kernel import nftables
    from mycelium_cni.kernel.facts import Steps


def protect(
    host: nl.Socket,
    wanted: Wanted,
    undo: Steps,
    port: Port | None = None,
    *,
    thorough: bool = False,
) -> None:
    """Part of ADD, and, `thorough`, of `setup`: ensure that the rules are loaded.

    Raises CniError (NODE_MISCONFIGURED) if they cannot be, and the configuration requires them.
    """
    if port:
        undo.push(_disown, host, port)
    try:
        if ensure(host, wanted, port, thorough=thorough) == _MADE:
            undo.push(_withdraw, host)
    except OSError as error:
        lacking = _lacking(error)
        if lacking is None:
            raise refusal(error, "the guard cannot be loaded") from None
        if wanted.policy.required:
            raise lacking from None


# What the kernel answers if it lacks nf_tables, or that expression, even as a module.
_LACKING = (ENOENT, EOPNOTSUPP, EPROTONOSUPPORT, EAFNOSUPPORT)


def _lacking(error: OSError) -> CniError | None:
    """The error for a kernel that lacks what the guard needs; None if it refused something else."""
    if error.errno not in _LACKING:
        return None
    return CniError(
        NODE_MISCONFIGURED,
        f"the guard cannot be loaded: {error.strerror}",
        '"guard": "optional" does without, except for ingress and ipMasq',
        run="modprobe -a nf_tables nft_fib_inet nft_ct nft_limit nft_chain_nat",
    )


def _disown(host: nl.Socket, port: Port) -> None:
    """Undo of a pod's entries. A refusal that was caught keeps its socket open until garbage is
    collected, and older steps need the descriptor."""
    socket = release(host, [port])
    if socket:
        socket.close()


def _withdraw(host: nl.Socket) -> None:
    """Undo of loading the first rules, unless another ADD relies on them by now. The failed ADD's
    own link still exists here: steps are undone newest first."""
    if sum(ours(link) for link in list_veths(host)) < 2:
        remove()


_KEPT, _CHANGED, _MADE = 0, 1, 2


def ensure(
    host: nl.Socket, wanted: Wanted, port: Port | None = None, *, thorough: bool = False
) -> int:
    """Load what is missing or differs, in one transaction. Returns 0 if nothing was, 2 if even the
    table was missing, else 1. `port`: a bridged pod that is being attached. `thorough`: compare
    everything, not only what `is_loaded` asks.

    Raises OSError: the kernel lacks something, or refuses it.
    """
    patience = Patience()
    generation = b""
    while True:
        try:
            return _ensure(host, wanted, port, thorough=thorough, afresh=bool(generation))
        except nl.NetlinkError as error:
            # The table was changed after we read it; or the address has a stale entry.
            if error.errno not in (ENOENT, EEXIST, EBUSY, ERESTART):
                raise
            before, generation = generation, _generation()
            if generation == before or patience.is_over:  # or the kernel lacks something
                raise


def _generation() -> bytes:
    """The number of the last change of any table."""
    from mycelium_cni.kernel import nftables  # noqa: PLC0415 - after a refusal

    with nftables.Socket() as socket:
        return socket.generation()


def _ensure(
    host: nl.Socket, wanted: Wanted, port: Port | None, *, thorough: bool, afresh: bool
) -> int:
    loaded = not thorough and is_loaded(wanted)
    if loaded and not port:
        return _KEPT

    from mycelium_cni.guard import rules  # noqa: PLC0415 - bridge mode only
    from mycelium_cni.kernel import nftables  # noqa: PLC0415 - once per node, or per bridged pod

    with nftables.Socket() as socket:
        if loaded and port:
            if afresh:
                _delete_ports(host, socket, [port])
            socket.commit(*rules.add_ports([port]))
            return _CHANGED
        from mycelium_cni.guard.content import Tables  # noqa: PLC0415 - once per node and network

        links = list_veths(host)
        _refuse_shared_group(links, wanted)
        for link in _strays(links, wanted):
            back: nl.Attribute = (nl.IFLA_GROUP, wanted.group)
            host.request(nl.link(nl.RTM_NEWLINK, f"regroup {link.name}", back, index=link.index))
            links = list_veths(host)
        survey = _survey(links, Tables(socket), wanted, port)
        messages, generation = survey.repair()
        if not messages:
            return _KEPT
        # The link of an ADD in progress is not up, and has no connections.
        live = [link for link in links if link.group == wanted.group and link.up]
        if wanted.policy.ingress == "open" or not live:
            socket.commit(*messages, generation=generation)
        else:
            # They may have begun before the policy. Until those that it forbids are ended, the
            # table says another policy than the configuration: the next call tries again.
            settled = wanted.record
            socket.commit(*messages, *rules.renamed(settled.unsettled), generation=generation)
            _end_forbidden(host, wanted, live)
            socket.commit(*rules.renamed(settled))
    return _CHANGED if survey.there else _MADE


def _end_forbidden(host: nl.Socket, wanted: Wanted, links: list[Link]) -> None:
    from mycelium_cni.guard import connections  # noqa: PLC0415 - where a policy changes

    connections.end_forbidden(host, wanted, links)


def end_former(wanted: Wanted, address: bytes) -> None:
    """Part of ADD; see `guard.connections`."""
    from mycelium_cni.guard import connections  # noqa: PLC0415 - few addresses had another owner

    connections.end_former(wanted, address)


def end_left(addresses: Collection[bytes]) -> None:
    """Part of DEL; see `guard.connections`."""
    from mycelium_cni.guard import connections  # noqa: PLC0415 - DEL's child does it

    connections.end_left(addresses)


def _refuse_shared_group(links: list[Link], wanted: Wanted) -> None:
    """Raises CniError (NODE_MISCONFIGURED) if pods of another network have this one's group, which
    is a hash of 28 bits: each would get the other's policy."""
    for link in links:
        other = word(link.alias, "network") if link.group == wanted.group else ""
        if other not in ("", network_word(wanted.network)):
            raise CniError(
                NODE_MISCONFIGURED,
                f"networks {wanted.network} and {other} have the same number {wanted.group}",
                "give one of them another name: the number is a hash of it",
                about="name",
            )


def _strays(links: Iterable[Link], wanted: Wanted) -> list[Link]:
    """The host links of this network that were moved to another group, and so to other rules, or
    none. An alias may truncate the network's name, and then does not tell it from others.
    """
    named = network_word(wanted.network)
    return [
        link
        for link in links
        if word(link.alias, "network") == named
        and link.group != wanted.group
        and link.group & GROUP_MASK != DELETE_GROUP
        and (named == wanted.network or not ours(link))
    ]


def _survey(
    links: Iterable[Link], tables: Tables, wanted: Wanted, port: Port | None = None
) -> Survey:
    from mycelium_cni.guard.repair import Survey  # noqa: PLC0415 - once per node and network

    counted = [link for link in links if ours(link)]
    ports = [each for each in map(port_of, counted) if each]
    if port and all(port.index != each.index for each in ports):
        ports.append(port)
    return Survey(tables, wanted, ports, {link.group for link in counted})


def forget(host: nl.Socket, links: Iterable[Link]) -> nl.Socket | None:
    """Part of DEL and GC, before the links go: drop the entries of bridged pods. One that stays
    allows nothing, because no link will have its index again; `sweep` finds it.

    Returns a socket to keep open until `removal.delete_links` is done: entries are gone at once,
    but closing the socket waits until the last reader is done (nft_rcv_nl_event), 15 ms that the
    child of `delete_links` has to wait anyway. Raises OSError.
    """
    ports = [port for port in map(port_of, links) if port]
    return release(host, ports) if ports else None


def release(host: nl.Socket, ports: Collection[Port]) -> nl.Socket | None:
    """Drop the entries of bridged pods, if they are there. Without nf_tables there are none. Raises
    OSError."""
    from mycelium_cni.kernel import nftables  # noqa: PLC0415 - bridge mode only

    try:
        socket = nftables.Socket()
        _delete_ports(host, socket, ports)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        return None
    return socket


def _delete_ports(host: nl.Socket, socket: nftables.Socket, ports: Collection[Port]) -> None:
    """In one transaction, so that nobody sees a pod with half of its entries."""
    from mycelium_cni.guard import rules  # noqa: PLC0415 - bridge mode only

    try:
        socket.commit(*rules.delete_ports(ports))
    except nl.NetlinkError as error:
        if error.errno != ENOENT:
            raise
        _delete_rest(host, socket, ports)


def _delete_rest(host: nl.Socket, socket: nftables.Socket, ports: Collection[Port]) -> None:
    """Drop what is there of the entries of bridged pods, of which some may have gone, and their
    addresses with them: one that has a new owner keeps its entries."""
    from mycelium_cni.guard import rules  # noqa: PLC0415 - an earlier call was killed, or is running
    from mycelium_cni.guard.content import Tables  # noqa: PLC0415

    patience = Patience()
    while True:
        tables = Tables(socket)
        owners = {address_of(link): link.index for link in list_veths(host)}
        kept = {p.address for p in ports if owners.get(p.address, p.index) != p.index}
        there = [m for m in rules.delete_ports(ports, kept) if tables.of(m).has_all(m)]
        messages = {m.body: m for m in there}  # two may have had one address
        try:
            if messages:
                socket.commit(*messages.values(), generation=tables.generation)
        except nl.NetlinkError as error:
            if error.errno != ERESTART or patience.is_over:  # an ADD may have taken an address
                raise
        else:
            return


def sweep(host: nl.Socket) -> int:
    """Drop the entries of bridged pods whose links are gone: a pod that ends without DEL takes its
    link with it, but not these. Returns how many there were. Raises OSError."""
    try:
        with nl.Socket(nl.NETLINK_NETFILTER) as asking:
            if asking.ask(ask_table(BRIDGE_FAMILY)) == [None]:
                return 0
    except OSError as error:
        # EINVAL: nothing answers for nf_tables.
        if error.errno != EINVAL and error.errno not in _LACKING:
            raise
        return 0
    from mycelium_cni.guard import rules  # noqa: PLC0415 - where bridge mode is in use
    from mycelium_cni.kernel import nftables  # noqa: PLC0415 - where bridge mode is in use

    with nftables.Socket() as socket:
        generation = socket.generation()
        # Entries first, then links: the entry of a pod attached meanwhile is never taken for stale.
        known, attached = rules.ports(socket), rules.attached(socket)
        live = [port for port in map(port_of, list_veths(host)) if port]
        indexes = {port.index for port in live}
        stale = [port for port in known if port.index not in indexes]
        addresses = {port.address for port in (*known, *live)}
        # An older release's DEL leaves these.
        left = [address for address in attached if address not in addresses]
        if left:
            from mycelium_cni.kernel.snapshot import Snapshot  # noqa: PLC0415 - bridge mode only

            own = {address for _, address in Snapshot(host).addresses}
            left = [address for address in left if address not in own]
        if left:
            try:
                socket.commit(rules.delete_attached(left), generation=generation)
            except nl.NetlinkError as error:
                if error.errno != ERESTART:  # a new pod may have one: the next sweep sees it
                    raise
        if stale:
            _delete_rest(host, socket, stale)
    return len(stale)


def remove() -> bool:
    """Delete the tables, for `teardown`; returns whether there was one. Raises OSError."""
    from mycelium_cni.guard import rules  # noqa: PLC0415
    from mycelium_cni.kernel import nftables  # noqa: PLC0415

    with nftables.Socket() as socket:
        there = socket.ask(rules.INET.get(), rules.BRIDGE.get())
        messages = [
            table.delete()
            for table, answer in zip((rules.INET, rules.BRIDGE), there, strict=True)
            if answer is not None
        ]
        if messages:
            socket.commit(*messages)
    return bool(messages)


def inspect(host: nl.Socket, wanted: Wanted, port: Port | None = None) -> None:
    """Part of STATUS, and of CHECK, with the `port` of a bridged pod. Raises CniError
    (NODE_MISCONFIGURED) that says what is wrong."""
    wrong = Loaded(list_veths(host)).fault(wanted, port)
    if wrong:
        raise CniError(
            NODE_MISCONFIGURED,
            f"the guard is down: {wrong}",
            "the next ADD restores the rules too",
            run="mycelium-cni setup",
        )


def require_kernel() -> None:
    """Part of STATUS, while there is nothing to inspect. Raises CniError (NODE_MISCONFIGURED) if
    the kernel has no nf_tables."""
    try:
        _generation()
    except OSError as error:
        raise _lacking(error) or error from None


class Loaded:
    """What the kernel has of the guard, for any number of networks. `links` are the node's veths,
    which must be read before: see `Survey`.

    Raises CniError (NODE_MISCONFIGURED) if the kernel has no nf_tables, else OSError.
    """

    __slots__ = ("_links", "_tables")

    def __init__(self, links: Collection[Link]) -> None:
        from mycelium_cni.guard.content import Tables  # noqa: PLC0415 - ADD hardly ever needs it
        from mycelium_cni.kernel import nftables  # noqa: PLC0415 - ADD hardly ever needs it

        self._links: Final = links
        try:
            with nftables.Socket() as socket:
                self._tables: Final = Tables(socket)
        except OSError as error:
            raise _lacking(error) or error from None

    def fault(self, wanted: Wanted, port: Port | None = None) -> str:
        """What is wrong with the guard, in a few words; '' if nothing is. A policy that differs
        from the configuration is not a fault: the next ADD loads it, and `is_outdated` reports it.
        Nor is a bridged pod without entries, except the one at `port`: its DEL may be in
        progress."""
        for link in _strays(self._links, wanted):
            return f"link {link.name} is in group {link.group}, not its network's {wanted.group}"
        return self._survey(wanted).fault(port)

    def is_outdated(self, wanted: Wanted) -> bool:
        """Whether `setup` would change something."""
        return bool(self._survey(wanted).repair()[0] or _strays(self._links, wanted))

    def _survey(self, wanted: Wanted) -> Survey:
        # An ADD in progress loads what its link needs before it sets it up.
        return _survey([link for link in self._links if link.up], self._tables, wanted)
