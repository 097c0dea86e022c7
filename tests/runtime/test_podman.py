# SPDX-License-Identifier: Apache-2.0
"""podman with the CNI backend: a runtime that calls VERSION, and DEL only once."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mycelium_lab.errors import LabError
from mycelium_lab.lab import await_fact

from .conftest import leftovers
from .images import BUSYBOX, PAUSE, Images, need
from .machine import Inside, Machine, owned_lab, remove_cgroups
from .traffic import page

pytestmark = pytest.mark.xdist_group("podman")

# default_ulimits: a root without CAP_SYS_RESOURCE cannot raise what podman would raise.
CONTAINERS_CONF = """\
[containers]
apparmor_profile = "unconfined"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "mycelium"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{directory}/tmp"
volume_path = "{directory}/vol"
static_dir = "{directory}/root/libpod"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{directory}/root"
runroot = "{directory}/runroot"
"""
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


def network(*plugins: dict[str, Any], version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    ours = {"type": "mycelium-cni", "mode": "routed", **keys}
    return {"cniVersion": version, "name": "mycelium", "plugins": [ours, *plugins]}


class Podman:
    """podman on a machine."""

    def __init__(self, machine: Machine, images: Images) -> None:
        self.machine = machine
        directory = machine.directory / "podman"
        directory.mkdir()
        self._environment = {}
        for variable, text in (
            ("CONTAINERS_CONF", CONTAINERS_CONF),
            ("CONTAINERS_STORAGE_CONF", STORAGE_CONF),
        ):
            file = directory / variable.lower()
            file.write_text(text.format(directory=directory))
            self._environment[variable] = str(file)
        self.group = ["--cgroup-parent", f"/{machine.node.netns}"]  # goes with the lab
        machine.configure(network())
        self("load", "-q", "-i", images.busybox)
        self("load", "-q", "-i", images.pause)

    def __call__(self, *arguments: str | Path) -> str:
        """What `podman <arguments>` prints. LabError if it fails."""
        podman = need("podman", "podman")
        return self.machine.run(podman, *arguments, env=self._environment).stdout.strip()

    def run(self, name: str, *options: str, command: str = "exec sleep 600") -> Inside:
        """Start a container in the background."""
        self("run", "-d", "--name", name, *options, *self.group, BUSYBOX, "-c", command)
        return self.namespace(name)

    def namespace(self, name: str) -> Inside:
        """The network namespace of a running container."""
        machine, pid = self.machine, self.inspect(name)["State"]["Pid"]
        path = f"/proc/{machine.pid}/root/proc/{pid}/ns/net"
        return Inside(machine.node.lab, name, path)

    def inspect(self, name: str) -> Any:
        """All that podman knows of a container."""
        return json.loads(self("inspect", name))[0]

    def address(self, name: str) -> str:
        """A container's address, as podman tells."""
        networks = self.inspect(name)["NetworkSettings"]["Networks"]
        address: str = networks["mycelium"]["GlobalIPv6Address"]
        return address


@pytest.fixture(scope="module")
def shared_podman(command: list[str], images: Images) -> Iterator[Podman]:
    with owned_lab(command) as lab:
        node, other = lab.node("a"), lab.node("b")
        lab.connect(node, other)
        machine = Machine(node, images.init)
        try:
            yield Podman(machine, images)
        finally:
            machine.power_off()
            remove_cgroups("libpod_parent")  # where podman puts its monitors, whatever is asked


@pytest.fixture
def podman(shared_podman: Podman) -> Iterator[Podman]:
    shared_podman.machine.configure(network())
    yield shared_podman
    shared_podman.machine.install()
    shared_podman("rm", "-f", "-t0", "-a")
    with suppress(LabError):
        shared_podman("pod", "rm", "-f", "-a")
    assert leftovers(shared_podman.machine.node) == []


def test_a_container_runs_and_leaves_nothing(podman: Podman) -> None:
    shown = podman("run", "--rm", *podman.group, BUSYBOX, "-c", "ip -6 addr show dev eth0")
    address = ipaddress.IPv6Interface(shown.split("inet6 ")[1].split()[0])
    node = podman.machine.node.overlay_address
    assert address.ip in ipaddress.IPv6Network(f"{node}/64", strict=False)
    assert leftovers(podman.machine.node) == []


