# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a node, one function each: what was found, why it matters, what mends it.

`doctor` runs all of them, `status` those that fit on a screen. A check reads the node's state and
changes nothing; one that can be mended without harm brings the function that does it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mycelium_cni import guard as guards
from mycelium_cni.cni.errors import CniError, __version__
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import netns, sysctl
from mycelium_cni.kernel.address import format_address, format_prefix
from mycelium_cni.kernel.facts import Fact, Switch
from mycelium_cni.kernel.snapshot import Snapshot
from mycelium_cni.node import marks, prepare, subnet
from mycelium_cni.overlay import MYCELIUM, on_mycelium
from mycelium_ctl import programs, units
from mycelium_ctl.commands.gc import find_gone
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node import conflist
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.expected import Expected, Guard
from mycelium_ctl.node.state import Attached, ConfDir, State
from mycelium_ctl.view import Mark, count

BRIDGE_PORTS: Final = 1023  # net/bridge/br_private.h, BR_MAX_PORTS, less port 0
NEARLY: Final = 0.8  # of a limit


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw. `mend` is a command or an instruction, empty when nothing is wrong."""

    mark: Mark
    found: str
    mend: str = ""
    fix: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A named check; `needed`: when it fails, ADD would."""

    name: str
    why: str
    look: Callable[[State], Finding]
    needed: bool = False


def ok(found: str) -> Finding:
    return Finding("ok", found)


# The daemon and its interface


def daemon(state: State) -> Finding:
    name = state.config.interface
    if state.interface is None:
        others = [
            link.name
            for link in state.links
            if link.kind == "tun"
            and any(a.link == link.index and a.prefixlen == MYCELIUM[1] for a in state.addresses)
        ]
        if others:
            return Finding(
                "fail",
                f"there is no interface {name}, but {others[0]} looks like the daemon's",
                f'set "myceliumInterface": "{others[0]}" in the network configuration',
            )
        return Finding(
            "fail",
            f"no interface {name}: the Mycelium daemon is not running",
            "systemctl enable --now mycelium; journalctl -u mycelium",
        )
    if state.process is None:
        return Finding("skip", f"{name} is there, its daemon is not to be seen from here")
    version = f" {state.version}" if state.version else ""
    return ok(f"Mycelium{version} runs as process {state.process}")


def interface(state: State) -> Finding:
    try:
        node = subnet.find(state.host, state.interface_config)
    except CniError as error:
        return Finding("fail", error.problem, error.run or error.advice)
    link = state.interface
    if link is None or link.kind != "tun":
        kind = f"a {link.kind}" if link and link.kind else "no TUN"
        return Finding(
            "warn",
            f"{state.config.interface} is {kind}: no Mycelium daemon made it",
            "start the daemon, or name its interface with myceliumInterface",
        )
    if link.persistent:
        return Finding(
            "warn",
            f"{link.name} is a persistent TUN: the daemon fails to start a second time",
            f"ip tuntap del {link.name} mode tun; systemctl restart mycelium",
        )
    return ok(f"{link.name} up, {format_address(node.address)}, MTU {link.mtu}")


def api(state: State) -> Finding:
    answers = state.daemon
    if answers.subnet is None:
        reason = answers.trouble or "it tells no subnet"
        return Finding("skip", f"no answer at {state.where.api} ({reason}): peers are unknown")
    own = nodestate.show_subnet(state.address[:8]) if state.address else None
    if own and answers.subnet != own:
        return Finding(
            "warn",
            f"{state.where.api} is of another daemon: its subnet is {answers.subnet}",
            "name this daemon's API with --api",
        )
    return ok(f"answers at {state.where.api}, subnet {answers.subnet}")


def peers(state: State) -> Finding:
    answers = state.daemon
    if answers.peers is None:
        return Finding("skip", "unknown: the daemon's API does not tell")
    routes = count(len(answers.routes or ()), "route")
    total = len(answers.peers)
    if not total:
        return Finding(
            "fail",
            "the daemon has no peers: pods reach this node only",
            "start it with --peers tcp://ADDRESS:9651, and let TCP 9651 out",
        )
    if not answers.alive_peers:
        return Finding(
            "fail",
            f"none of {count(total, 'peer')} is connected, such as {answers.peers[0].endpoint}",
            "is TCP 9651 let out? journalctl -u mycelium",
        )
    return ok(f"{answers.alive_peers} of {total} connected, {routes}")


