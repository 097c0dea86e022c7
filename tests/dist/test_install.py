# SPDX-License-Identifier: Apache-2.0
"""make install: at no moment is there a half-written file under a name that a runtime uses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import ROOT

# One at a time: they share the checkout.
pytestmark = pytest.mark.xdist_group("make")


def install(root: Path, *wrapper: str) -> str:
    """Run `make install` as a packager would; what it prints."""
    return subprocess.run(
        [*wrapper, "make", "--no-print-directory", "install", f"DESTDIR={root}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_the_executable_and_a_valid_conflist_are_installed(
    executable: Path, tmp_path: Path
) -> None:
    install(tmp_path)
    plugin = tmp_path / "opt/cni/bin/mycelium-cni"
    assert plugin.read_bytes() == executable.read_bytes()
    assert os.access(plugin, os.X_OK)
    conflist = tmp_path / "etc/cni/net.d/10-mycelium.conflist"
    assert json.loads(conflist.read_text())["plugins"][-1]["type"] == "mycelium-cni"
    subprocess.run([plugin, "config", "check", conflist], check=True, capture_output=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == sorted([plugin, conflist])


def test_other_places_are_honoured(tmp_path: Path) -> None:
    subprocess.run(
        ["make", "install", f"CNI_BIN_DIR={tmp_path}/bin", f"CNI_CONF_DIR={tmp_path}/conf"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "bin/mycelium-cni").is_file()
    assert (tmp_path / "conf/10-mycelium.conflist").is_file()


def test_a_conflist_that_is_there_is_kept(tmp_path: Path) -> None:
    conflist = tmp_path / "etc/cni/net.d/10-mycelium.conflist"
    conflist.parent.mkdir(parents=True)
    conflist.write_text("the operator's own")
    assert "kept" in install(tmp_path)
    assert conflist.read_text() == "the operator's own"


def test_files_come_by_renaming_and_the_conflist_comes_last(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    install(tmp_path, "strace", "-f", "-o", str(trace), "-e", "trace=rename,renameat,renameat2")
    names = re.findall(r'rename\w*\(.*"([^"]+)"[^"]*\) = 0', trace.read_text())
    arrived = [Path(name).name for name in names if str(tmp_path) in name]
    assert arrived == ["mycelium-cni", "10-mycelium.conflist"]


@pytest.mark.usefixtures("executable")
def test_a_running_plugin_is_not_disturbed(tmp_path: Path) -> None:
    install(tmp_path)
    plugin = tmp_path / "opt/cni/bin/mycelium-cni"
    # VERSION waits half a second for a standard input that stays open and says nothing.
    with subprocess.Popen(
        [plugin],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        time.sleep(0.1)
        before = plugin.stat().st_ino
        subprocess.run(
            [
                ROOT / "launcher/install",
                plugin,
                "/dev/null",
                tmp_path / "opt/cni/bin",
                tmp_path / "etc/cni/net.d",
            ],
            check=True,
            capture_output=True,
        )
        assert plugin.stat().st_ino != before
        assert running.poll() is None
        out, _ = running.communicate(timeout=10)
    assert json.loads(out)["supportedVersions"]
    assert running.returncode == 0
