# SPDX-License-Identifier: Apache-2.0
"""DEL's and GC's part: find host links, and delete them with all that belongs to them."""

from __future__ import annotations

from errno import ENODEV, ENOENT
from posix import WNOHANG, _exit, close, fork, getpid, setsid, waitpid

from mycelium_cni.guard import end_left, port_of
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_address
from mycelium_cni.kernel.link import Link, find_link, list_veths
from mycelium_cni.kernel.patience import Patience
from mycelium_cni.node.marks import (
    DELETE_GROUP,
    GROUP,
    GROUP_MASK,
    PROTOCOL,
    group,
    network_word,
    word,
)
from mycelium_cni.pod.attachment import ALIAS_PREFIX, LINK_PREFIX, Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import NoReturn


def attachments(host: nl.Socket, network: str) -> list[Link]:
    """The host links of all attachments of a network. Two networks may have one group, so the alias
    decides; a link without one was left by an ADD that was killed. A GC that was killed may leave
    links in the group that it was to delete."""
    names = ("", network_word(network))
    return [
        link
        for link in list_veths(host)
        if word(link.alias, "network") in names
        and (link.group == group(network) or _is_doomed(link))
    ]


def _is_doomed(link: Link) -> bool:
    """Whether delete_links has chosen it. Other programs may use the same group numbers."""
    return link.group & GROUP_MASK == DELETE_GROUP and link.name.startswith(LINK_PREFIX)


def find(host: nl.Socket, attachment: Attachment) -> Link | None:
    """The host link of an attachment: by its name, or, where somebody has renamed it, by what its
    alias says. A link of that name without our marks is somebody else's."""
    link = find_link(host, attachment.host_link)
    if link and is_ours(link):
        return link
    own = f" container={attachment.container}"
    for link in attachments(host, attachment.network):
        if link.alias.endswith(own) and word(link.alias, "ifname") == attachment.ifname:
            return link
    return None


def is_ours(link: Link) -> bool:
    """Whether a link with an attachment's name also has one of our marks."""
    return link.group & GROUP_MASK == GROUP or link.alias.startswith(ALIAS_PREFIX)


def is_valid(link: Link, network: str, valid: set[str]) -> bool:
    """Whether a host link has one of these names, or had it before somebody renamed it."""
    ifname, container = word(link.alias, "ifname"), word(link.alias, "container")
    return link.name in valid or Attachment(network, container, ifname).host_link in valid


def forget_neighbours(host: nl.Socket, links: list[Link]) -> None:
    """Drop the bridge's neighbour entries of these links' pods, before the links are deleted: until
    then no other pod can get their addresses."""
    for link in links:
        port = port_of(link)
        if port:
            forget_neighbour(host, link.master, port.address)


def sweep_neighbours(host: nl.Socket) -> None:
    """Drop the neighbour entries of bridged pods that ended before their DEL."""
    everyone = nl.NDMSG.pack(nl.AF_INET6, 0, 0, 0, 0)
    for payload in host.dump(nl.Message(nl.RTM_GETNEIGH, 0, everyone, "read neighbours")):
        _, index, state, _, _ = nl.NDMSG.unpack_from(payload)
        said = nl.decode(payload, nl.NDMSG.size)
        if state & nl.NUD_PERMANENT and said.get(nl.NDA_PROTOCOL) == bytes((PROTOCOL,)):
            address = said[nl.NDA_DST]
            # A new pod reserves the address before it makes the entry.
            if not find_link(host, format_address(address)):
                forget_neighbour(host, index, address)


def forget_neighbour(host: nl.Socket, bridge: int, address: bytes) -> None:
    """Drop the bridge's entry of one pod, if it is there."""
    what = f"forget neighbour {format_address(address)}"
    try:
        host.request(nl.delete_neighbour(what, bridge, address))
    except nl.NetlinkError as error:
        if error.errno not in (ENOENT, ENODEV):
            raise


def delete_links(host: nl.Socket, indexes: list[int], addresses: Collection[bytes] = ()) -> None:
    """Delete host links, and return when they, their pod links, addresses and routes are gone.
    Tracked connections of these addresses end soon after.

    The kernel does that within 2 ms, and then makes the caller wait another 30 until the last
    reader of the old structures is done. A child does the waiting (docs/adr/0003); the kernel
    finishes the request even if the child is killed. One request for a whole group waits once for
    any number of links. The child uses our socket, which is in the links' namespace: it needs no
    other descriptor, and no right to enter one.

    Raises NetlinkError if the kernel refuses to delete one; then it has deleted the others.
    """
    refused = {}
    if len(indexes) > 1:
        doomed = DELETE_GROUP | getpid() & ~GROUP_MASK
        moves = [
            nl.link(nl.RTM_NEWLINK, "regroup", (nl.IFLA_GROUP, doomed), index=i) for i in indexes
        ]
        refused = host.attempt(*moves)
        indexes = [index for place, index in enumerate(indexes) if place not in refused]
        request = nl.link(nl.RTM_DELLINK, "delete links", (nl.IFLA_GROUP, doomed))
    else:
        request = nl.link(nl.RTM_DELLINK, "delete link", index=indexes[0])
    unheard = host.numbered(request)  # here: no later request gets the same number
    try:
        child = fork()
    except OSError:  # no process left: wait here
        _unless_gone(host, request)
    else:
        if child == 0:
            _delete_detached(host, unheard, addresses)
        _await_deletion(host, indexes, request, child)
    for place in sorted(refused):
        if refused[place].errno != ENODEV:
            raise refused[place]


def _await_deletion(host: nl.Socket, indexes: list[int], request: nl.Message, child: int) -> None:
    """Return when the links that the child deletes are gone.

    It sleeps between looks: three processes that only yielded the CPU once kept the child, and
    everybody else, from the lock for half a minute.
    """
    patience = Patience()
    for index in indexes:
        # No look shows half a deletion, because both take the kernel's rtnl lock: once a link is
        # gone, so are its peer, addresses, routes, neighbours and names.
        while exists(host, index):
            if waitpid(child, WNOHANG)[0] or patience.is_over:
                # The kernel refused the child's request, or the child was killed or delayed before
                # it.
                _unless_gone(host, request)
                return
            patience.pause()


def _delete_detached(host: nl.Socket, unheard: bytes, addresses: Collection[bytes]) -> NoReturn:
    """The child's part: detach from the runtime's streams, session and signals, then delete.
    Listing a large table of connections takes longer than DEL."""
    try:
        for fd in range(3):
            close(fd)
        setsid()
        host.send(unheard)
        if addresses:
            end_left(addresses)
    finally:
        _exit(0)


def _unless_gone(host: nl.Socket, message: nl.Message) -> None:
    """Ignore ENODEV: pods end at any time, and their links with them."""
    try:
        host.request(message)
    except nl.NetlinkError as error:
        if error.errno != ENODEV:
            raise


def exists(host: nl.Socket, index: int) -> bool:
    """Whether the socket's network namespace has a link of that index."""
    return host.ask(nl.link(nl.RTM_GETLINK, "read link", index=index)) != [None]
