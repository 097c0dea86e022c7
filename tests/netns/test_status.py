# SPDX-License-Identifier: Apache-2.0
"""STATUS: silent where ADD would work, else what is missing: code 51 if live pods are cut off too,
50 if not. It changes nothing, and is quick: a kubelet asks every few seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attaching import BRIDGE, Mode, attach, both_modes, network, reaches, refused, silent
from observe import difference, kernel_state, set_sysctl

from mycelium_lab.lab import Lab, Node, PluginCall

Broken = tuple[dict[str, Any], str]  # what the configuration adds, and what the error must name


def status(node: Node, mode: Mode, **keys: Any) -> PluginCall:
    return node.plugin("STATUS", network(mode, **keys))


def quietly(node: Node, call: Callable[[], PluginCall]) -> PluginCall:
    """A call that changes nothing."""
    before = kernel_state(node)
    outcome = call()
    assert difference(before, kernel_state(node)) == []
    return outcome


@both_modes
def test_a_node_that_can_serve_has_nothing_to_say(node: Node, mode: Mode) -> None:
    """Before its first pod, and afterwards."""
    silent(quietly(node, lambda: status(node, mode)))
    attached = attach(node, "pod", network(mode))
    silent(quietly(node, lambda: status(node, mode)))
    silent(attached.delete())
    silent(quietly(node, lambda: status(node, mode)))


def no_daemon(node: Node) -> Broken:
    node.stop_overlay()
    return {}, "failed to find interface mycelium"


def another_name(node: Node) -> Broken:
    return {"myceliumInterface": "myc7"}, "failed to find interface myc7"


def no_address(node: Node) -> Broken:
    node.ip("addr", "del", f"{node.overlay_address}/7", "dev", "mycelium")
    return {}, "no global IPv6 address found"


def interface_down(node: Node) -> Broken:
    node.ip("link", "set", "mycelium", "down")
    return {}, "ip link set mycelium up"


def not_on_the_overlay(node: Node) -> Broken:
    node.ip("addr", "del", f"{node.overlay_address}/7", "dev", "mycelium")
    node.ip("addr", "add", "2001:db8:3::1/64", "dev", "mycelium")
    return {}, "no global IPv6 address found"


AWAY = [no_daemon, another_name, no_address, interface_down, not_on_the_overlay]


@pytest.mark.parametrize("broken", AWAY, ids=lambda broken: broken.__name__)
@both_modes
def test_without_the_overlay_live_pods_suffer_too(
    node: Node, mode: Mode, broken: Callable[[Node], Broken]
) -> None:
    attach(node, "live", network(mode))
    keys, says = broken(node)
    refused(quietly(node, lambda: status(node, mode, **keys)), 51, says=says)
    # And ADD says the same, with a code that makes the runtime try again.
    pod = node.pod("new")
    refused(node.plugin("ADD", network(mode, **keys), pod), 11, says=says)


def two_addresses(node: Node) -> Broken:
    node.ip("addr", "add", "4aa:1:2:3::9/7", "dev", "mycelium")
    return {}, "4aa:1:2:3::9"


def loopback_down(node: Node) -> Broken:
    node.ip("link", "set", "lo", "down")
    return {}, "ip link set lo up"


def no_ipv6_on_loopback(node: Node) -> Broken:
    set_sysctl(node, "ipv6/conf/lo/disable_ipv6", "1")
    return {}, "lo"


EITHER = [two_addresses, loopback_down, no_ipv6_on_loopback]


@pytest.mark.parametrize("broken", EITHER, ids=lambda broken: broken.__name__)
@both_modes
def test_a_node_that_must_be_repaired_serves_no_new_pods(
    node: Node, mode: Mode, broken: Callable[[Node], Broken]
) -> None:
    keys, says = broken(node)
    refused(quietly(node, lambda: status(node, mode, **keys)), 50, says=says)
    pod = node.pod("new")
    before = kernel_state(node, pod)
    refused(node.plugin("ADD", network(mode, **keys), pod), 100, says=says)
    assert difference(before, kernel_state(node, pod)) == []


@both_modes
def test_settings_that_cannot_be_written_are_said_before_the_first_add(
    node: Node, mode: Mode, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    monkeypatch.setattr(node.lab, "command", argv)
    says = "Read-only file system: run it on the host, or with /proc/sys writable"
    refused(quietly(node, lambda: status(node, mode)), 50, says=says)
    pod = node.pod("new")
    refused(quietly(node, lambda: node.plugin("ADD", network(mode), pod)), 104, says=says)


def key_of_another(node: Node) -> Broken:
    path = node.lab.directory / "netseed"
    path.write_bytes(b"\x01" * 32)
    return {"netseed": str(path)}, "414:efbc:51e5:8f3f::/64"


def short_key(node: Node) -> Broken:
    path = node.lab.directory / "netseed"
    path.write_bytes(b"too short")
    return {"netseed": str(path)}, "9 bytes"


def key_that_is_a_folder(node: Node) -> Broken:
    return {"netseed": str(node.lab.directory)}, str(node.lab.directory)


def bridge_of_another_subnet(node: Node) -> Broken:
    # Without an address of the kernel's own, which would come when it pleases.
    node.configure(
        f"link add {BRIDGE} type bridge",
        f"link set {BRIDGE} addrgenmode none",
        f"link set {BRIDGE} up",
        f"address add 4aa:1:2:3::1/64 dev {BRIDGE} nodad",
    )
    return {}, "4aa:1:2:3::/64"


BRIDGED = [key_of_another, short_key, key_that_is_a_folder, bridge_of_another_subnet]


@pytest.mark.parametrize("broken", BRIDGED, ids=lambda broken: broken.__name__)
def test_sources_of_the_subnet_that_disagree_are_shown(
    node: Node, broken: Callable[[Node], Broken]
) -> None:
    keys, says = broken(node)
    refused(quietly(node, lambda: status(node, "bridge", **keys)), 50, says=says)
    pod = node.pod("new")
    before = kernel_state(node, pod)
    refused(node.plugin("ADD", network("bridge", **keys), pod), 100, says=says)
    assert difference(before, kernel_state(node, pod)) == []


def test_a_key_that_is_the_daemons_is_accepted_with_whatever_follows_it(node: Node) -> None:
    path = node.lab.directory / "netseed"
    path.write_bytes(node.key_file.read_bytes()[:32] + b"\nand more\n")
    silent(status(node, "bridge", netseed=str(path)))
    attached = attach(node, "pod", network("bridge", netseed=str(path)))
    assert reaches(node, attached.address)


def test_the_key_is_never_told(node: Node) -> None:
    """Neither in an error nor in the log."""
    secret = b"\x01" * 31 + b"Z"
    path: Path = node.lab.directory / "netseed"
    path.write_bytes(secret)
    log = node.lab.directory / "log"
    for verb in ("ADD", "STATUS"):
        conf = network("bridge", netseed=str(path), logLevel="debug", logFile=str(log))
        call = node.plugin(verb, conf, node.pod(verb.lower()))
        told = call.stdout + call.stderr + (log.read_text() if log.exists() else "")
        for form in (secret.hex(), repr(secret)[2:-1], "\\u0001\\u0001"):
            assert form not in told


@both_modes
def test_a_bridge_or_forwarding_yet_to_be_made_is_no_fault(node: Node, mode: Mode) -> None:
    """ADD makes them."""
    set_sysctl(node, "ipv6/conf/all/forwarding", "0")
    silent(status(node, mode))


@both_modes
def test_a_configuration_that_add_would_refuse_is_refused(node: Node, mode: Mode) -> None:
    refused(status(node, mode, mtu=1000), 7, says="mtu")


@both_modes
@pytest.mark.parametrize(
    ("action", "says"),
    [
        (("lookup", "52"), "do not leave by mycelium but by vpn0"),
        (("prohibit",), "do not leave by mycelium: ip -6 route get 4ff::1 from"),
    ],
    ids=["a VPN's table", "prohibited"],
)
def test_a_rule_that_leads_the_overlay_elsewhere_cuts_pods_off(
    node: Node, mode: Mode, action: tuple[str, ...], says: str
) -> None:
    node.configure("link add vpn0 type veth peer name vpn1")
    for link in ("vpn0", "vpn1"):
        node.configure(f"link set {link} up")
    node.configure("route add ::/0 dev vpn0 table 52")
    node.ip("-6", "rule", "add", "pref", "5270", "to", "400::/7", *action)
    refused(status(node, mode), 51, says=says)
    node.ip("-6", "rule", "del", "pref", "5270")
    silent(status(node, mode))


def test_status_does_not_ask_for_each_pod_of_the_node(command: list[str]) -> None:
    """A kubelet asks every five seconds."""
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        trace = lab.directory / "strace"
        strace = ["strace", "-qq", "-e", "trace=sendto,recvfrom,openat", "-o", str(trace)]

        def calls() -> int:
            env, conf = {"CNI_COMMAND": "STATUS"}, json.dumps(network())
            node.run([*strace, *command], env=env, input=conf)
            return len(trace.read_text().splitlines())

        attach(node, "first", network())
        calls()  # Python has compiled all of it after this
        alone = calls()
        for number in range(30):
            attach(node, f"p{number}", network())
        # The guard's sets are read, and thirty pods may take one more part of an answer.
        assert calls() <= alone + 1
