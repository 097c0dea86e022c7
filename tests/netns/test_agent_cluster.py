# SPDX-License-Identifier: Apache-2.0
"""With `ingress: cluster` the agent opens pods to the nodes of the cluster, and to nobody else."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sites import NODE, OTHER_PEER, REMOTE, SUBNET, Site, conf
from tool import Tool

from apiserver import ApiServer
from mycelium_lab.errors import LabError
from mycelium_lab.lab import Lab, Process, await_fact

MOST_MEMORY = 30 << 20  # bytes
pytestmark = pytest.mark.xdist_group("secrets")
SECRETS = "/run/secrets/kubernetes.io/serviceaccount"
# In a mount namespace of its own: the files that a kubelet gives a pod.
AS_A_POD = f'mkdir -p {SECRETS} && mount --bind "$1" {SECRETS} && shift && exec "$@"'
SUBNETS = {REMOTE: "4aa:1:2::/64", OTHER_PEER: "4bb:7:8::/64"}


class Member:
    """A node of a cluster, its agent, and the cluster's API."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self.site = Site(lab)
        self.tool = Tool(self.site.node, root)
        self.file = root / "cluster"
        self.conf = conf("mycelium", ingress="cluster", clusterFile=str(self.file))
        plugin = {key: self.conf[key] for key in self.conf if key not in ("cniVersion", "name")}
        network = {"cniVersion": "1.1.0", "name": "mycelium", "plugins": [plugin]}
        self.tool.conf(network)
        self.api = ApiServer(root / "secrets")
        with self.site.node.inside():
            self.api.start()
        self.api.put("a")
        self.agent = self.start()

    def start(self) -> Process:
        command = [*self.site.lab.command, "agent", "--root", str(self.tool.root)]
        return self.site.node.start(
            [
                *("unshare", "--mount", "--propagation=private", "sh", "-c", AS_A_POD, "sh"),
                *(str(self.api.secrets), "env", "NODE_NAME=a", "KUBERNETES_SERVICE_HOST=::1"),
                *(f"KUBERNETES_SERVICE_PORT={self.api.port}", *command),
            ]
        )

    def await_word(self, word: str) -> None:
        def said() -> bool:
            assert self.agent.running, self.agent.output()
            return word in self.agent.output()

        try:
            await_fact(said, f"the agent says {word!r}", within_s=30)
        except LabError:
            pytest.fail(self.agent.output())

    def await_policy(self, pod: Any, address: str, *sources: str) -> None:
        """Wait until these reach a pod, and the others do not."""

        def holds() -> bool:
            return {each for each in SUBNETS if self.site.reaches(pod, address, each)} == {*sources}

        await_fact(holds, f"only {sources} reach the pod", within_s=30)


@pytest.fixture
def member(lab: Lab, root: Path) -> Iterator[Member]:
    made = not Path(SECRETS).exists()
    member = Member(lab, root)
    yield member
    if member.agent.running:
        member.agent.stop()
    member.api.stop()
    if made:
        os.removedirs(SECRETS)  # with those above it


def test_pods_are_open_to_the_nodes_that_the_cluster_has(member: Member) -> None:
    site, api = member.site, member.api
    pod, address = site.attach(member.conf)
    member.await_policy(pod, address)
    api.put("b", {"mycelium-cni/subnet": SUBNETS[REMOTE]})
    member.await_policy(pod, address, REMOTE)
    api.put("c", {"mycelium-cni/subnet": SUBNETS[OTHER_PEER]})
    member.await_policy(pod, address, REMOTE, OTHER_PEER)
    api.delete("b")
    member.await_policy(pod, address, OTHER_PEER)
    later = site.attach(member.conf)
    member.await_policy(*later, OTHER_PEER)
    api.put("c", {"mycelium-cni/subnet": "400::/7"})
    member.await_word("node c: mycelium-cni/subnet is ignored: '400::/7' is not the subnet")
    member.await_policy(pod, address)


def test_a_connection_ends_with_the_node_that_it_came_from(member: Member) -> None:
    pod, address = member.site.attach(member.conf)
    member.api.put("b", {"mycelium-cni/subnet": SUBNETS[REMOTE]})
    member.await_policy(pod, address, REMOTE)
    with pod.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 4242))
        server.sendto(b"answer", (REMOTE, 99))
        member.api.delete("b")
        member.await_policy(pod, address)