def api_exposed(state: State) -> Finding:
    import ipaddress

    _, _, own = state.where.api.rpartition(":")
    ports = {8989, 8990} | ({int(own)} if own.isdecimal() else set())
    for address, port in nodestate.read_listeners():
        ip = ipaddress.ip_address(address)
        mapped = getattr(ip, "ipv4_mapped", None) or ip
        if port in ports and not mapped.is_loopback:
            where = "every address" if mapped.is_unspecified else str(mapped)
            flag = "--jsonrpc-addr" if port == 8990 else "--api-addr"
            return Finding(
                "fail",
                f"port {port} is open on {where}: whoever reaches it can steer the daemon",
                f"start the daemon with {flag} 127.0.0.1:{port}",
            )
    return ok("only programs on this node reach it")


def identity(state: State) -> Finding:
    if state.address is None:
        return Finding("skip", "the interface has no address yet")
    config = state.config
    if not state.bridged:
        return Finding("skip", "routed mode goes by the interface alone")
    try:
        subnet.agree_with_key(config, state.address)
    except CniError as error:
        return Finding("fail", error.problem, _one_key(state))
    bridge = state.bridge
    for one in state.addresses:
        other = bridge and one.link == bridge.index and on_mycelium(one.address)
        if other and one.address[:8] != state.address[:8]:
            return Finding(
                "fail",
                f"{config.bridge_name} has {format_address(one.address)}, the interface's subnet "
                f"is {nodestate.show_subnet(state.address[:8])}: the daemon's key has changed",
                "mycelium-cni setup",
                _setup(state),
            )
    if not Path(config.netseed).exists():
        return ok(f"bridge and interface agree; there is no {config.netseed}")
    if exposed := subnet.key_exposure(config.netseed):
        return Finding(
            "warn",
            f"{config.netseed} is the node's secret, and {exposed}",
            f"chmod 0600 {config.netseed}; chown root {config.netseed}",
        )
    return ok(f"key, bridge and interface are of {nodestate.show_subnet(state.address[:8])}")


def _one_key(state: State) -> str:
    return (
        f"restart the daemon with --key-file {state.config.netseed}, or point netseed in the "
        "network configuration to the key it uses"
    )


def stranded(state: State) -> Finding:
    lost = state.stranded
    if lost:
        return Finding(
            "fail",
            f"{count(len(lost), 'pod has', 'pods have')} addresses of an old subnet: "
            + _names(lost),
            "delete them: their successors get new addresses, and keep the daemon's key file",
        )
    return ok(f"{count(len(state.attachments), 'pod')}, none with an address of another subnet")


# The node


def ipv6(state: State) -> Finding:
    for name in ("all", "default", "lo"):
        if nodestate.switch(name, "disable_ipv6") == "1":
            knob = sysctl.conf(name, "disable_ipv6")
            return Finding(
                "fail",
                f"net.ipv6.conf.{name}.disable_ipv6 is 1",
                sysctl.command(knob, "0"),
                partial(sysctl.put, knob, "0"),
            )
    if not nodestate.switch("all", "forwarding"):
        return Finding("fail", "this kernel runs without IPv6", "boot without ipv6.disable=1")
    return ok("IPv6 is on")


def forwarding(state: State) -> Finding:
    if nodestate.switch("all", "forwarding") == "1":
        return ok("on")
    if not state.attachments:
        return Finding("warn", "off: the first pod switches it on", "mycelium-cni setup")
    return Finding(
        "fail",
        "off, with pods attached: somebody has reset net.ipv6.conf.all.forwarding",
        "mycelium-cni setup",
        _setup(state),
    )


def ra_routes(state: State) -> Finding:
    risky = prepare.links_at_risk(state.host)
    if not risky:
        return ok("none that forwarding could cost")
    forwards = nodestate.switch("all", "forwarding") == "1"
    when = "at its next change of forwarding" if forwards else "when forwarding is switched on"
    return Finding(
        "fail" if forwards else "warn",
        f"{risky[0]} has routes from router advertisements and accept_ra=1: lost {when}",
        sysctl.command(sysctl.conf(risky[0], "accept_ra"), "2"),
        partial(_keep_ra, risky),
    )


def _keep_ra(links: list[str]) -> None:
    for link in links:
        sysctl.put(sysctl.conf(link, "accept_ra"), "2")


