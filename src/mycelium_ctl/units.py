# SPDX-License-Identifier: Apache-2.0
"""The files that the rest of a node reads: the boot unit, and what keeps managers off our links."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from mycelium_ctl import files
from mycelium_ctl.errors import ToolError, refused

# What is shipped in share/, and where it belongs.
UNITS: Final = {
    "mycelium-cni-setup.service": "etc/systemd/system/mycelium-cni-setup.service",
    "networkd.network": "etc/systemd/network/05-mycelium-cni.network",
    "networkd.conf": "etc/systemd/networkd.conf.d/05-mycelium-cni.conf",
    "NetworkManager.conf": "etc/NetworkManager/conf.d/05-mycelium-cni.conf",
    "zinit.yaml": "etc/zinit/mycelium-cni-setup.yaml",
}
_SHIPPED_PATH: Final = "/opt/cni/bin/mycelium-cni"


def texts(executable: str) -> dict[str, str]:
    """The shipped files by the path where they belong, for an executable in this place."""
    share = resources.files("mycelium_ctl") / "share"
    return {
        path: (share / name).read_text().replace(_SHIPPED_PATH, executable)
        for name, path in UNITS.items()
    }


def install(root: Path, executable: str) -> list[Path]:
    """Write those files that this node has a use for; what was written.

    Raises ToolError where it cannot be.
    """
    written = []
    for name, text in texts(executable).items():
        path = root / name
        # Nobody wants /etc/zinit on a machine with systemd.
        wanted = root / Path(*Path(name).parts[:2])
        if not wanted.is_dir() or (path.is_file() and path.read_text() == text):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolError(f"cannot make {path.parent}: {refused(error)}") from error
        files.write(path, text)
        written.append(path)
    return written
