# SPDX-License-Identifier: Apache-2.0
"""Prepare this node for pods, or see that nothing lacks. Run it again at any time.

It waits for the Mycelium interface, then makes what is missing: routes that keep packets for the
overlay from leaving by another way while the daemon is away, the node's own address on lo,
forwarding (without losing routes learned from router advertisements), and in bridge mode the bridge
with the first address of the subnet, which answers for the node's own address. Every change is
printed as the `ip` or `sysctl` line that would do the same; --dry-run prints them and changes
nothing. After the daemon's key has changed it takes away what the old subnet left.

The guard, a table of the packet filter, is loaded before the node forwards; it has no line, and
docs/security.md has its rules. Everything else that is made carries protocol 77, the bridge an
alias: `mycelium-cni teardown` goes by these.

    mycelium-cni setup --wait 60                   # as the service does at boot
    mycelium-cni setup --mode bridge --dry-run     # what would network_setup.sh's successor do?
    mycelium-cni setup --install-units             # the service, and drop-ins for networkd and NM
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from mycelium_cni import guard
from mycelium_cni.cni.errors import TRY_AGAIN_LATER, CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_address, format_mac, format_prefix
from mycelium_cni.kernel.link import find_link
from mycelium_cni.node import groundwork, marks, subnet
from mycelium_cni.overlay import MYCELIUM, on_mycelium
from mycelium_cni.undo import Undo
from mycelium_ctl import files
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Page, count, visible

POLL_S: Final = 0.02
GUARD: Final = "guard"
RA_ROUTES: Final = "routes from router advertisements"
RTM_DELNEIGH: Final = 29  # linux/rtnetlink.h

# What is shipped in share/, and where it belongs.
UNITS: Final = {
    "mycelium-cni-setup.service": "etc/systemd/system/mycelium-cni-setup.service",
    "networkd.network": "etc/systemd/network/05-mycelium-cni.network",
    "networkd.conf": "etc/systemd/networkd.conf.d/05-mycelium-cni.conf",
    "NetworkManager.conf": "etc/NetworkManager/conf.d/05-mycelium-cni.conf",
    "zinit.yaml": "etc/zinit/mycelium-cni-setup.yaml",
}
_SHIPPED_PATH: Final = "/opt/cni/bin/mycelium-cni"


@dataclass(frozen=True, slots=True)
class Change:
    """One change to the node: its name, and the command that would make it."""

    name: str
    command: str


def read_node(state: State) -> subnet.Node:
    """The node as the interface alone shows it, and whether pods hang on a bridge: setup mends the
    bridge, so what that says does not count yet. A key that says something else does.

    Raises CniError as `subnet.find`.
    """
    config = state.config
    alone = subnet.find(state.host, state.interface_config)
    if not state.bridged:
        return alone
    subnet.agree_with_key(config, alone.address)
    bridge = state.bridge
    if bridge and bridge.kind != "bridge":
        kind = f"a {bridge.kind}" if bridge.kind else "hardware"
        raise ToolError(
            f"{config.bridge_name} is {kind}, not a bridge: rename it, or name another bridge with "
            '--bridge and in the network configuration ("bridge")'
        )
    return subnet.Node(alone.address, alone.mtu, True, find_link(state.host, config.bridge_name))


class Preparation:
    """What this node lacks, as changes in the order in which `apply` makes them."""

    def __init__(self, state: State) -> None:
        self.state: Final = state
        self.node: Final = read_node(state)
        self.wanted: Final = guard.Wanted(state.network, state.config, self.node)
        self.stale: Final = list(stale_messages(state, self.node))
        self.changes: Final = [change for change, _ in self.stale]
        if self.node.bridged:
            self.changes.extend(self._bridge())
        self.changes.extend(self._standing())

    def _bridge(self) -> Iterator[Change]:
        state, node = self.state, self.node
        name, bridge = state.config.bridge_name, state.bridge
        gateway, own = format_address(node.gateway), format_address(node.address)
        if bridge is None:
            mac = format_mac(groundwork.bridge_mac(node.subnet))
            yield Change("bridge", f"ip link add {name} address {mac} type bridge")
            yield Change(
                "bridge", f"ip link set {name} addrgenmode none alias '{marks.BRIDGE_ALIAS}'"
            )
            yield Change("bridge", f"ip address add fe80::1/64 dev {name} nodad")
        has = [a.address for a in state.addresses if bridge and a.link == bridge.index]
        if node.gateway not in has:
            yield Change("bridge address", f"ip address add {gateway}/64 dev {name} nodad")
        if bridge is None or not bridge.up:
            yield Change("bridge", f"ip link set {name} up")
        for switch, value in _proxy_switches(name):
            if bridge is None or _read(switch) != value:
                yield Change("node address on the bridge", sysctl.command(switch, value))
        proxies = nodestate.read_proxies(state.host) if bridge else []
        if not any(
            bridge and p.link == bridge.index and p.address == node.address for p in proxies
        ):
            yield Change(
                "node address on the bridge",
                f"ip -6 neighbour add proxy {own} dev {name} protocol {marks.PROTOCOL}",
            )

    def _standing(self) -> Iterator[Change]:
        """What `groundwork.prepare` makes, in its order, and links it has no reason to touch."""
        state, node = self.state, self.node
        there = {
            (route.destination, route.metric)
            for route in state.routes
            if route.table == nl.RT_TABLE_MAIN
        }
        for destination, metric in standing_routes(node.subnet):
            if (destination, metric) not in there:
                yield Change(
                    "no way around the overlay",
                    f"ip -6 route add unreachable {format_prefix(destination)} metric {metric} "
                    f"proto {marks.PROTOCOL}",
                )
        lo = state.link("lo")
        if not any(
            lo and a.link == lo.index and a.address == node.address for a in state.addresses
        ):
            own = format_address(node.address)
            yield Change("node address", f"ip address add {own}/128 dev lo nodad")
        for link in at_risk(state):
            yield Change(
                RA_ROUTES,
                sysctl.command(sysctl.conf(link, "accept_ra"), "2"),
            )
        if self._guard_lacks():
            yield Change(GUARD, f"# load table inet {guard.TABLE_NAME} into the packet filter")
        forwarding = sysctl.conf("all", "forwarding")
        if sysctl.get(forwarding) == "0":
            yield Change("forwarding", sysctl.command(forwarding, "1"))

    def _guard_lacks(self) -> bool:
        try:
            return guard.outdated(self.wanted)
        except OSError:
            return self.wanted.policy.required  # then apply will say why it cannot be

    def apply(self) -> None:
        """Make the changes, through the functions that ADD itself calls; all of them or none.

        Raises ToolError that says which step failed.
        """
        nodestate.require_rights()
        state, node, host = self.state, self.node, self.state.host
        try:
            for _, message in self.stale:
                host.request(message)
            with Undo() as undo:
                if node.bridged:
                    name = state.config.bridge_name
                    index = groundwork.ensure_bridge(host, name, node, undo)
                    for switch, value in _proxy_switches(name):
                        sysctl.put(switch, value)
                    host.request(
                        nl.proxy_neighbour(
                            f"answer for {format_address(node.address)} on {name}",
                            index,
                            node.address,
                            marks.PROTOCOL,
                        )
                    )
                for link in at_risk(state):
                    undo.push(sysctl.put, sysctl.conf(link, "accept_ra"), "1")
                    sysctl.put(sysctl.conf(link, "accept_ra"), "2")
                guard.protect(host, self.wanted, undo)
                groundwork.prepare(host, node, undo)
        except CniError as error:
            raise ToolError(error.msg) from error
        except OSError as error:
            raise ToolError(refused(error)) from error


def standing_routes(prefix: bytes) -> list[tuple[tuple[bytes, int], int]]:
    """Destination and metric of the routes that refuse what has no better one."""
    return [
        (MYCELIUM, groundwork.WORST_METRIC),
        ((prefix + bytes(8), 64), groundwork.SUBNET_METRIC),
    ]


def at_risk(state: State) -> list[str]:
    """Links whose routes from router advertisements the kernel drops when it forwards."""
    links = groundwork.links_with_ra_routes(state.host)
    return [link for link in links if nodestate.switch(link, "accept_ra") == "1"]


def stale_messages(state: State, node: subnet.Node | None) -> Iterator[tuple[Change, nl.Message]]:
    """How to take away what carries our mark and is not `node`'s: with None, everything.

    What belongs to the subnet of live pods stays, but for the bridge's address, which would keep
    ADD from working: those pods can talk to their node and to each other until they are replaced.
    """
    used = {attached.subnet for attached in state.attachments} if node else set()
    bridge = state.bridge if state.bridge and state.bridge.kind == "bridge" else None
    lo = state.link("lo")
    for proxy in nodestate.read_proxies(state.host) if bridge else ():
        ours = bridge and proxy.link == bridge.index and proxy.protocol == marks.PROTOCOL
        if bridge and ours and (node is None or proxy.address != node.address):
            text = format_address(proxy.address)
            yield (
                Change("old node address", f"ip -6 neighbour del proxy {text} dev {bridge.name}"),
                _drop_proxy(proxy),
            )
    for address in state.addresses:
        text = f"{format_address(address.address)}/{address.prefixlen}"
        on_bridge = bridge is not None and address.link == bridge.index
        on_lo = lo is not None and address.link == lo.index
        if not (on_bridge or on_lo) or not on_mycelium(address.address):
            continue
        if node and address.address in (node.address, node.gateway):
            continue
        name = bridge.name if bridge and on_bridge else "lo"
        if address.protocol != marks.PROTOCOL:
            if node and on_bridge and address.address[:8] != node.subnet:
                raise ToolError(
                    f"bridge {name} has {text}, which is not of this node's subnet "
                    f"{nodestate.show_subnet(node.subnet)} and not made by setup: "
                    f"run `ip address del {text} dev {name}` if nobody needs it"
                )
            continue
        if on_lo and address.address[:8] in used:
            continue
        yield (
            Change("old address", f"ip address del {text} dev {name}"),
            nl.address(
                nl.RTM_DELADDR,
                f"delete address {text} dev {name}",
                address.link,
                address.address,
                address.prefixlen,
            ),
        )
    for route in state.routes:
        (base, length), ours = route.destination, route.protocol == marks.PROTOCOL
        if not ours or route.kind != nl.RTN_UNREACHABLE or route.table != nl.RT_TABLE_MAIN:
            continue
        if node and (route.destination, route.metric) in standing_routes(node.subnet):
            continue
        if length == 64 and base[:8] in used:
            continue
        what = f"route del unreachable {format_prefix(route.destination)} metric {route.metric}"
        yield (
            Change("old route", f"ip -6 {what} proto {marks.PROTOCOL}"),
            nl.route(
                nl.RTM_DELROUTE,
                what,
                route.destination,
                (nl.RTA_PRIORITY, route.metric),
                protocol=marks.PROTOCOL,
                type_=nl.RTN_UNREACHABLE,
            ),
        )


def _drop_proxy(proxy: nodestate.Proxy) -> nl.Message:
    body = nl.NDMSG.pack(nl.AF_INET6, proxy.link, 0, nl.NTF_PROXY, 0)
    attributes = nl.encode(((nl.NDA_DST, proxy.address),))
    return nl.Message(RTM_DELNEIGH, 0, body + attributes, "delete proxy entry")


def _proxy_switches(bridge: str) -> list[tuple[str, str]]:
    """Pods of older plugins ask for the node's address on the bridge. Without a delay of 0 the
    kernel would let them wait for up to 0.8 s (RFC 4861, section 7.2.8)."""
    return [
        (sysctl.conf(bridge, "proxy_ndp"), "1"),
        (f"neigh/{bridge}/proxy_delay", "0"),
    ]


def _read(switch: str) -> str:
    try:
        return sysctl.get(switch)
    except OSError:
        return ""


def refused(error: OSError) -> str:
    """A line for what the kernel refused."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{reason}: run it as root (or with CAP_NET_ADMIN)"
    if error.errno == errno.EROFS:
        return f"{error.filename}: read-only; run it in the host, or with /proc/sys writable"
    return f"{error.filename}: {reason}" if error.filename else reason


