# SPDX-License-Identifier: Apache-2.0
"""The pages of the two plugins that this one replaces, followed step by step.

"Host daemon" is the plugin with `myceliumInterface`, "grid" the one with `/etc/netseed`. What is
typed here is what their sections say, with `kubectl exec` read as an exec over CRI.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mycelium_lab.errors import LabError

from .cnitool import address
from .conftest import Cluster
from .criharness import Container, Sandbox
from .machine import Machine

pytestmark = pytest.mark.xdist_group("containerd")

HOST_DAEMON_FILE = """\
{
"cniVersion": "1.0.0",
"name": "mycelium-network",
"plugins": [
{
"type": "loopback"
},
{
"type": "mycelium-cni",
"myceliumInterface": "mycelium"
}
]
}
"""
GRID_FILE = """\
{
  "cniVersion": "0.4.0",
  "name": "mycelium",
  "type": "mycelium-cni"
}
"""
# "Manual CNI Testing": the environment, ADD and DEL.
ADD = "echo '{}' | cnitool add mycelium-network /var/run/netns/test"
DEL = "echo '{}' | cnitool del mycelium-network /var/run/netns/test"


class Shell:
    """A user who follows the page, logged in to a node."""

    def __init__(self, machine: Machine, tools: Path) -> None:
        self.machine = machine
        self._environment = (
            f"export PATH=$PATH:{tools}\n"
            "export CNI_PATH=/opt/cni/bin\n"
            "export NETCONFPATH=/etc/cni/net.d\n"
        )

    def __call__(self, line: str) -> str:
        """What the line prints. LabError if it fails."""
        return self.machine.run("sh", "-ec", self._environment + line).stdout


@pytest.fixture
def shell(cluster: Cluster, reference_plugins: Path) -> Iterator[Shell]:
    machine = cluster.left.machine
    machine.configure(HOST_DAEMON_FILE, "10-mycelium.conflist")
    shell = Shell(machine, reference_plugins)
    shell("ip netns add test")
    yield shell
    shell("ip netns del test")


# The host daemon's page


def test_manual_cni_testing(cluster: Cluster, shell: Shell) -> None:
    result = json.loads(shell(ADD))
    assert result["cniVersion"] == "1.0.0"
    shown = shell("ip -n test -6 addr show eth0")
    assert f"inet6 {address(result)}/128 scope global" in shown
    assert "400::/7 via fe80::1 dev eth0" in shell("ip -n test -6 route show")
    other = cluster.address(cluster.right)
    assert "3 received" in shell(f"ip netns exec test ping -6 -n -c 3 -i 0.2 {other}")
    assert shell(DEL) == ""
    assert "eth0" not in shell("ip -n test link show")


def test_with_a_pod(cluster: Cluster) -> None:
    """Section 4, and the pod's address "from Mycelium range"."""
    left = cluster.left
    left.configure(json.loads(HOST_DAEMON_FILE), "10-mycelium.conflist")
    pod = left.pod("mycelium-test")
    test = pod.start_container("test", "/bin/sleep", "3600")
    assert ipaddress.ip_address(pod.address) in ipaddress.ip_network("400::/7")
    assert f"inet6 {pod.address}/128" in test.execute("ip", "-6", "addr", "show")[1]
    code, output, _ = test.execute("ping", "-6", "-c", "3", cluster.address(cluster.right))
    assert (code, "3 packets received" in output) == (0, True)


def test_multi_node_connectivity(cluster: Cluster) -> None:
    """Section 5: a deployment of three replicas; every pod pings every other one."""
    for containerd in cluster:
        containerd.configure(json.loads(HOST_DAEMON_FILE), "10-mycelium.conflist")
    left, right = cluster
    pods = [left.pod("replica-1"), left.pod("replica-2"), right.pod("replica-3")]
    tests = [pod.start_container("test", "/bin/sleep", "3600") for pod in pods]
    pairs = [(one, other) for one in tests for other in pods if one.pod is not other]

    def ping(pair: tuple[Container, Sandbox]) -> tuple[int, str, str]:
        one, other = pair
        return one.execute("ping", "-6", "-c", "3", "-W", "2", other.address)

    with ThreadPoolExecutor(len(pairs)) as hands:
        for code, output, _ in hands.map(ping, pairs):
            assert (code, "3 packets received" in output) == (0, True)


