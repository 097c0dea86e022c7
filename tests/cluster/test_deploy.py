# SPDX-License-Identifier: Apache-2.0
"""The manifests are rendered from the chart, and an API server accepts them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mycelium_lab.lab import await_fact

from .cluster import CHART, MANIFEST, REMOVAL, Cluster
from .rendering import render

pytestmark = [pytest.mark.timeout(400), pytest.mark.only("manifest")]

SETTINGS = {
    "every key": (
        *("network.serviceNetworks={fd00:10:96::/112}", "network.ingress=cluster"),
        *("network.allowFrom={400::/8,5aa::/16}", "primary=true", "installArguments={--mtu=1300}"),
        *("imagePullSecrets[0].name=registry", "agent.nodeSelector.pods=overlay"),
        *("agent.maxUnavailable=10%", "agent.logFormat=text"),
    ),
    "the daemon": (
        *("daemon.enabled=true", "daemon.image=localhost/mycelium:1"),
        *("daemon.peers={tcp://[2001:db8::1]:9651}", "daemon.arguments={--silent}"),
    ),
}


def test_the_manifests_are_the_charts(kubernetes: Path) -> None:
    assert MANIFEST.read_text() == render(kubernetes)
    assert REMOVAL.read_text() == render(kubernetes, "uninstall=true")
    subprocess.run([kubernetes / "helm", "lint", "--strict", CHART], check=True)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_api_server_takes_what_the_chart_makes(
    settings: tuple[str, ...], cluster: Cluster, kubernetes: Path
) -> None:
    made = render(kubernetes, *settings)
    told = cluster.kubectl(
        *("apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts"),
        *("-f", "-"),
        stdin=made,
    )
    assert "daemonset.apps/mycelium-cni serverside-applied (server dry run)" in told


@pytest.mark.parametrize(
    "setting",
    ["ingress=open", "network.ingress=closd", "network.allowFrom={400::}", "daemon.enabled=true"],
)
def test_a_value_that_means_nothing_is_refused(setting: str, kubernetes: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(kubernetes, setting)
    assert "don't meet the specifications of the schema" in refused.value.stderr


def test_the_daemon_runs_from_the_chart(cluster: Cluster, kubernetes: Path) -> None:
    """The stand-in for it, under another name: each node has one already."""
    made = render(
        kubernetes,
        *("daemon.enabled=true", "daemon.image=localhost/mycelium-cni:0.1.0"),
        "daemon.command={/mycelium-cni,overlay}",
        "daemon.arguments={--tun-name=second0,--tcp-listen-port=9655,--api-addr=127.0.0.1:8999}",
    )
    _, daemon = made.split("# Source: mycelium-cni/templates/daemon.yaml\n")
    cluster.kubectl("apply", "-f", "-", stdin=daemon)
    cluster.rollout("daemonset/mycelium", "kube-system")
    for node in cluster.nodes:
        assert node.lab_node.link("second0")
        node.run("test", "-s", "/var/lib/mycelium/priv_key.bin")
    cluster.kubectl("delete", "--wait", "-f", "-", stdin=daemon)
    await_fact(
        lambda: not any(node.lab_node.link("second0") for node in cluster.nodes),
        "the end of the daemons",
        within_s=60,
    )
