# SPDX-License-Identifier: Apache-2.0
"""install does all or nothing, and uninstall restores what was there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from test_doctor import passes
from tool import Tool

from mycelium_lab.lab import Node, await_fact

CONFLIST = "etc/cni/net.d/10-mycelium.conflist"
PLUGIN = "opt/cni/bin/mycelium-cni"
FLANNEL = {
    "cniVersion": "1.0.0",
    "name": "cbr0",
    "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": True}}],
}


@pytest.fixture
def root(tmp_path: Path, root: Path) -> Path:
    """A node with the reference plugins, and nothing of ours."""
    (root / CONFLIST).unlink()
    (root / PLUGIN).unlink()
    (root / "etc/systemd").mkdir()
    return root


def tree(root: Path) -> dict[str, bytes]:
    """Everything below a directory."""

    def content(path: Path) -> bytes:
        if path.is_symlink():
            return str(path.readlink()).encode()
        return b"" if path.is_dir() else path.read_bytes()

    return {str(path.relative_to(root)): content(path) for path in root.rglob("*")}


def done(tool: Tool, *argv: str) -> str:
    ran = tool(*argv)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_uninstall_takes_back_exactly_what_install_made(tool: Tool, root: Path) -> None:
    before = tree(root)
    done(tool, "install", "--dry-run")
    assert tree(root) == before
    done(tool, "install")
    assert {CONFLIST, PLUGIN, "usr/local/bin/mycelium-cni"} <= tree(root).keys()
    unit = root / "etc/systemd/system/mycelium-cni-setup.service"
    assert f"ExecStart=/{PLUGIN} setup" in unit.read_text()
    done(tool, "uninstall", "--dry-run")
    assert PLUGIN in tree(root)
    done(tool, "uninstall")
    assert tree(root) == before


def test_completions_and_the_manual_come_for_what_reads_them(tool: Tool, root: Path) -> None:
    for reader in ("bash-completion", "fish", "man"):
        (root / "usr/share" / reader).mkdir(parents=True)
    before = tree(root)
    done(tool, "install")
    made = tree(root).keys() - before.keys()
    bash = "usr/local/share/bash-completion/completions/mycelium-cni"
    fish = "etc/fish/completions/mycelium-cni.fish"
    assert {bash, fish, "usr/local/share/man/man8/mycelium-cni.8.gz"} <= made
    assert not any("zsh" in name for name in made)
    assert b"complete -o default" in tree(root)[bash]
    assert "nothing to do" in done(tool, "install")
    done(tool, "uninstall")
    assert tree(root) == before


def test_what_starts_things_at_boot_knows_the_unit(tool: Tool, root: Path) -> None:
    (root / "etc/runlevels/default").mkdir(parents=True)
    (root / "etc/zinit").mkdir()
    before = tree(root)
    done(tool, "install")
    asked = ["systemctl", f"--root={root}", "is-enabled", "mycelium-cni-setup.service"]
    assert tool.node.run(asked, env={"PATH": os.environ["PATH"]}).stdout == "enabled\n"
    script = root / "etc/init.d/mycelium-cni-setup"
    assert os.access(script, os.X_OK)
    assert f"/{PLUGIN} setup" in script.read_text()
    tool.node.run(["sh", "-n", str(script)])
    link = root / "etc/runlevels/default/mycelium-cni-setup"
    assert str(link.readlink()) == "/etc/init.d/mycelium-cni-setup"
    assert f"exec: /{PLUGIN} setup" in (root / "etc/zinit/mycelium-cni-setup.yaml").read_text()
    done(tool, "uninstall")
    assert tree(root) == before


def test_a_receipt_is_the_nodes_wherever_its_root_is(tool: Tool, root: Path) -> None:
    before = tree(root)
    done(tool, "install")
    moved = root.with_name("elsewhere")
    root.rename(moved)
    assert Tool(tool.node, moved)("uninstall").returncode == 0
    assert tree(moved) == before


CALLS = """
while [ ! -e "$1/stop" ]; do
    for verb in ADD DEL; do
        echo "$2" | CNI_COMMAND=$verb CNI_CONTAINERID=$3 CNI_IFNAME=eth0 CNI_NETNS=$4 "$5" ||
            echo "$verb failed"
    done
    echo round
