# SPDX-License-Identifier: Apache-2.0
"""Which directories runtimes read, which file they take, and what else may be there. Nothing in
these directories stops a command, or makes one wait."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_doctor import fails, passes
from tool import Tool

OURS = {"cniVersion": "1.0.0", "name": "mycelium", "plugins": [{"type": "mycelium-cni"}]}
FOREIGN = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}
WITHIN_S = 20  # far more than a command takes, and less than for ever


def fifo(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("/var/lib/rancher/gone.conflist")


def loop(path: Path) -> None:
    path.symlink_to(path)


def to_a_directory(path: Path) -> None:
    path.symlink_to("/usr")


def to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


STRANGE = {
    fifo: "it is a FIFO",
    directory: "it is a directory",
    dangling: "symbolic link to /var/lib/rancher/gone.conflist, which is not there",
    loop: "a loop",
    to_a_directory: "it is a directory",
    to_a_device: "it is a device",
}


@pytest.mark.parametrize(
    ("make", "name"),
    [*((make, "05-first.conflist") for make in STRANGE), (fifo, "99-last.conf")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_is_no_file_is_a_finding_beside_the_others(tool: Tool, make: Any, name: str) -> None:
    path = tool.root / "etc/cni/net.d" / name
    make(path)
    argv = [*tool.node.lab.command, "setup", "--root", str(tool.root)]
    assert tool.node.run(argv, timeout_s=WITHIN_S, check=False).returncode == 0
    findings = {one["name"]: one for one in tool.json("doctor")}
    assert STRANGE[make] in findings["conf-valid"]["found"]
    assert str(path) in findings["conf-valid"]["found"]
    shadows = name.startswith("05") and make is not directory
    assert findings["conf"]["state"] == ("fail" if shadows else "ok")
    assert tool("status").returncode == (1 if shadows else 0)
    if make is fifo:
        for argv in (["list"], ["gc", "--dry-run"], ["inspect", "--json"]):
            assert tool(*argv).returncode == 0, argv
        assert "all that was tried works" in tool("test").stdout
    checked = tool("config", "check", str(path.parent), looks=False)
    assert STRANGE[make] in checked.stdout
    assert "good, network mycelium" in checked.stdout


def test_a_directory_of_fifos_for_the_runtimes_own_configuration(tool: Tool) -> None:
    for place in ("etc/containerd/config.toml", "etc/crio/crio.conf.d/05", "etc/crio/crio.conf"):
        path = tool.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        fifo(path)
    assert tool("status").returncode == 0


# The directories of each runtime


def write(path: Path, text: str | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def move_ours(tool: Tool, conf: str, bins: str) -> None:
    """Our file and the executables are in other places than the usual ones."""
    for old, new in (("etc/cni/net.d", conf), ("opt/cni/bin", bins)):
        (tool.root / new).parent.mkdir(parents=True, exist_ok=True)
        (tool.root / old).rename(tool.root / new)


RUNTIMES = {
    "CRI-O's drop-in": {
        "etc/crio/crio.conf": '[crio.network]\nnetwork_dir = "/etc/cni/elsewhere"\n',
        "etc/crio/crio.conf.d/00-default.conf": (
            '[crio.network]\nnetwork_dir = "/my/net"\nplugin_dirs = ["/none", "/my/exe"]\n'
        ),
    },
    "only a drop-in": {
        "etc/crio/crio.conf.d/10-crio.conf": (
            '[crio.network]\nnetwork_dir = "/my/net/"\nplugin_dirs = ["/my/exe/"]\n'
        ),
    },
    "the older name of CRI-O's executables": {
        "etc/crio/crio.conf": (
            '[crio.network]\nnetwork_dir = "/my/net"\nplugin_dir = "/my/exe"\n'
            '[crio.other]\nnetwork_dir = "/none"\n'
        ),
    },
    "what containerd imports": {
        "etc/containerd/config.toml": 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n',
        "etc/containerd/conf.d/cni.toml": (
            "[plugins.'io.containerd.cri.v1.runtime'.cni]\n"
            "conf_dir = '/my/net'\nbin_dirs = ['/my/exe']\n"
        ),
    },
    "imports beside it, in a circle": {
        "etc/containerd/config.toml": 'version = 2\nimports = ["config.toml", "more.toml"]\n',
        "etc/containerd/more.toml": (
            'imports = ["config.toml"]\n[plugins."io.containerd.grpc.v1.cri".cni]\n'
            'conf_dir = "/my/net"\nbin_dir = "/my/exe"\n'
        ),
    },
}


@pytest.mark.parametrize("written", RUNTIMES.values(), ids=RUNTIMES)
def test_directories_are_those_that_the_runtime_was_told(
    tool: Tool, written: dict[str, str]
) -> None:
    move_ours(tool, "my/net", "my/exe")
    write(tool.root / "etc/cni/net.d/10-left-over.conflist", FOREIGN)
    for place, text in written.items():
        write(tool.root / place, text)
    for check in ("conf", "conf-valid", "plugin", "chain"):
        assert "/etc/cni/net.d" not in tool.doctor(check)["found"]
        passes(tool, check)
    assert tool.json("status")["configuration"].endswith("/my/net/10-mycelium.conflist")


def test_crio_takes_the_network_that_it_is_told(tool: Tool) -> None:
    drop_in = tool.root / "etc/crio/crio.conf.d/cni.conf"
    tool.conf(FOREIGN, "05-other.conflist")
    write(drop_in, '[crio.network]\ncni_default_network = "mycelium"\n')
    passes(tool, "conf")
    write(drop_in, '[crio.network]\ncni_default_network = "other"\n')
    fails(tool, "conf", "05-other.conflist (bridge)", "comes before")
    write(drop_in, '[crio.network]\ncni_default_network = "nobodys"\n')
    fails(tool, "conf", "waits for network nobodys")
    write(drop_in, '[crio.network]\ncni_default_network = ""\n')
    fails(tool, "conf", "comes before")
    # It skips an invalid file, unlike containerd.
    tool.conf("{", "05-other.conflist")
    passes(tool, "conf")
    drop_in.unlink()
    fails(tool, "conf", "is invalid")


def test_the_executables_of_the_file_that_counts_are_looked_for(tool: Tool) -> None:
    bins = tool.root / "opt/cni/bin"
    multus = {"cniVersion": "0.3.1", "name": "m", "type": "multus", "delegates": [OURS]}
    tool.conf(multus, "00-multus.conf")
    found = fails(tool, "chain", 'failed to find plugin "multus"', "00-multus.conf names it")
    assert "remove what names it" in found["advice"]
    assert tool("status").returncode == 1
    write(bins / "multus", "")
    passes(tool, "chain")
    bridge = {"type": "bridge", "ipam": {"type": "host-local"}}
    (tool.root / "etc/cni/net.d/00-multus.conf").unlink()
    tool.conf({**OURS, "plugins": [bridge, {"type": "mycelium-cni"}]}, "00-chain.conflist")
    write(bins / "bridge", "")
    fails(tool, "chain", 'failed to find plugin "host-local"', "install the CNI plugins")
