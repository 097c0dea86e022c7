# SPDX-License-Identifier: Apache-2.0
"""When the kernel refuses a step, the error names the step, the errno and the remedy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .calls import Plugin, attachment_env, encoded, network
from .conftest import WatchedNode
from .hosts import NODE, Pod, tool

READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'


def call(plugin: Plugin, verb: str, pod: Pod, *prefix: str, **keys: Any) -> Any:
    """The error of one call, made through another program; None where there is none."""
    env = {"CNI_COMMAND": verb, "PATH": os.environ["PATH"], **attachment_env(pod)}
    conf = network(**{"cni.dev/valid-attachments": [], **keys})
    argv = [tool(prefix[0]), *prefix[1:], *plugin.command]
    outcome = plugin.run(env, encoded(conf), argv=argv)
    return outcome.error() if outcome.code else None


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS", "DEL", "GC"])
@pytest.mark.parametrize("limit", range(3, 12))
def test_a_process_out_of_descriptors_says_so_and_nothing_else(
    alone: Plugin, verb: str, limit: int
) -> None:
    if limit < 5 and alone.command[0].endswith("bin/mycelium-cni"):
        pytest.skip("Python itself needs five descriptors where it is installed")
    pod = alone.host.pod()
    keys = {}
    if verb in ("CHECK", "DEL"):
        keys["prevResult"] = alone.add(pod, network()).result()
    error = call(alone, verb, pod, "prlimit", f"--nofile={limit}:{limit}", **keys)
    if error is not None:
        assert error["code"] == (50 if verb == "STATUS" else 11), error
        assert "Too many open files" in error["msg"]
        assert "LimitNOFILE" in error["msg"]
        assert not {"IPv6", "modprobe"} & set(error["msg"].split()), error
        assert " conf/" not in error["msg"]  # the whole path


def test_a_node_whose_proc_sys_is_read_only(alone: Plugin) -> None:
    pod = alone.host.pod()
    error = call(alone, "ADD", pod, "unshare", "--mount", "sh", "-c", READ_ONLY, "sh")
    assert "disable_ipv6: Read-only file system" in error["msg"]
    assert error["msg"].endswith("run it on the host, or with /proc/sys writable")
    assert set(pod.links()) == {"lo"}


@pytest.mark.parametrize("capability", ["sys_admin", "net_admin"])
def test_a_plugin_without_a_capability_says_which_step_and_which_rights(
    alone: Plugin, capability: str
) -> None:
    without = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]
    error = call(alone, "ADD", alone.host.pod(), *without)
    assert "network namespace: Operation not permitted" in error["msg"]
    assert f"CAP_{capability.upper()}" in error["msg"]
    error = call(alone, "STATUS", alone.host.pod(), *without)
    assert error["code"] == 50
    assert f"CAP_{capability.upper()}" in error["msg"]


def test_a_namespace_that_may_not_be_opened_says_which_rights_are_missing(
    plugin: Plugin, pod: Pod
) -> None:
    path = f"/proc/{pod.keep_alive()}/ns/net"
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    argv = [tool("env"), f"CNI_NETNS={path}", tool(without[0]), *without[1:]]
    error = call(plugin, "ADD", pod, *argv)
    assert error["code"] == 8
    assert f"'{path}': Permission denied: run it as root, with CAP_" in error["msg"]


def test_a_bridge_that_is_another_kind_of_link_is_named(alone: Plugin) -> None:
    alone.host.run("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1")
    conf = network(mode="bridge", bridge="wan0")
    says = "wan0 is veth, not a bridge: rename it, or set"
    alone.add(alone.host.pod(), conf).error(100, says=says)
    alone.status(conf).error(50, says=says)


@pytest.mark.parametrize("keys", [{}, {"guard": "optional", "ingress": "closed"}])
@pytest.mark.parametrize("prepared", [False, True], ids=["fresh", "prepared"])
def test_a_kernel_without_nf_tables_is_not_ready(
    alone: Plugin, tmp_path: Path, prepared: bool, keys: dict[str, Any]
) -> None:
    pod = alone.host.pod()
    if prepared:
        alone.add(pod, network()).result()
    trace = tmp_path / "trace"
    argv = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=socket"]
    assert call(alone, "STATUS", pod, *argv, **keys) is None
    sockets = trace.read_text().splitlines()
    number = next(n for n, line in enumerate(sockets, 1) if "NETLINK_NETFILTER" in line)
    fault = f"inject=socket:error=EPROTONOSUPPORT:when={number}"
    error = call(alone, "STATUS", pod, *argv, "-e", fault, **keys)
    assert error["code"] == 50
    assert "the guard cannot be loaded: " in error["msg"]
    assert "run `modprobe -a nf_tables" in error["msg"]
    assert "mycelium-cni setup" not in error["msg"]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            ["sysctl", "-qw", "net.ipv6.conf.mycelium.disable_ipv6=1"],
            "IPv6 is off on mycelium: run `sysctl -w net.ipv6.conf.mycelium.disable_ipv6=0`",
        ),
        (
            ["ip", "link", "set", "mycelium", "mtu", "1200"],
            "interface mycelium has MTU 1200, and IPv6 needs 1280: run `ip link set dev mycelium",
        ),
        (
            ["ip", "-6", "address", "flush", "dev", "mycelium"],
            "no global IPv6 address found on mycelium in 400::/7: wait for the Mycelium daemon",
        ),
        (["ip", "link", "set", "mycelium", "down"], "run `ip link set mycelium up`"),
    ],
    ids=["switch", "mtu", "no-address", "down"],
)
def test_an_interface_without_an_address_says_why(
    alone: Plugin, break_it: list[str], says: str
) -> None:
    alone.host.run(*break_it)
    alone.add(alone.host.pod(), network()).error(11, says=says)
    alone.status(network()).error(51, says=says)


def test_a_switched_off_loopback_is_told_from_one_that_cannot_be_read(alone: Plugin) -> None:
    alone.host.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    says = "IPv6 is off on lo: run `sysctl -w net.ipv6.conf.lo.disable_ipv6=0`"
    alone.status(network()).error(50, says=says)


def test_a_missing_proc_is_not_told_as_ipv6_that_is_off(alone: Plugin) -> None:
    hidden = 'mount -t tmpfs none /proc/sys && exec "$@"'
    error = call(alone, "STATUS", alone.host.pod(), "unshare", "--mount", "sh", "-c", hidden, "sh")
    assert "or /proc is not mounted" in error["msg"]


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_a_netseed_that_is_a_fifo_is_refused_and_not_waited_for(alone: Plugin, verb: str) -> None:
    alone.host.run("mkfifo", "/run/netns/netseed")
    conf = network(mode="bridge", netseed="/run/netns/netseed")
    outcome = alone.call(verb, conf, alone.host.pod())
    outcome.error(50 if verb == "STATUS" else 100, says="it is not a regular file")


def test_the_largest_number_of_routes_is_made(alone: Plugin) -> None:
    routes = [{"dst": f"{0x400 + n % 512:x}:{n:x}::/32"} for n in range(1024)]
    pod = alone.host.pod()
    alone.add(pod, network(routes=routes)).result()
    assert sum(route.get("dev") == "eth0" for route in pod.routes()) >= 1024


def test_a_call_that_needs_megabytes_succeeds(alone: Plugin) -> None:
    """The static executable has one for new objects; what is more comes from the C library."""
    prefixes = [f"400:{n:x}::/32" for n in range(1000)]
    alone.add(alone.host.pod(), network(ingress="cluster", allowFrom=prefixes)).result()
    routes = [{"dst": prefix} for prefix in prefixes]
    alone.add(alone.host.pod(), network(routes=routes)).result()


@pytest.mark.parametrize("number", [1025, 40_000])
def test_more_routes_are_refused_at_once(watched: WatchedNode, number: int) -> None:
    routes = [{"dst": f"400:{n:x}::/32"} for n in range(number)]
    watched.plugin.add(watched.pod, network(routes=routes)).error(7, says="at most 1024 routes")


def test_the_node_of_these_tests_is_well(alone: Plugin) -> None:
    assert NODE in alone.host.run("ip", "-6", "address", "show", "dev", "mycelium")
    alone.status(network()).is_silent_success()
