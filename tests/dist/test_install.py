# SPDX-License-Identifier: Apache-2.0
"""make install, and install from a container: the executable installs itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from mycelium_lab.lab import Lab

from .conftest import ROOT

# One at a time: they share the checkout.
pytestmark = pytest.mark.xdist_group("make")


def install(root: Path, *settings: str, wrapper: tuple[str, ...] = ()) -> str:
    """Run `make install` as a packager would; what it prints."""
    return subprocess.run(
        [*wrapper, "make", "--no-print-directory", "install", f"DESTDIR={root}", *settings],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_the_executable_the_tool_and_a_valid_conflist_are_installed(
    executable: Path, tmp_path: Path
) -> None:
    install(tmp_path)
    plugin = tmp_path / "opt/cni/bin/mycelium-cni"
    assert plugin.read_bytes() == executable.read_bytes()
    assert os.access(plugin, os.X_OK)
    conflist = tmp_path / "etc/cni/net.d/10-mycelium.conflist"
    assert json.loads(conflist.read_text())["plugins"][-1]["type"] == "mycelium-cni"
    subprocess.run([plugin, "config", "check", conflist], check=True, capture_output=True)
    tool = tmp_path / "usr/local/bin/mycelium-cni"
    assert str(tool.readlink()) == "/opt/cni/bin/mycelium-cni"
    receipt = tmp_path / "var/lib/mycelium-cni/installed.json"
    files = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    assert sorted(files) == sorted([plugin, conflist, tool, receipt])


def test_other_places_and_options_are_honoured(tmp_path: Path) -> None:
    install(
        tmp_path,
        "CNI_BIN_DIR=/usr/libexec/cni",
        "CNI_CONF_DIR=/etc/kubernetes/cni/net.d",
        "CONFIG=--ingress closed",
    )
    assert (tmp_path / "usr/libexec/cni/mycelium-cni").is_file()
    conflist = tmp_path / "etc/kubernetes/cni/net.d/10-mycelium.conflist"
    assert json.loads(conflist.read_text())["plugins"][0]["ingress"] == "closed"


def test_a_conflist_that_is_there_is_kept(tmp_path: Path) -> None:
    install(tmp_path, "CONFIG=--ingress closed")
    conflist = tmp_path / "etc/cni/net.d/10-mycelium.conflist"
    before = conflist.read_text()
    assert "stays as it is" in install(tmp_path)
    assert conflist.read_text() == before


def test_files_come_by_renaming_and_the_conflist_comes_last(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-o", str(trace), "-e", "trace=rename,renameat,renameat2")
    install(tmp_path, wrapper=strace)
    names = re.findall(r'rename\w*\(.*"([^"]+)"[^"]*\) = 0', trace.read_text())
    arrived = [name.removeprefix(str(tmp_path)) for name in names if str(tmp_path) in name]
    files = [name for name in arrived if not name.endswith("/installed.json")]
    assert files == [
        "/opt/cni/bin/mycelium-cni",
        "/usr/local/bin/mycelium-cni",
        "/etc/cni/net.d/10-mycelium.conflist",
    ]


@pytest.mark.usefixtures("executable")
def test_a_running_plugin_is_not_disturbed(tmp_path: Path) -> None:
    install(tmp_path)
    plugin = tmp_path / "opt/cni/bin/mycelium-cni"
    older = plugin.with_name("older")
    older.write_bytes(plugin.read_bytes() + b"\n")
    older.chmod(0o755)
    older.rename(plugin)
    # VERSION waits half a second for a standard input that stays open and says nothing.
    with subprocess.Popen(
        [plugin],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        time.sleep(0.1)
        before = plugin.stat().st_ino
        install(tmp_path)
        assert plugin.stat().st_ino != before
        out, _ = running.communicate(timeout=10)
    assert json.loads(out)["supportedVersions"]
    assert running.returncode == 0


ON_THE_NODE = """
mkdir -p "$1/proc" && mount --bind /proc "$1/proc" && cd /
root=$1; shift
exec "$1" --host-root "$root" "$2"
"""


def test_in_a_container_it_works_on_the_node_whose_root_it_has(
    executable: Path, tmp_path: Path
) -> None:
    """It prepares the node, too, and uninstall undoes that."""
    root = tmp_path / "host"
    elsewhere = tmp_path / "host/usr/libexec/cni"
    elsewhere.mkdir(parents=True)
    (elsewhere / "loopback").write_text("")
    (root / "opt/cni/bin").mkdir(parents=True)
    # A link of the node's, which leads somewhere else in the container.
    (root / "opt/cni/bin/loopback").symlink_to("/usr/libexec/cni/loopback")
    with Lab([str(executable)]) as lab:
        node = lab.node("a")
        node.configure(
            "tuntap add mycelium mode tun",
            "link set mycelium mtu 1400 up",
            "address add 5a1:2b3c:4d5e:6f70:ff0f::1/7 dev mycelium",
        )

        def there(command: str) -> str:
            script = ["sh", "-ec", ON_THE_NODE, "sh", str(root), str(executable), command]
            return node.run(["unshare", "--mount", *script]).stdout

        def made() -> int:
            tables = node.run(["nft", "list", "tables"]).stdout.count("mycelium-cni")
            return len(node.ip("-6", "route", "show", "proto", "77")) + tables

        def files() -> list[Path]:
            return sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())

        before = files()
        assert "write /opt/cni/bin/mycelium-cni" in there("install")
        assert (root / "opt/cni/bin/mycelium-cni").read_bytes() == executable.read_bytes()
        assert (root / "etc/cni/net.d/10-mycelium.conflist").is_file()
        assert made() > 2
        assert "remove /etc/cni/net.d/10-mycelium.conflist" in there("uninstall")
        assert files() == before
        assert made() == 0
