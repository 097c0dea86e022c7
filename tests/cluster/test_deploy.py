# SPDX-License-Identifier: Apache-2.0
"""The manifests are rendered from the chart, and an API server accepts them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from mycelium_lab.lab import await_fact
from runtime.images import archive

from .cluster import CHART, MANIFEST, REMOVAL, Cluster
from .rendering import render

pytestmark = [pytest.mark.timeout(400), pytest.mark.only("manifest")]

SETTINGS = {
    "every key": (
        *("network.serviceNetworks={fd00:10:96::/112}", "network.ingress=cluster"),
        *("network.allowFrom={400::/8,5aa::/16}", "primary=true", "installArguments={--mtu=1300}"),
        *("imagePullSecrets[0].name=registry", "agent.nodeSelector.pods=overlay"),
        *("agent.maxUnavailable=10%", "agent.logFormat=text"),
        *("runtime.confDirs={/run/cni/net.d}", "runtime.binDirs={/run/cni/bin,/opt/cni/bin}"),
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
    [
        *("ingress=open", "network.ingress=closd", "network.allowFrom={400::}"),
        *("daemon.enabled=true", "runtime.confDirs={net.d}"),
    ],
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


def with_libraries(program: Path) -> dict[str, bytes | str]:
    """The files of an image that runs a program, with the libraries that it needs."""
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = [Path(path) for path in re.findall(r"(/\S+) \(0x", needed)]
    return {str(path)[1:]: path.read_bytes() for path in libraries} | {
        program.name: program.read_bytes()
    }


def test_mycelium_itself_runs_from_the_chart(
    cluster: Cluster, kubernetes: Path, tmp_path: Path
) -> None:
    """Beside the stand-in, too, where somebody has built it."""
    program = kubernetes / "mycelium"
    if not program.is_file():
        pytest.skip(f"no Mycelium daemon at {program}")
    image = "localhost/mycelium:test"
    archive(tmp_path / "mycelium.tar", image, with_libraries(program), ["/mycelium"])
    for node in cluster.nodes:
        node.load(tmp_path / "mycelium.tar")
    options = "--disable-quic,--disable-peer-discovery,--jsonrpc-addr=127.0.0.1:8998"
    made = render(
        kubernetes,
        *("daemon.enabled=true", f"daemon.image={image}"),
        f"daemon.peers={{tcp://[{cluster.nodes[0].lan}]:9655}}",
        "daemon.arguments={--tun-name=second0,--tcp-listen-port=9655,--api-addr=127.0.0.1:8999,"
        f"{options}}}",
    )
    _, daemon = made.split("# Source: mycelium-cni/templates/daemon.yaml\n")
    cluster.kubectl("apply", "-f", "-", stdin=daemon)
    cluster.rollout("daemonset/mycelium", "kube-system")

    def connected() -> bool:
        asked = [
            node.run("curl", "-s", "http://127.0.0.1:8999/api/v1/admin/peers", check=False).stdout
            for node in cluster.nodes
        ]
        return all(
            any(peer["connectionState"] == "alive" for peer in json.loads(each or "[]"))
            for each in asked
        )

    await_fact(connected, "each daemon has a peer", within_s=60)
    link = cluster.nodes[2].lab_node.link("second0")
    assert link
    (address,) = (a["local"] for a in link["addr_info"] if re.match("[45]", a["local"]))
    ping = ("ping", "-6", "-c", "1", "-W", "2", "-I", "second0", address)
    await_fact(
        lambda: cluster.nodes[1].run(*ping, check=False).returncode == 0, "an answer", within_s=30
    )
    cluster.kubectl("delete", "--wait", "-f", "-", stdin=daemon)
    await_fact(
        lambda: not any(node.lab_node.link("second0") for node in cluster.nodes),
        "the end of the daemons",
        within_s=60,
    )