def mtu(state: State) -> Finding:
    link = state.interface
    if link is None:
        return Finding("skip", "there is no interface yet")
    for one in state.attachments:
        if one.answers and one.pod_mtu != one.link.mtu:
            return Finding(
                "fail",
                f"{one.who}: {one.link.mtu} bytes on {one.link.name}, {one.pod_mtu} in the pod",
                f"ip link set {one.link.name} mtu {one.pod_mtu}, or delete the pod",
            )
        if one.link.mtu > link.mtu:
            return Finding(
                "warn",
                f"{one.who} has {one.link.mtu} bytes, {link.name} carries {link.mtu}",
                f"remove mtu from the network configuration, or set {link.mtu}; then delete it",
            )
    return ok(f"{link.mtu} bytes, and so for all pods")


def bridge(state: State) -> Finding:
    name, link = state.config.bridge_name, state.bridge
    if not state.bridged:
        return Finding("skip", "routed mode needs none")
    if link is None:
        return Finding(
            "warn",
            f"there is no {name}: the first pod makes it",
            "mycelium-cni setup",
            _setup(state),
        )
    if link.kind != "bridge":
        return Finding(
            "fail",
            f"{name} is {link.kind or 'hardware'}, not a bridge",
            f"ip link set {name} name other0; mycelium-cni setup --mode bridge",
        )
    gateway = state.address[:8] + bytes(7) + b"\x01" if state.address else b""
    has = any(a.link == link.index and a.address == gateway for a in state.addresses)
    if not link.up or (gateway and not has):
        lacks = "is down" if not link.up else f"lacks {format_address(gateway)}"
        return Finding(
            "fail",
            f"{name} {lacks}: was it made before the daemon was ready?",
            "mycelium-cni setup",
            _setup(state),
        )
    return ok(f"{name} up" + (f", {format_address(gateway)}/64" if gateway else ""))


def bridge_ports(state: State) -> Finding:
    link = state.bridge
    if not state.bridged or link is None:
        return Finding("skip", "routed mode has no such limit")
    ports = sum(one.master == link.index for one in state.links)
    found = f"{ports} of {BRIDGE_PORTS} ports of {link.name} are taken"
    if ports < NEARLY * BRIDGE_PORTS:
        return ok(found)
    mend = 'new pods with "mode": "routed", or fewer pods on this node (kubelet --max-pods)'
    return Finding("fail" if ports >= BRIDGE_PORTS else "warn", found, mend)


def standing(state: State) -> Finding:
    if state.address is None:
        return Finding("skip", "the interface has no address yet")
    try:
        expected = Expected(state)
    except (CniError, ToolError) as error:
        return Finding("skip", f"cannot be said before the rest is mended ({error})")
    # Those have checks of their own.
    lacking = [f for f in expected.absent if not isinstance(f, Guard) and not _switched_on(f)]
    if not lacking and not expected.stale:
        return ok("the node has all that setup makes")
    found = "; ".join(dict.fromkeys([fact.why for fact in [*expected.stale, *lacking]]))
    return Finding("warn", f"lacking: {found}", "mycelium-cni setup", _setup(state))


def _switched_on(fact: Fact) -> bool:
    return isinstance(fact, Switch) and fact.path.endswith(("/forwarding", "/accept_ra"))


def guard(state: State) -> Finding:
    """As STATUS looks at it: before the node is prepared there is nothing to guard."""
    node = state.node
    if node is None:
        return Finding("skip", "the interface has no address yet")
    wanted = guards.Wanted(state.network, state.config, node)
    wrong = guards.fault(state.host, wanted)
    required = wanted.policy.required
    if not wrong:
        try:
            outdated = guards.outdated(wanted)
        except OSError:
            outdated = False
        if outdated and state.attachments:
            return Finding(
                "warn",
                "up, with other rules than the configuration's: the next ADD brings them",
                "mycelium-cni setup",
                _setup(state),
            )
        return ok(f"up, ingress {wanted.policy.ingress}")
    lo = state.link("lo")
    prepared = any(lo and a.link == lo.index and a.address == node.address for a in state.addresses)
    if not prepared and not state.attachments:
        return Finding(
            "warn", "not up: the first pod loads it", "mycelium-cni setup", _setup(state)
        )
    mark: Mark = "fail" if required else "warn"
    return Finding(mark, f"down: {wrong}", "mycelium-cni setup", _setup(state))


