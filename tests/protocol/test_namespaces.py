# SPDX-License-Identifier: Apache-2.0
"""What CNI_NETNS may be, and what DEL does when it is no longer a namespace."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .calls import Plugin, network
from .conftest import WatchedNode
from .hosts import Host, Pod

SAME = "plugin's netns and netns from CNI_NETNS should not be the same"


def plain_file(host: Host) -> str:
    """The path of a stale mount point: a plain, empty file."""
    return host.write("/run/netns/stale", "")


NOT_NAMESPACES: dict[str, Callable[[Host], str]] = {
    "missing": lambda _host: "/run/netns/absent",
    "missing-folder": lambda _host: "/absent/absent",
    "dead-process": lambda _host: "/proc/4194304/ns/net",
    "plain-file": plain_file,
    "below-a-file": lambda host: f"{plain_file(host)}/net",
    "folder": lambda _host: "/run/netns",
    "device": lambda _host: "/dev/null",
    "proc-file": lambda _host: "/proc/uptime",
    "other-kind-of-namespace": lambda _host: "/proc/1/ns/uts",
    "name-too-long": lambda _host: "/run/netns/" + "x" * 300,
    "path-too-long": lambda _host: "/run/netns" + "/x" * 3000,
    "link-to-itself": lambda host: (
        host.run("ln", "-sfn", "/run/netns/loop", "/run/netns/loop") or "/run/netns/loop"
    ),
}
kinds = pytest.mark.parametrize("kind", list(NOT_NAMESPACES))


@kinds
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_what_is_no_network_namespace_is_refused(
    watched: WatchedNode, verb: str, kind: str
) -> None:
    path = NOT_NAMESPACES[kind](watched.plugin.host)
    conf = network()
    if verb == "CHECK":
        conf["prevResult"] = {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": path}],
            "ips": [{"interface": 0, "address": "5a1:2b3c:4d5e:6f70:ff0f::5/128"}],
        }
    error = watched.plugin.call(verb, conf, watched.pod, {"CNI_NETNS": path}).error(8)
    assert path[:40] in f"{error['msg']} {error.get('details')}"


@kinds
def test_del_of_nothing_succeeds_whatever_the_path_is(watched: WatchedNode, kind: str) -> None:
    path = NOT_NAMESPACES[kind](watched.plugin.host)
    watched.plugin.delete(watched.pod, network(), CNI_NETNS=path).is_silent_success()


def is_gone(plugin: Plugin, result: dict[str, object]) -> None:
    """Neither the host link, nor its route, nor its address as a name is left on the node."""
    host_link = result["interfaces"][0]["name"]  # type: ignore[index]
    address = result["ips"][0]["address"].partition("/")[0]  # type: ignore[index]
    assert host_link not in plugin.host.links()
    assert plugin.host.routes_to(address) == []
    assert address not in plugin.host.run("ip", "-d", "link")


@pytest.mark.parametrize("kind", [*NOT_NAMESPACES, "empty", "unset", "host"])
def test_del_cleans_the_node_whatever_became_of_the_path(
    plugin: Plugin, pod: Pod, kind: str
) -> None:
    result = plugin.add(pod, network(mode="routed")).result()
    paths: dict[str, str | None] = {"empty": "", "unset": None, "host": plugin.host.netns}
    path = paths[kind] if kind in paths else NOT_NAMESPACES[kind](plugin.host)
    plugin.delete(pod, network(mode="routed"), CNI_NETNS=path).is_silent_success()
    is_gone(plugin, result)
    assert "eth0" not in pod.links()


def test_del_finds_the_attachment_of_a_namespace_whose_path_was_unmounted(
    plugin: Plugin, pod: Pod
) -> None:
    pid = pod.keep_alive()
    result = plugin.add(pod, network()).result()
    pod.unmount()
    plugin.delete(pod, network()).is_silent_success()
    is_gone(plugin, result)
    assert "eth0" not in plugin.host.run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link")


@pytest.mark.parametrize("kind", ["name", "process", "thread", "space", "symlink", "dots"])
def test_any_path_to_a_namespace_is_accepted_and_told_verbatim(
    plugin: Plugin, pod: Pod, kind: str
) -> None:
    run = plugin.host.run
    path = pod.path
    if kind in ("process", "thread"):
        pid = pod.keep_alive()
        path = f"/proc/{pid}/ns/net" if kind == "process" else f"/proc/{pid}/task/{pid}/ns/net"
    elif kind == "space":
        path = f"/run/netns/a folder/{pod.name} é"
        run("mkdir", "-p", "/run/netns/a folder")
        run("touch", path)
        run("mount", "--bind", pod.path, path)
    elif kind == "symlink":
        path = f"/run/netns/link-to-{pod.name}"
        run("ln", "-s", pod.path, path)
    elif kind == "dots":
        path = f"/run//netns/../netns/./{pod.name}"
    result = plugin.add(pod, network(), CNI_NETNS=path).result()
    assert result["interfaces"][1]["sandbox"] == path
    assert "eth0" in pod.links()
    conf = network(prevResult=result)
    plugin.check(pod, conf, CNI_NETNS=path).is_silent_success()
    plugin.delete(pod, conf, CNI_NETNS=path).is_silent_success()
    assert "eth0" not in pod.links()


@pytest.mark.parametrize("path", ["/proc/self/ns/net", "/proc/thread-self/ns/net", "of the keeper"])
@pytest.mark.parametrize("override", [None, "", "0", "no", "false", "yes"])
def test_add_into_the_namespace_of_the_node_is_refused(
    watched: WatchedNode, path: str, override: str | None
) -> None:
    netns = watched.plugin.host.netns if path == "of the keeper" else path
    env = {"CNI_NETNS": netns, "CNI_NETNS_OVERRIDE": override}
    error = watched.plugin.call("ADD", network(), watched.pod, env).error(8)
    assert error["msg"].startswith(SAME)


@pytest.mark.parametrize("override", ["1", "TRUE", "true", "True"])
def test_the_guard_of_the_nodes_namespace_can_be_lifted(alone: Plugin, override: str) -> None:
    env = {"CNI_NETNS": alone.host.netns, "CNI_NETNS_OVERRIDE": override}
    env |= {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    outcome = alone.call("ADD", network(), env=env)
    assert SAME.encode() not in outcome.out + outcome.err


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_del_with_the_nodes_own_namespace_never_touches_the_nodes_link(
    bare: Plugin, kind: str
) -> None:
    bare.host.run("ip", "link", "add", "eth0", "type", kind)
    env = {"CNI_NETNS": bare.host.netns, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    for override in (None, "1"):
        env_with = {**env, "CNI_NETNS_OVERRIDE": override}
        bare.call("DEL", network(), env=env_with).is_silent_success()
        assert "eth0" in bare.host.links()


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_del_leaves_a_link_of_that_name_that_is_not_ours(
    plugin: Plugin, pod: Pod, kind: str
) -> None:
    pod.ip("link", "add", "eth0", "type", kind)
    plugin.delete(pod, network()).is_silent_success()
    assert "eth0" in pod.links()


def test_del_leaves_the_attachment_of_another_container_in_the_same_namespace(
    plugin: Plugin, pod: Pod
) -> None:
    plugin.add(pod, network()).result()
    plugin.delete(pod, network(), CNI_CONTAINERID=f"{pod.container}0").is_silent_success()
    plugin.delete(pod, network(name="overlay2")).is_silent_success()
    plugin.delete(pod, network(), CNI_IFNAME="eth1").is_silent_success()
    assert "eth0" in pod.links()