done
"""


def test_an_upgrade_disturbs_no_call(tool: Tool, root: Path) -> None:
    done(tool, "install")
    plugin = root / PLUGIN
    older = plugin.read_bytes() + b"\n"
    network = {"cniVersion": "1.0.0", "name": "m", "type": "mycelium-cni", "mode": "routed"}
    loops = [
        tool.node.start(
            [
                *("sh", "-c", CALLS, "sh", str(root)),
                *(json.dumps(network), pod.container_id, pod.path, str(plugin)),
            ]
        )
        for pod in (tool.node.pod("one"), tool.node.pod("two"))
    ]
    for number in range(1, 4):
        (root / "older").write_bytes(older)
        (root / "older").chmod(0o755)
        (root / "older").rename(plugin)
        assert f"write {plugin}" in done(tool, "install")
        for loop in loops:
            await_fact(lambda: loop.output().count("round") > number, "calls")  # noqa: B023
    (root / "stop").touch()
    for loop in loops:
        await_fact(lambda: not loop.running, "the last call")  # noqa: B023
        assert "failed" not in loop.output()
        assert loop.output().count("round") > 3


READ_ONLY = """
mount --bind "$1" "$1" && cd "$1"
for place in $2; do mkdir -p $place; done
mount -o remount,bind,ro "$1"
for place in $2; do
    mount --bind "$1/$place" "$1/$place"
    mount -o remount,bind,rw "$1/$place"
done
shift 2
exec "$@"
"""


def with_read_only_root(tool: Tool, writable: str) -> subprocess.CompletedProcess[str]:
    """Install where all but these directories is on a read-only disk."""
    install = [*tool.node.lab.command, "install", "--root", str(tool.root)]
    script = ["sh", "-ec", READ_ONLY, "sh", str(tool.root), writable, *install]
    environ = {"PATH": os.environ["PATH"]}
    return tool.node.run(["unshare", "--mount", *script], check=False, env=environ)


def test_on_a_read_only_root_what_can_be_written_is_and_the_rest_is_said(
    tool: Tool, root: Path
) -> None:
    ran = with_read_only_root(tool, "opt var etc/cni")
    assert ran.returncode == 0, ran.stderr
    assert f"link {root}/opt/bin/mycelium-cni to /{PLUGIN}" in ran.stdout
    assert "mycelium-cni-setup.service cannot be written, its disk is read-only" in ran.stdout
    assert {CONFLIST, PLUGIN, "opt/bin/mycelium-cni"} <= tree(root).keys()
    assert not list(root.glob("etc/systemd/*"))


def test_a_read_only_directory_of_plugins_is_refused_with_the_way_out(
    tool: Tool, root: Path
) -> None:
    ran = with_read_only_root(tool, "var etc/cni")
    assert ran.returncode == 1
    assert "opt/cni/bin cannot be written" in ran.stderr
    assert "--bin-dir" in ran.stderr
    (root / "etc/containerd").mkdir()
    (root / "etc/containerd/config.toml").write_text(
        '[plugins."io.containerd.cri.v1.runtime".cni]\n'
        'bin_dirs = ["/opt/cni/bin", "/var/cni/bin"]\n'
    )
    ran = with_read_only_root(tool, "var etc/cni")
    assert ran.returncode == 0, ran.stderr
    assert {CONFLIST, "var/cni/bin/mycelium-cni"} <= tree(root).keys()


# What k3s writes where flannel is the pods' network; without it, k3s names no directories.
K3S = """\
version = 3
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/var/lib/rancher/k3s/data/cni"]
  conf_dir = "/var/lib/rancher/k3s/agent/etc/cni/net.d"