def test_troubleshooting_commands(cluster: Cluster, shell: Shell) -> None:
    """Each command of the section shows what the reader is told to look for."""
    assert f"inet6 {cluster.address(cluster.left)}/7" in shell("ip -6 addr show mycelium")
    for path in (
        "/opt/cni/bin/loopback",
        "/opt/cni/bin/mycelium-cni",
        "/etc/cni/net.d/10-mycelium.conflist",
    ):
        assert path in shell(f"ls -la {path}")
    assert "test" in shell("ip netns list").split()
    pod = cluster.left.pod("web")
    test = pod.start_container("test", "/bin/sleep", "3600")
    assert "eth0" in test.execute("ip", "link", "show")[1]
    assert "400::/7 via fe80::1 dev eth0" in test.execute("ip", "-6", "route", "show")[1]


def failure(shell: Shell) -> str:
    with pytest.raises(LabError) as raised:
        shell(ADD)
    return str(raised.value)


def test_error_failed_to_find_plugin_loopback(shell: Shell) -> None:
    loopback = shell.machine.bin / "loopback"
    target = loopback.readlink()
    loopback.unlink()
    assert 'failed to find plugin "loopback"' in failure(shell)
    loopback.symlink_to(target)  # "Install standard CNI plugins"
    shell(ADD)
    shell(DEL)


def test_error_failed_to_find_interface_mycelium(shell: Shell) -> None:
    shell.machine.node.stop_overlay()
    assert "failed to find interface mycelium" in failure(shell)
    shell(DEL)
    shell.machine.node.start_overlay()  # "Mycelium daemon not running"
    shell(ADD)
    shell(DEL)


def test_error_no_global_ipv6_address_found(shell: Shell) -> None:
    node = shell.machine.node
    node.stop_overlay()
    node.configure("tuntap add dev mycelium mode tun", "link set mycelium up")
    assert "no global IPv6 address found" in failure(shell)
    node.configure("link delete mycelium")
    node.start_overlay()
    shell(ADD)
    shell(DEL)


# The grid's page, and the network_setup.sh that it asks for


@pytest.fixture
def grid(shell: Shell) -> Iterator[Shell]:
    shell(
        "ip link add name mycelium-br type bridge\n"
        "BRIDGE_IP=$(ip -6 addr show mycelium | awk '/scope global/ {print $2}' |"
        " cut -d: -f1-4)::1/64\n"
        "ip -6 addr add $BRIDGE_IP dev mycelium-br\n"
        "ip link set mycelium-br up\n"
        "sysctl -qw net.ipv6.conf.all.forwarding=1\n"
        "ip -6 neigh add proxy"
        " $(ip -6 addr show mycelium | awk '/scope global/ {print $2}' | cut -d/ -f1)"
        " dev mycelium-br"
    )
    yield shell
    shell("ip link delete mycelium-br")


@pytest.mark.parametrize("version", ["0.1.0", "0.4.0"])
def test_integration_with_the_grids_scripts(cluster: Cluster, grid: Shell, version: str) -> None:
    """`/etc/netseed` is the daemon's key; the bridge stands; the configuration is the page's, and
    that of k3s/manifests/multus.yaml, which says 0.1.0."""
    document = {**json.loads(GRID_FILE), "cniVersion": version}
    grid.machine.configure(document, "10-mycelium.conf")
    result = json.loads(grid("cnitool add mycelium /var/run/netns/test"))
    pod = result["ip6"]["ip"] if version == "0.1.0" else result["ips"][0]["address"]
    subnet = cluster.address(cluster.left).split(":")[:4]
    assert pod.split(":")[:5] == [*subnet, "ff0f"]
    assert pod.endswith("/64")
    gateway = ":".join(subnet) + "::1"
    assert f"400::/7 via {gateway} dev eth0" in grid("ip -n test -6 route show")
    for target in (gateway, cluster.address(cluster.left), cluster.address(cluster.right)):
        shown = grid(f"ip netns exec test ping -6 -n -c 3 -i 0.2 -W 3 {target}")
        assert "3 received" in shown
    grid("cnitool del mycelium /var/run/netns/test")
    assert "eth0" not in grid("ip -n test link show")


def test_the_grids_file_name_fits_its_content_nowhere(shell: Shell) -> None:
    """The page names a file without `plugins` `10-mycelium.conflist`: libcni reads no such list.
    As `10-mycelium.conf` it works (above)."""
    shell.machine.configure(GRID_FILE, "10-mycelium.conflist")
    with pytest.raises(LabError, match="no plugin configs found"):
        shell("cnitool add mycelium /var/run/netns/test")