def test_podman_tells_the_address_that_the_kernel_has(podman: Podman) -> None:
    web = podman.run("web", command="mkdir /www; echo hi >/www/index.html; exec httpd -f -h /www")
    link = web.link("eth0")
    assert link is not None
    assert [entry["local"] for entry in link["addr_info"]] == [podman.address("web")]
    other = podman.machine.node.lab.nodes[1]
    for client in (podman.machine.node, podman.run("client"), other):
        await_fact(lambda c=client: page(c, podman.address("web")) == "hi", f"a page for {client}")


def test_a_published_port_leads_to_the_container(podman: Podman) -> None:
    podman.machine.configure(network(PORTMAP))
    command = "mkdir /www; echo port >/www/index.html; exec httpd -f -h /www"
    podman.run("web", "-p", "[::]:8080:80", command=command)
    node, other = podman.machine.node, podman.machine.node.lab.nodes[1]
    address = node.overlay_address or ""
    await_fact(lambda: page(other, address, 8080) == "port", "the page through the port")
    podman("rm", "-f", "-t0", "web")
    assert page(other, address, 8080, timeout_s=1) is None


def test_containers_of_a_pod_share_the_attachment(podman: Podman) -> None:
    pause = ("--infra-image", PAUSE, "--infra-command", "/pause")
    podman("pod", "create", "--name", "pod", *podman.group, *pause, "--network", "mycelium")
    first = podman.run("one", "--pod", "pod")
    second = podman.run("two", "--pod", "pod")
    assert first.ip("addr", "show", "dev", "eth0") == second.ip("addr", "show", "dev", "eth0")
    hosts = [link["ifname"] for link in podman.machine.node.ip("link")]
    assert len([name for name in hosts if name.startswith("myc") and name != "mycelium"]) == 1
    podman("pod", "rm", "-f", "-t0", "pod")


def test_a_container_stopped_and_started_is_attached_anew(podman: Podman) -> None:
    podman.run("web")
    before = podman.address("web")
    podman("stop", "-t0", "web")
    assert leftovers(podman.machine.node) == []
    podman("start", "web")
    assert podman.address("web") != before
    assert podman.machine.node.ping(podman.address("web")) is not None


def test_a_requested_address_and_mac_are_given(podman: Podman) -> None:
    document = network(capabilities={"ips": True, "mac": True})
    podman.machine.configure(document)
    subnet = ipaddress.IPv6Network(f"{podman.machine.node.overlay_address}/64", strict=False)
    wanted, mac = str(subnet[0xFF0F << 48 | 0x777]), "02:00:5e:10:00:01"
    web = podman.run("web", "--ip6", wanted, "--mac-address", mac)
    link = web.link("eth0")
    assert link is not None
    assert [entry["local"] for entry in link["addr_info"]] == [wanted]
    assert link["address"] == mac


def test_podman_asks_for_the_version_and_deletes_once(podman: Podman) -> None:
    log = podman.machine.record()
    podman.run("web")
    podman("rm", "-f", "-t0", "web")
    verbs = [line.split("\0")[0] for line in log.read_text().splitlines()]
    assert verbs == ["VERSION", "ADD", "VERSION", "DEL"]


def test_a_failed_add_is_told_and_leaves_nothing(podman: Podman) -> None:
    podman.machine.configure(network(myceliumInterface="mycelium7"))
    with pytest.raises(LabError, match="failed to find interface mycelium7: start the Mycelium"):
        podman.run("web")
    assert leftovers(podman.machine.node) == []


def test_ten_containers_at_once_get_ten_addresses(podman: Podman) -> None:
    names = [f"c{number}" for number in range(10)]
    with ThreadPoolExecutor(5) as hands:
        list(hands.map(podman.run, names))
        addresses = list(hands.map(podman.address, names))
        assert len(set(addresses)) == 10
        assert None not in list(hands.map(podman.machine.node.ping, addresses))
    podman("rm", "-f", "-t0", "-a")
    assert leftovers(podman.machine.node) == []