"""
RUNTIMES = {
    # the files of a node and their texts; where the network and the executable must go then
    "k3s": (
        {"var/lib/rancher/k3s/agent/etc/containerd/config.toml": K3S},
        "var/lib/rancher/k3s/agent/etc/cni/net.d",
        "var/lib/rancher/k3s/data/cni",
    ),
    "k3s elsewhere": (
        {
            "etc/rancher/k3s/config.yaml": "data-dir: /old\n",
            "etc/rancher/k3s/config.yaml.d/10-disk.yaml": 'data-dir: "/mnt/k3s" # the disk\n',
            "mnt/k3s/agent/etc/containerd/config.toml": K3S.replace("/var/lib/rancher", "/mnt"),
        },
        "mnt/k3s/agent/etc/cni/net.d",
        "mnt/k3s/data/cni",
    ),
    "k3s without flannel": (
        {
            "var/lib/rancher/k3s/agent/etc/containerd/config.toml": "version = 3\n",
            "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist": json.dumps(FLANNEL),
        },
        "etc/cni/net.d",
        "opt/cni/bin",
    ),
    "rke2": (
        {
            "var/lib/rancher/rke2/agent/etc/containerd/config.toml": (
                '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/opt/cni/bin"\n'
            )
        },
        "etc/cni/net.d",
        "opt/cni/bin",
    ),
    "microk8s": (
        {
            "var/snap/microk8s/current/args/containerd.toml": (
                '[plugins."io.containerd.grpc.v1.cri".cni]\n'
                'bin_dir = "${SNAP_DATA}/opt/cni/bin"\n'
                'conf_dir = "${SNAP_DATA}/args/cni-network"\n'
            )
        },
        "var/snap/microk8s/current/args/cni-network",
        "var/snap/microk8s/current/opt/cni/bin",
    ),
    "containerd 2": (
        {
            "etc/containerd/config.toml": (
                "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\n"
                "bin_dirs = ['/usr/libexec/cni']\nconf_dir = '/run/cni/net.d'\n"
            )
        },
        "run/cni/net.d",
        "usr/libexec/cni",
    ),
}


@pytest.mark.parametrize(("there", "conf", "bins"), RUNTIMES.values(), ids=RUNTIMES)
def test_the_runtimes_directories_are_found(
    there: dict[str, str], conf: str, bins: str, tool: Tool, root: Path
) -> None:
    for name, text in there.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / bins).mkdir(parents=True, exist_ok=True)
    (root / bins / "loopback").write_text("")
    done(tool, "install")
    assert (root / conf / "10-mycelium.conflist").is_file()
    assert (root / bins / "mycelium-cni").is_file()


@pytest.mark.parametrize("brought", ["data/cni", "data/current/bin"])
def test_plugins_that_k3s_brings_are_linked_to_where_its_containerd_looks(
    brought: str, tool: Tool, root: Path
) -> None:
    k3s = root / "var/lib/rancher/k3s"
    plugins = k3s / brought
    plugins.mkdir(parents=True)
    (k3s / "agent/etc/containerd").mkdir(parents=True)
    (k3s / "agent/etc/containerd/config.toml").write_text("version = 3\n")
    (root / "opt/cni/bin/loopback").rename(plugins / "loopback")
    shutil.copy(plugins / "loopback", plugins / "portmap")
    (root / "opt/cni/bin/portmap").symlink_to("/of/an/older/k3s")
    before = tree(root)
    links = {
        f"opt/cni/bin/{name}": f"/var/lib/rancher/k3s/{brought}/{name}".encode()
        for name in ("loopback", "portmap")
    }
    said = done(tool, "install", "--dry-run")
    assert tree(root) == before
    assert done(tool, "install") == said
    assert links.items() <= tree(root).items()
    plugins_of_the_chain = json.loads((root / CONFLIST).read_text())["plugins"]
    assert [plugin["type"] for plugin in plugins_of_the_chain] == ["mycelium-cni", "portmap"]
    done(tool, "uninstall")
    assert tree(root) == before


def test_before_k3s_has_started_its_plugins_are_waited_for(tool: Tool, root: Path) -> None:
    (root / "opt/cni/bin/loopback").unlink()
    refused = tool("install", "--for", "k3s")
    assert refused.returncode == 1
    assert "or start k3s, which brings them" in refused.stderr
    assert "start k3s" not in tool("install").stderr


def test_uninstall_leaves_what_another_program_put_in_the_place_of_a_link(
    tool: Tool, root: Path
) -> None:
    done(tool, "install")
    link = root / "usr/local/bin/mycelium-cni"
    link.unlink()
    link.write_text("another program's")
    assert f"leave {link}" in done(tool, "uninstall", "--dry-run")
    done(tool, "uninstall")
    assert link.read_text() == "another program's"
    assert not (root / PLUGIN).exists()


def test_a_second_install_changes_nothing_and_says_so(tool: Tool, root: Path) -> None:
    done(tool, "install")
    before = {path: (root / path).lstat().st_ino for path in tree(root)}
    assert "nothing to do" in done(tool, "install")
    assert {path: (root / path).lstat().st_ino for path in tree(root)} == before


def test_a_configuration_stays_until_another_one_is_asked_for(tool: Tool, root: Path) -> None:
    done(tool, "install", "--ingress", "closed")
    done(tool, "install")
    assert json.loads((root / CONFLIST).read_text())["plugins"][0]["ingress"] == "closed"
    done(tool, "install", "--ingress", "cluster")
    assert json.loads((root / CONFLIST).read_text())["plugins"][0]["ingress"] == "cluster"


def test_another_plugin_of_the_name_and_an_operators_file_come_back(tool: Tool, root: Path) -> None:
    (root / PLUGIN).write_text("#!/bin/sh\nexit 1\n")
    (root / CONFLIST).write_text('{"cniVersion": "1.0.0", "name": "a", "plugins": []}')
    before = tree(root)
    done(tool, "install", "--primary", "--ingress", "open")
    assert tree(root)[PLUGIN] != before[PLUGIN]
    done(tool, "uninstall")
    assert tree(root) == before


def test_edits_survive_uninstall_beside_their_place(tool: Tool, root: Path) -> None:
    done(tool, "install")
    (root / CONFLIST).write_text("edited")
    done(tool, "uninstall")
    assert not (root / CONFLIST).exists()
    assert (root / f"{CONFLIST}.saved").read_text() == "edited"


def test_another_first_network_is_left_alone_without_primary(tool: Tool, root: Path) -> None:
    flannel = root / "etc/cni/net.d/10-flannel.conflist"
    flannel.write_text(json.dumps(FLANNEL))
    before = flannel.read_text()
    said = done(tool, "install")
    assert "config new --for multus" in said
    assert "--primary" in said
    assert [path.name for path in flannel.parent.iterdir()] == [flannel.name]
    done(tool, "install", "--primary")
    first, second = sorted(path.name for path in flannel.parent.iterdir())
    assert (first, second) == ("00-mycelium.conflist", flannel.name)
    done(tool, "uninstall")
    assert flannel.read_text() == before


def test_a_network_of_nerdctl_is_nobodys_first_one(tool: Tool, root: Path) -> None:
    """nerdctl makes it when it is first used; its containers name it."""
    theirs = root / "etc/cni/net.d/nerdctl-bridge.conflist"
    theirs.write_text(json.dumps({**FLANNEL, "name": "bridge", "nerdctlID": "17f29b07"}))
    before = tree(root)
    done(tool, "install")
    assert sorted(path.name for path in theirs.parent.iterdir())[0] == Path(CONFLIST).name
    done(tool, "uninstall")
    assert tree(root) == before


def test_a_broken_file_that_comes_first_is_named_and_nothing_is_made(
    tool: Tool, root: Path
) -> None:
    """containerd loads no network while such a file comes first."""
    broken = root / "etc/cni/net.d/00-a.conflist"
    broken.write_text('{"cniVersion": "1.0.0", "name": "a", "plugins": [')
    before = tree(root)
    refused = tool("install")
    assert refused.returncode == 1
    assert f"{broken} comes first and is invalid" in refused.stderr
    assert tree(root) == before
    done(tool, "install", "--primary")
    first, second = sorted(path.name for path in broken.parent.iterdir())
    assert first.endswith("-mycelium.conflist")
    assert second == broken.name
    done(tool, "uninstall")
    assert tree(root) == before


def test_what_is_left_of_our_own_file_is_replaced(tool: Tool, root: Path) -> None:
    (root / CONFLIST).write_text("")
    before = tree(root)
    done(tool, "install")
    assert json.loads((root / CONFLIST).read_text())["name"] == "mycelium"
    done(tool, "uninstall")
    assert tree(root) == before


def test_for_multus_the_node_gets_the_plugin_and_no_first_network(tool: Tool, root: Path) -> None:
    said = done(tool, "install", "--for", "multus")
    assert "config new --for multus --manifest" in said
    assert PLUGIN in tree(root)
    assert list((root / "etc/cni/net.d").iterdir()) == []


def test_runtimes_that_share_a_network_find_the_plugin_each_in_its_directory(
    tool: Tool, root: Path
) -> None:
    """As on Debian, whose containerd has /usr/lib/cni, beside a CRI-O as its makers ship it."""
    (root / "usr/lib/cni").mkdir(parents=True)
    for path, text in {
        "etc/containerd/config.toml": """version = 2
            [plugins."io.containerd.grpc.v1.cri".cni]
              bin_dir = "/usr/lib/cni"
        """,
        "etc/crio/crio.conf": "[crio.network]\nplugin_dirs = ['/opt/cni/bin/']\n",
    }.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
    before = tree(root)
    done(tool, "install")
    made = tree(root)
    assert made["usr/lib/cni/mycelium-cni"] == made[PLUGIN]
    assert "nothing to do" in done(tool, "install")
    done(tool, "uninstall")
    assert tree(root) == before


def test_podman_gets_a_network_beside_its_own(tool: Tool, root: Path) -> None:
    (root / "usr/lib").mkdir(parents=True, exist_ok=True)
    (root / "opt/cni/bin").rename(root / "usr/lib/cni")
    podmans = root / "etc/cni/net.d/87-podman-bridge.conflist"
    podmans.write_text(json.dumps(FLANNEL | {"name": "podman"}))
    before = tree(root)
    done(tool, "install")
    made = tree(root)
    assert {"etc/cni/net.d/90-mycelium.conflist", "usr/lib/cni/mycelium-cni"} <= made.keys()
    passes(tool, "conf")
    done(tool, "uninstall")
    assert tree(root) == before


def with_bridge(root: Path) -> None:
    """Add the plugins that give Nomad's allocations IPv4."""
    for name in ("bridge", "host-local"):
        (root / "opt/cni/bin" / name).write_text("")