def overlay_routes(state: State) -> Finding:
    names = {link.index: link.name for link in state.links}
    ours = {link.index for link in (state.interface, state.bridge) if link}
    for route in state.routes:
        base, length = route.destination
        inside = on_mycelium(base) and MYCELIUM[1] <= length <= 64
        if not inside or route.kind != nl.RTN_UNICAST or route.link in ours:
            continue
        if route.table != nl.RT_TABLE_MAIN:
            continue
        name = names.get(route.link, "?")
        return Finding(
            "fail",
            f"{format_prefix(route.destination)} also goes to {name}: a second daemon?",
            f"stop what made {name}, or: ip -6 route del {format_prefix(route.destination)} "
            f"dev {name}",
        )
    return ok(f"only {state.config.interface} leads to {format_prefix(MYCELIUM)}")


def pod_routes(state: State) -> Finding:
    """A daemon inside a pod makes a 400::/7 of its own there, and the pod falls silent."""
    looked = 0
    for one in state.attachments:
        with_routes = _in_pod(state, one, lambda pod: Snapshot(pod).routes)
        if with_routes is None:
            continue
        looked += 1
        for route in with_routes:
            base, length = route.destination
            inside = on_mycelium(base) and MYCELIUM[1] <= length < 128
            if not inside or route.table != nl.RT_TABLE_MAIN or route.kind != nl.RTN_UNICAST:
                continue
            if route.link != one.link.peer:
                return Finding(
                    "fail",
                    f"{one.who} has a second route to {format_prefix(route.destination)}: "
                    "does a Mycelium daemon run in the pod?",
                    "remove that daemon: the node's serves all pods",
                )
    return ok(f"{count(looked, 'pod')} looked into, none has a second way to the overlay")


def _in_pod(state: State, one: Attached, read: Callable[[nl.Socket], Any]) -> Any:
    """What `read` finds in the pod's namespace; None if that cannot be entered from here."""
    held = state.netns.get(one.link.nsid if one.link.nsid is not None else -1)
    if held is None:
        return None
    home = netns.netns_of(state.host.fileno())
    try:
        there = held.open()
    except OSError:
        os.close(home)
        return None
    try:
        with netns.inside(there, home=home):
            socket = nl.Socket()
        try:
            return read(socket)
        finally:
            socket.close()
    except OSError:
        return None
    finally:
        os.close(there)
        os.close(home)


def pod_links(state: State) -> Finding:
    """What ADD made on the host's side is still there."""
    gone = find_gone(state) if state.silent else []
    if gone:
        return Finding(
            "fail",
            f"{count(len(gone), 'attachment')} without a pod: "
            + _names([g.attached for g in gone]),
            "mycelium-cni gc",
        )
    routed = {(route.destination, route.link) for route in state.routes}
    for one in state.attachments:
        link = one.link
        if not link.up:
            return Finding(
                "fail", f"{link.name} of {one.who} is down", f"ip link set {link.name} up"
            )
        if not any(":" in name for name in link.altnames):
            return Finding(
                "fail",
                f"{link.name} of {one.who} has lost its address (alternative name)",
                "delete the pod: its successor gets a new attachment",
            )
        if not link.master and (_host_route(one), link.index) not in routed:
            return Finding(
                "fail",
                f"the node has lost its route to {one.who}: does systemd-networkd remove it?",
                f"ip -6 route add {one.address}/128 dev {link.name} proto 77; "
                "mycelium-cni setup --install-units",
                partial(_restore_routes, state, routed),
            )
    return ok(f"{count(len(state.attachments), 'pod')}, all links, routes and names in place")


def _restore_routes(state: State, there: set[tuple[tuple[bytes, int], int]]) -> None:
    """Give the node back its routes to pods, as ADD made them (datapath.route_to_pod)."""
    for one in state.attachments:
        if one.link.master or (_host_route(one), one.link.index) in there:
            continue
        source: list[nl.Attribute] = []
        if state.address and one.subnet == state.address[:8]:
            source = [(nl.RTA_PREFSRC, state.address)]
        state.host.ensure(
            nl.route(
                nl.RTM_NEWROUTE,
                f"add route {one.address} dev {one.link.name}",
                _host_route(one),
                (nl.RTA_OIF, one.link.index),
                *source,
                protocol=marks.PROTOCOL,
            )
        )