def await_interface(make_state: Callable[[], State], within_s: float) -> State:
    """The state of the node as soon as its interface can be used.

    Raises ToolError when that takes longer, or waiting will not help.
    """
    deadline = time.monotonic() + within_s
    while True:
        state = make_state()
        try:
            subnet.find(state.host, state.interface_config)
        except CniError as error:
            if error.code != TRY_AGAIN_LATER or time.monotonic() > deadline:
                waited = f" (waited {within_s:g} s)" if within_s else ""
                raise ToolError(error.msg + waited) from error
            time.sleep(POLL_S)
        else:
            return state


# Units


def unit_texts(executable: str) -> dict[str, str]:
    """The shipped files by the path where they belong, for an executable in this place."""
    share = resources.files("mycelium_ctl") / "share"
    return {
        path: (share / name).read_text().replace(_SHIPPED_PATH, executable)
        for name, path in UNITS.items()
    }


def install_units(root: Path, executable: str) -> list[Path]:
    """Write those files that this node has a use for; what was written.

    Raises ToolError where it cannot be.
    """
    written = []
    for name, text in unit_texts(executable).items():
        path = root / name
        # Nobody wants /etc/zinit on a machine with systemd.
        wanted = root / Path(*Path(name).parts[:2])
        if not wanted.is_dir() or (path.is_file() and path.read_text() == text):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolError(f"cannot make {path.parent}: {refused(error)}") from error
        files.write(path, text)
        written.append(path)
    return written


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="print the changes, make none")
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="for the interface (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    units = parser.add_mutually_exclusive_group()
    units.add_argument("--print-units", action="store_true", help="print all shipped files")
    units.add_argument("--install-units", action="store_true", help="write those of use here")
    nodestate.add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the node; 0 when nothing lacks, or, with --dry-run, when it could be told what."""
    where = nodestate.options(arguments)
    if arguments.print_units:
        from mycelium_lab.lab import own_executable

        for path, text in unit_texts(own_executable()).items():
            print(f"# /{path}\n{text}")
        return 0
    if arguments.install_units:
        return _install(where.root, as_json=arguments.json)

    state = await_interface(lambda: State(where), arguments.wait)
    try:
        preparation = Preparation(state)
    except CniError as error:
        raise ToolError(error.msg) from error
    if preparation.changes and not arguments.dry_run:
        preparation.apply()
        required = preparation.wanted.policy.required
        left = [c for c in Preparation(State(where)).changes if c.name != GUARD or required]
        if left:
            raise ToolError(f"done, and yet something lacks: {left[0].command}")
    _report(preparation, dry_run=arguments.dry_run, as_json=arguments.json)
    return 0


def _report(preparation: Preparation, *, dry_run: bool, as_json: bool) -> None:
    changes, state, node = preparation.changes, preparation.state, preparation.node
    stranded = [one for one in state.attachments if one.subnet not in (node.subnet, b"")]
    if as_json:
        document = {
            "mode": "bridge" if node.bridged else "routed",
            "interface": state.config.interface,
            "address": format_address(node.address),
            "subnet": nodestate.show_subnet(node.subnet),
            "changed": bool(changes) and not dry_run,
            "changes": [{"name": c.name, "command": c.command} for c in changes],
            "stranded": [one.who for one in stranded],
        }
        print(json.dumps(document, indent=2))
        return
    for change in changes:
        print(f"{visible(change.command)}  # {change.name}")
    mode = "bridge" if node.bridged else "routed"
    summary = f"{mode} mode, subnet {nodestate.show_subnet(node.subnet)}"
    if not changes:
        print(f"nothing to do: the node is ready ({summary})")
    elif dry_run:
        print(f"# {count(len(changes), 'change')} to make, none made ({summary})")
    else:
        print(f"# {count(len(changes), 'change')} made, the node is ready ({summary})")
    if stranded:
        names = ", ".join(visible(one.who) for one in stranded[:5])
        more = " …" if len(stranded) > 5 else ""
        print(
            f"# the daemon's key has changed under {count(len(stranded), 'live pod')}: "
            f"delete {names}{more} to get {'it' if len(stranded) == 1 else 'them'} new addresses"
        )


def _install(root: Path, *, as_json: bool) -> int:
    from mycelium_lab.lab import own_executable

    written = install_units(root, own_executable())
    if as_json:
        print(json.dumps({"written": [str(path) for path in written]}, indent=2))
        return 0
    page = Page()
    for path in written:
        page.say(f"written: {path}")
    if not written:
        page.say("nothing to do: every file is in place")
    elif root == Path("/") and os.path.isdir("/run/systemd/system"):  # noqa: PTH112
        page.say("now run: systemctl daemon-reload; systemctl enable --now mycelium-cni-setup")
    return 0