def test_nomads_network_is_where_nomad_looks(tool: Tool, root: Path) -> None:
    with_bridge(root)
    before = tree(root)
    done(tool, "install", "--for", "nomad")
    (path,) = (root / "opt/cni/config").iterdir()
    written = json.loads(path.read_text())["plugins"]
    assert [one["type"] for one in written] == ["loopback", "bridge", "mycelium-cni"]
    assert PLUGIN in tree(root)
    done(tool, "install", "--for", "nomad", "--ingress", "closed")
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text())["plugins"][2]["ingress"] == "closed"
    done(tool, "uninstall")
    assert tree(root) == before


def test_nomads_other_networks_stay_where_its_directory_is_named(tool: Tool, root: Path) -> None:
    with_bridge(root)
    folder = root / "etc/nomad-cni"
    folder.mkdir()
    (folder / "10-theirs.conflist").write_text(json.dumps(FLANNEL))
    done(tool, "install", "--for", "nomad", "--conf-dir", str(folder))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["10-theirs.conflist", "90-mycelium.conflist"]


def test_for_nomad_no_containerd_is_asked(tool: Tool, root: Path) -> None:
    with_bridge(root)
    (root / "run/containerd").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as containerd:
        containerd.bind(str(root / "run/containerd/containerd.sock"))
        assert "the runtime at" in done(tool, "install")
        assert "the runtime at" not in done(tool, "install", "--for", "nomad")