def _host_route(one: Attached) -> tuple[bytes, int]:
    import socket

    return socket.inet_pton(socket.AF_INET6, one.address), 128


def route_limit(state: State) -> Finding:
    try:
        limit = int(sysctl.get("route/max_size"))
    except (OSError, ValueError):
        return Finding("skip", "this kernel has no such limit")
    used = len(state.routes)
    if used >= NEARLY * limit:
        return Finding(
            "fail",
            f"{used} of {limit} IPv6 routes are used",
            "sysctl -w net.ipv6.route.max_size=2147483647",
            lambda: sysctl.put("route/max_size", "2147483647"),
        )
    return ok(f"{used} of {limit} IPv6 routes")


def neighbour_limit(state: State) -> Finding:
    proc = state.where.root / "proc"
    try:
        limit = int((proc / "sys/net/ipv6/neigh/default/gc_thresh3").read_text())
        used = int((proc / "net/stat/ndisc_cache").read_text().split("\n")[1].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return Finding("skip", "only the machine's first network namespace shows it")
    if used >= NEARLY * limit:
        return Finding(
            "fail",
            f"{used} of {limit} IPv6 neighbours are known: the table of all namespaces is full",
            "sysctl -w net.ipv6.neigh.default.gc_thresh3=16384",
        )
    return ok(f"{used} of {limit} IPv6 neighbours")


def firewall(state: State) -> Finding:
    try:
        listed = programs.run(["nft", "-j", "list", "ruleset"]).stdout
        rules = json.loads(listed)["nftables"] if listed else []
    except FileNotFoundError:
        return Finding("skip", "nft is not installed: the rules cannot be read")
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return Finding("skip", "the rules cannot be read")
    for chain in (item["chain"] for item in rules if "chain" in item):
        if chain.get("hook") != "forward" or chain["family"] not in ("inet", "ip6"):
            continue
        if chain["table"] == guards.TABLE_NAME:
            continue  # it drops what it should
        inside = [r["rule"] for r in rules if "rule" in r and r["rule"]["table"] == chain["table"]]
        own = [rule for rule in inside if rule["chain"] == chain["name"]]
        # A rule that names our links lets them pass, or was made by someone who knows of them.
        drops = chain.get("policy") == "drop" or (own and _refuses_all(own[-1]))
        if drops and not any(word in json.dumps(inside) for word in ('"myc', '"400::')):
            place = f"{chain['family']} {chain['table']} {chain['name']}"
            if chain["family"] == "ip6" and chain["table"] == "filter":
                mend = "; ".join(
                    f"ip6tables -I FORWARD {way} myc+ -j ACCEPT" for way in ("-i", "-o")
                )
            else:
                mend = "; ".join(
                    f"nft insert rule {place} {way} 'myc*' accept" for way in ("iifname", "oifname")
                )
            return Finding("fail", f"chain {place} drops what is forwarded", mend)
    return ok("no chain drops what is forwarded")


def _refuses_all(rule: dict[str, Any]) -> bool:
    words = {word for expression in rule["expr"] for word in expression}
    return words <= {"counter", "log", "drop", "reject"} and bool(words & {"drop", "reject"})


def managers(state: State) -> Finding:
    """systemd-networkd and NetworkManager keep off what they were told to keep off."""
    root = state.where.root
    lacking = []
    for running, wanted, name in (
        ("run/systemd/netif", ("networkd.network", "networkd.conf"), "systemd-networkd"),
        ("run/NetworkManager", ("NetworkManager.conf",), "NetworkManager"),
    ):
        if (root / running).is_dir():
            missing = [path for path in wanted if not (root / units.UNITS[path]).is_file()]
            lacking += [name] if missing else []
    if lacking:
        from mycelium_lab.lab import own_executable

        return Finding(
            "warn",
            f"{' and '.join(lacking)} may take routes and addresses of pods away",
            "mycelium-cni setup --install-units",
            lambda: units.install(root, own_executable()),
        )
    return ok("no other program manages our links")


# What the runtime finds


def conf(state: State) -> Finding:
    """A configuration of ours counts in every directory that matters."""
    good = []
    for directory in state.confs:
        winner, ours = directory.winner, directory.ours
        folder = directory.dirs.conf
        if winner and not winner.valid:
            return Finding(
                "fail",
                f"{winner.path} comes first and is invalid: the runtime loads nothing",
                f"mycelium-cni config check {winner.path}",
            )
        if winner and ours and (winner is ours or directory.by_multus):
            by = "" if winner is ours else f", called by {winner.path.name}"
            good.append(f"{ours.path} counts{by}")
        elif winner and ours:
            return Finding(
                "fail",
                f"{winner.path} ({', '.join(winner.types)}) comes before {ours.path.name}",
                f"mv {ours.path} {folder}/{_earlier(winner.path.name)}",
            )
        elif winner and directory.by_multus:
            good.append(f"{winner.path} counts, and may call ours")
        elif winner:
            kinds = ", ".join(winner.types)
            return Finding(
                "fail",
                f"{winner.path} ({kinds}) decides, and it does not call mycelium-cni",
                f"mycelium-cni config new --output {folder}/{_earlier(winner.path.name)}",
            )
        elif directory.dirs.whose.startswith("k3s"):
            return Finding(
                "fail", f"k3s finds nothing in {folder}", _conf_for_k3s(state, directory)
            )
    if good:
        return ok("; ".join(good))
    folder = state.confs[0].dirs.conf
    return Finding(
        "fail",
        f"no network configuration in {folder}",
        f"mycelium-cni config new --output {folder}/10-mycelium.conflist",
    )


def _conf_for_k3s(state: State, k3s: ConfDir) -> str:
    target = f"{k3s.dirs.conf}/10-mycelium.conflist"
    for other in state.confs:
        if other.ours:
            return f"cp {other.ours.path} {target}"
    return f"mycelium-cni config new --for k3s --output {target}"


def _earlier(name: str) -> str:
    """A file name that sorts before this one."""
    for usual in ("10-mycelium.conflist", "00-mycelium.conflist"):
        if usual < name:
            return usual
    return "00-" + "0" * len(name) + "-mycelium.conflist" if name > "00-0" else "!mycelium.conflist"


def conf_valid(state: State) -> Finding:
    files = [conf for directory in state.confs for conf in directory.files]
    for one in files:
        for fault in one.faults:
            if fault.fatal:
                command = f"mycelium-cni config check {one.path}"
                mend = f"{command} shows the valid form" if one.better else fault.mend
                return Finding("fail", f"{one.path}, line {fault.line}: {fault.what}", mend)
    if not files:
        return Finding("skip", "there is no file to check")
    for one in files:
        for fault in one.faults:
            where = f"{one.path}, line {fault.line}"
            return Finding("warn", f"{where}: {fault.what}", fault.mend)
    return ok(f"{count(len(files), 'file')}, all valid")


def plugin(state: State) -> Finding:
    """The executable that the runtime would start is there, whole, and of this version."""
    seen = []
    for directory in _used(state):
        path = nodestate.find_executable(conflist.TYPE, directory.dirs)
        folder = directory.dirs.bins[0]
        if path is None:
            return Finding("fail", f"there is no {folder}/{conflist.TYPE}", _copy_to(folder))
        if not os.access(path, os.X_OK):
            return Finding("fail", f"{path} is not executable", f"chmod 755 {path}")
        if doubt := programs.doubt(path):
            return Finding(
                "warn",
                f"{path} is not asked for its version: {doubt}, and root runs it for every pod",
                "let it and the directories above belong to root, and be writable by root alone",
            )
        problem = _broken(path)
        if problem:
            return Finding("fail", f"{path} {problem}", _copy_to(path.parent))
        version = _tool_version(path)
        if version != __version__:
            what = f"is of version {version}" if version else "is not this program"
            return Finding("warn", f"{path} {what}, this is {__version__}", _copy_to(path.parent))
        seen.append(str(path))
    return ok(f"{', '.join(dict.fromkeys(seen))} is of version {__version__}")


def _copy_to(folder: Path) -> str:
    """The command that puts this program there; `install` does not write over a file that runs."""
    from mycelium_lab.lab import own_executable

    return shlex.join(["install", "-m", "755", own_executable(), str(folder / conflist.TYPE)])


def _used(state: State) -> list[ConfDir]:
    """The directories with a configuration of ours; the first one when none has."""
    return [one for one in state.confs if one.ours] or state.confs[:1]


def _broken(path: Path) -> str:
    """Why an executable is not a CNI plugin; "" if it answers as one."""
    try:
        done = programs.run([str(path)], {"CNI_COMMAND": "VERSION"}, '{"cniVersion": "1.0.0"}')
        known = json.loads(done.stdout)["supportedVersions"]
    except subprocess.TimeoutExpired:
        return f"does not answer within {programs.WITHIN_S:g} s"
    except OSError as error:
        return f"cannot be started ({error.strerror}): is it complete?"
    except (ValueError, KeyError, TypeError):
        return "answers no VERSION: is it complete?"
    return "" if isinstance(known, list) else "answers no VERSION: is it complete?"


def _tool_version(path: Path) -> str:
    """What `mycelium-cni --version` says; "" for the Go plugins of the same name."""
    try:
        words = programs.run([str(path), "--version"]).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return words[1] if len(words) == 2 and words[0] == conflist.TYPE else ""


def chain(state: State) -> Finding:
    """The other executables that the runtime needs: loopback, and the rest of the chain."""
    for directory in _used(state):
        wanted = {"loopback": "containerd and CRI-O before 2.0 call it for every pod"}
        for kind in directory.ours.types if directory.ours else ():
            wanted[kind] = "the chain names it"
        for name, reason in wanted.items():
            if name == conflist.TYPE:
                continue
            if nodestate.find_executable(name, directory.dirs) is None:
                folder = directory.dirs.bins[0]
                return Finding(
                    "fail",
                    f'failed to find plugin "{name}" in {folder}: {reason}',
                    f"install the CNI plugins (containernetworking/plugins) into {folder}",
                )
    return ok("loopback and all of the chain are there")


# Together


def _names(attached: list[Attached]) -> str:
    shown = ", ".join(one.who for one in attached[:3])
    return f"{shown} …" if len(attached) > 3 else shown


def _setup(state: State) -> Callable[[], object]:
    return lambda: Expected(State(state.where)).make()


CHECKS: Final = (
    Check("daemon", "it makes the interface, and carries every packet", daemon, needed=True),
    Check("interface", "the node's subnet is read off it", interface, needed=True),
    Check("api", "optional: it tells of peers and routes", api),
    Check("peers", "without a peer there is no overlay", peers),
    Check("api-exposed", "the API asks nobody for a password", api_exposed),
    Check("identity", "pods of another subnet than the daemon's are deaf", identity, needed=True),
    Check("subnet", "the overlay delivers only to the daemon's own subnet", stranded),
    Check("ipv6", "the overlay is IPv6, and the daemon cannot start without", ipv6, needed=True),
    Check("forwarding", "without it packets of pods are dropped in silence", forwarding),
    Check("ra-routes", "the node would lose its default route", ra_routes),
    Check("mtu", "larger packets vanish: TLS and uploads hang", mtu),
    Check("bridge", "pods hang on it, and have their gateway there", bridge, needed=True),
    Check("bridge-ports", "the kernel refuses further ports", bridge_ports, needed=True),
    Check("groundwork", "while the daemon is away packets would leave in clear", standing),
    Check("guard", "peers and pods could send what is not theirs to send", guard, needed=True),
    Check("overlay-routes", "two ways to the overlay: answers go astray", overlay_routes),
    Check("pod-routes", "a daemon in a pod takes the pod off the overlay", pod_routes),
    Check("pod-links", "ADD made them; others may have removed them", pod_links),
    Check("route-limit", "then all pods get 'network unreachable' at once", route_limit),
    Check("neighbour-limit", "then new connections fail with 'no buffer space'", neighbour_limit),
    Check("firewall", "pods are reached by forwarding only", firewall),
    Check("managers", "they remove what they do not know when they restart", managers),
    Check("conf", "the runtime takes the first file of its directory", conf, needed=True),
    Check("conf-valid", "one broken file keeps containerd from loading any", conf_valid),
    Check("plugin", "the runtime starts it for every pod", plugin, needed=True),
    Check("chain", "one missing executable, and no pod starts", chain, needed=True),
)


NAMES: Final = tuple(check.name for check in CHECKS)


def examine(state: State, wanted: Collection[str] = NAMES) -> Iterator[tuple[Check, Finding]]:
    """Run the checks; one that the kernel refuses an answer is skipped, and says so."""
    for check in CHECKS:
        if check.name not in wanted:
            continue
        try:
            yield check, check.look(state)
        except OSError as error:
            yield check, Finding("skip", f"cannot be read: {refused(error)}")
