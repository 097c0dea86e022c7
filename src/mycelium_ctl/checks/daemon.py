# SPDX-License-Identifier: Apache-2.0
"""The daemon, its interface, its peers and its identity."""

from __future__ import annotations

from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop

from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel.address import format_address
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.node import subnet
from mycelium_cni.overlay import MYCELIUM, on_mycelium
from mycelium_ctl.checks.finding import Finding, names, of_error, ok, own, skip
from mycelium_ctl.node import state as nodestate
from mycelium_ctl.node.daemon import read_listeners
from mycelium_ctl.node.expected import Expected
from mycelium_ctl.node.state import State
from mycelium_ctl.view import count


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
            "if that does not start it: journalctl -u mycelium",
            run=("systemctl enable --now mycelium",),
        )
    if state.process is None:
        return skip(f"{name} exists, its daemon is not visible from here")
    version = f" {state.version}" if state.version else ""
    return ok(f"Mycelium{version} runs as process {state.process}")


def interface(state: State) -> Finding:
    try:
        node = subnet.find(state.host, state.interface_config)
    except CniError as error:
        return of_error("fail", error)
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
            f"{link.name} is a persistent TUN: the daemon fails to start a second time"
            + ("" if link.owned else ", and while it is away any user of this node can take it"),
            run=(f"ip tuntap del {quoted(link.name)} mode tun", "systemctl restart mycelium"),
        )
    return ok(f"{link.name} up, {format_address(node.address)}, MTU {link.mtu}")


def api(state: State) -> Finding:
    answers = state.daemon
    if answers.subnet is None:
        reason = answers.trouble or "it gives no subnet"
        if answers.hangs and state.process is not None:
            return Finding(
                "fail",
                f"the daemon listens at {state.where.api} and does not answer: it hangs",
                "journalctl -u mycelium shows what it did last",
                run=("systemctl restart mycelium",),
            )
        return skip(f"no answer at {state.where.api} ({reason}): peers are unknown")
    own = nodestate.show_subnet(state.address[:8]) if state.address else None
    if own and answers.subnet != own:
        return Finding(
            "warn",
            f"{state.where.api} belongs to another daemon: its subnet is {answers.subnet}",
            "name this daemon's API with --api",
        )
    return ok(f"answers at {state.where.api}, subnet {answers.subnet}")


def peers(state: State) -> Finding:
    answers = state.daemon
    if answers.peers is None:
        return skip("unknown: the daemon's API does not list them")
    routes = count(len(answers.routes or ()), "route")
    total = len(answers.peers)
    if not total:
        return Finding(
            "fail",
            "the daemon has no peers: pods reach this node only",
            "start it with --peers tcp://ADDRESS:9651, and allow outgoing TCP 9651",
        )
    if not answers.alive_peers:
        return Finding(
            "fail",
            f"none of {count(total, 'peer')} is connected, for example {answers.peers[0].endpoint}",
            "allow outgoing TCP 9651; the daemon's log says more: journalctl -u mycelium",
        )
    return ok(f"{answers.alive_peers} of {total} connected, {routes}")


def api_exposed(state: State) -> Finding:
    _, _, own = state.where.api.rpartition(":")
    ports = {8989, 8990} | ({int(own)} if own.isdecimal() else set())
    for address, port in read_listeners():
        if port in ports and not _is_loopback(address):
            family = AF_INET if len(address) == 4 else AF_INET6
            where = inet_ntop(family, address) if any(address) else "every address"
            flag = "--jsonrpc-addr" if port == 8990 else "--api-addr"
            return Finding(
                "fail",
                f"port {port} is open on {where}: anybody who reaches it controls the daemon",
                f"start the daemon with {flag} 127.0.0.1:{port}",
            )
    return ok("only programs on this node reach it")


def _is_loopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def identity(state: State) -> Finding:
    if state.address is None:
        return skip("the interface has no address yet")
    config = state.config
    if not state.bridged:
        return skip("routed mode uses the interface only")
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
                run=(own("setup"),),
                fix=lambda: Expected(State(state.where)).make(),
            )
    if not Path(config.netseed).exists():
        return ok(f"bridge and interface agree; there is no {config.netseed}")
    if exposed := subnet.key_exposure(config.netseed):
        return Finding(
            "warn",
            f"{config.netseed} is the node's secret, and {exposed}",
            run=(f"chmod 0600 {quoted(config.netseed)}", f"chown root {quoted(config.netseed)}"),
        )
    return ok(f"key, bridge and interface agree: {nodestate.show_subnet(state.address[:8])}")


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
            + names(lost),
            "delete them: new pods get new addresses; keep the daemon's key file",
        )
    return ok(f"{count(len(state.attachments), 'pod')}, none with an address of another subnet")