def test_every_verb_and_command_agrees_with_the_agent(member: Member) -> None:
    site, tool = member.site, member.tool
    site.attach(member.conf)
    member.api.put("b", {"mycelium-cni/subnet": SUBNETS[REMOTE]})
    member.await_word("ingress cluster, 2 prefixes allowed")
    table = site.table()
    assert site.status(member.conf).code == 0
    assert tool.doctor("guard")["state"] == "ok"
    assert "nothing to do" in tool("setup").stdout
    os.kill(member.agent.pid, signal.SIGSTOP)  # it would repair what they change
    site.attach(member.conf)
    tool("test")  # its pods have the network's policy
    elements = re.compile(r"set allow-.*?}", re.DOTALL)
    assert elements.findall(site.table()) == elements.findall(table)


def test_what_was_known_last_holds_while_the_api_is_away(member: Member) -> None:
    site, api = member.site, member.api
    api.put("b", {"mycelium-cni/subnet": SUBNETS[REMOTE]})
    member.await_word("2 prefixes allowed")
    api.stop()
    member.await_word("Connection refused")
    site.node.run(["nft", "flush", "ruleset"])
    pod, address = site.attach(member.conf)
    member.await_policy(pod, address, REMOTE)
    member.agent.stop()
    member.agent = member.start()
    member.await_word("Connection refused")
    member.await_policy(pod, address, REMOTE)
    with site.node.inside():
        api.start()
    api.put("c", {"mycelium-cni/subnet": SUBNETS[OTHER_PEER]})
    member.await_policy(pod, address, REMOTE, OTHER_PEER)


def test_the_node_publishes_its_subnet_and_address(member: Member) -> None:
    ours = {"mycelium-cni/subnet": f"{SUBNET}::/64", "mycelium-cni/address": NODE}
    await_fact(lambda: member.api.annotations("a") == ours, "they are there", within_s=30)


def test_an_agent_that_is_no_pod_has_a_kubeconfig(member: Member, root: Path) -> None:
    member.await_word("has the subnets of")
    member.agent.stop()
    name = socket.gethostname().lower()
    member.api.put(name)
    pem = str(member.api.secrets / "client.pem")
    kubeconfig = root / "kubelet.conf"
    kubeconfig.write_text(
        f"clusters:\n- cluster:\n    certificate-authority: {member.api.secrets}/ca.crt\n"
        f"    server: https://[::1]:{member.api.port}\nusers:\n- user:\n"
        f"    client-certificate: {pem}\n    client-key: {pem}\n"
    )
    member.agent = member.site.node.start(
        [
            *(*member.site.lab.command, "agent", "--root", str(root)),
            *("--kubeconfig", str(kubeconfig)),
        ]
    )
    ours = {"mycelium-cni/subnet": f"{SUBNET}::/64", "mycelium-cni/address": NODE}
    await_fact(lambda: member.api.annotations(name) == ours, "they are there", within_s=30)


def test_a_file_that_somebody_has_changed_opens_nothing_and_is_written_anew(
    member: Member,
) -> None:
    site = member.site
    member.api.put("b", {"mycelium-cni/subnet": SUBNETS[REMOTE]})
    member.await_word("2 prefixes allowed")
    os.kill(member.agent.pid, signal.SIGSTOP)
    member.file.write_text("400::/7\n::/0\n4bb::/16\n4bb:7:8::9/128\n\xff\n")
    pod, address = site.attach(member.conf)
    assert not [each for each in SUBNETS if site.reaches(pod, address, each)]
    os.kill(member.agent.pid, signal.SIGCONT)
    os.kill(member.agent.pid, signal.SIGHUP)
    member.await_policy(pod, address, REMOTE)


def test_uninstall_removes_the_file(member: Member, root: Path) -> None:
    member.await_word("has the subnets of")
    member.agent.stop()
    assert member.tool("uninstall").returncode == 0
    assert not member.file.exists()
    assert not (root / "var/lib/mycelium-cni").exists()


def test_a_cluster_file_that_is_no_file_is_refused(lab: Lab, tmp_path: Path) -> None:
    network = conf(ingress="cluster", clusterFile=str(tmp_path))
    error = Site(lab).status(network).result
    assert error["code"] == 7
    assert "invalid clusterFile" in error["msg"]


@pytest.mark.skipif("MYCELIUM_CNI_COMMAND" not in os.environ, reason="of the file that is shipped")
def test_it_is_small_while_it_watches_over_tls(member: Member) -> None:
    for number in range(500):
        member.api.nodes[f"n{number}"] = {
            "name": f"n{number}",
            "annotations": {"mycelium-cni/subnet": f"5aa:{number:x}::/64", "others": "x" * 4000},
        }
    member.api.compact()
    member.api.cut()
    member.await_word("501 prefixes allowed")
    pages = int(Path(f"/proc/{member.agent.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < MOST_MEMORY
