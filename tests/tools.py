# SPDX-License-Identifier: Apache-2.0
"""The CNI project's own programs, built once from the Go module proxy: cnitool and the plugins.

They stay in `.tools/cni`, which git ignores. On a cold machine the build takes about two minutes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".tools" / "cni"
_PLUGINS = "github.com/containernetworking/plugins/plugins"
_PLUGINS_VERSION = "v1.9.1"
_MODULES = {
    "cnitool": "github.com/containernetworking/cni/cnitool@v1.3.1",
    **{
        name: f"{_PLUGINS}/{kind}/{name}@{_PLUGINS_VERSION}"
        for kind, names in {
            "main": "bridge dummy loopback macvlan ptp",
            "ipam": "host-local static",
            "meta": "bandwidth firewall portmap sbr tuning vrf",
        }.items()
        for name in names.split()
    },
}


def reference_plugins() -> Path:
    """The folder with the programs; builds what is missing, one process at a time.

    Raises RuntimeError with what is missing where that cannot be done: a test that needs the
    reference plugins then fails, because a green run means that everything ran.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [module for name, module in _MODULES.items() if not (FOLDER / name).exists()]
        if missing:
            _build(missing)
    return FOLDER


def _build(modules: list[str]) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise RuntimeError(
            "the Go toolchain is missing, so the reference CNI plugins cannot be built: "
            f"install Go 1.24 or newer, or put {', '.join(_MODULES)} into {FOLDER}"
        )
    environ = os.environ | {"GOBIN": str(FOLDER), "CGO_ENABLED": "0", "GOFLAGS": "-trimpath"}
    for module in modules:
        done = subprocess.run(
            [go, "install", module], env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"go install {module} failed: {done.stderr.strip()}")