def test_without_the_plugins_of_nomads_network_nothing_is_touched(tool: Tool, root: Path) -> None:
    (root / "opt/cni/bin/bridge").write_text("")
    before = tree(root)
    refused = tool("install", "--for", "nomad")
    assert refused.returncode == 1
    assert "there is no host-local in " in refused.stderr
    assert tree(root) == before


def test_a_node_that_only_nomad_uses_gets_nomads_network_unasked(tool: Tool, root: Path) -> None:
    (root / "etc/cni/net.d").rmdir()
    with_bridge(root)
    (root / "opt/cni/config").mkdir()
    done(tool, "install")
    (path,) = (root / "opt/cni/config").iterdir()
    assert json.loads(path.read_text())["plugins"][1]["bridge"] == "nomad-cni"
    passes(tool, "conf")
    passes(tool, "chain")


def test_a_runtime_that_is_not_there_yet_is_named(tool: Tool, root: Path) -> None:
    assert "there is no microk8s on this node yet" in done(tool, "install", "--for", "microk8s")
    done(tool, "uninstall")
    (root / "var/snap/microk8s/current/args/cni-network").mkdir(parents=True)
    folder = root / "var/snap/microk8s/current/opt/cni/bin"
    folder.mkdir(parents=True)
    for name in ("loopback", "portmap"):
        (folder / name).write_text("")
    assert "on this node yet" not in done(tool, "install", "--for", "microk8s")


def test_without_loopback_nothing_is_touched(tool: Tool, root: Path) -> None:
    (root / "opt/cni/bin/loopback").unlink()
    before = tree(root)
    refused = tool("install")
    assert refused.returncode == 1
    assert "loopback" in refused.stderr
    assert tree(root) == before


def test_uninstall_is_refused_where_nothing_was_installed_by_it(bare: Node, root: Path) -> None:
    before = tree(root)
    assert Tool(bare, root)("uninstall").stdout.startswith("nothing to do")
    assert tree(root) == before
