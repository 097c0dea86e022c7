# SPDX-License-Identifier: Apache-2.0
"""The files that the rest of a node reads: the boot unit, and what keeps managers off our links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
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
_SHIPPED_NAMES: Final = "myc*"  # pods' host links, and the usual names of interface and bridge


def patterns(links: Sequence[str]) -> list[str]:
    """Patterns for pods' host links and these others."""
    others = [name for name in links if not fnmatchcase(name, _SHIPPED_NAMES)]
    return [_SHIPPED_NAMES, *dict.fromkeys(others)]


def texts(executable: str, links: Sequence[str]) -> dict[str, str]:
    """The shipped files by the path where they belong, for an executable in this place, and links
    of these names beside those of pods."""
    share = resources.files("mycelium_ctl") / "share"
    found = {}
    for name, path in UNITS.items():
        text = (share / name).read_text().replace(_SHIPPED_PATH, executable)
        # Each line that names links names all of them.
        by_name = f"interface-name:{_SHIPPED_NAMES}"
        also = ";".join(f"interface-name:{pattern}" for pattern in patterns(links))
        text = text.replace(by_name, also)
        found[path] = text.replace(f"Name={_SHIPPED_NAMES}", f"Name={' '.join(patterns(links))}")
    return found


def covers(root: Path, unit: str, links: Sequence[str]) -> bool:
    """Whether a file is there, and names pods' host links and these others, if it names any."""
    place = UNITS[unit]
    if not (root / place).exists():
        place = place.replace("etc/", "usr/lib/", 1)  # where the package has it
    try:
        text = files.read(root / place).decode(errors="replace")
    except OSError:
        return False
    said = [line for line in text.splitlines() if re.match(r"\s*(Name|match-device)\s*=", line)]
    words = [word for line in said for word in re.split(r"[\s=:;,]+", line)]
    return not said or all(
        any(fnmatchcase(name, word) for word in words) for name in ("myc0123456789ab", *links)
    )


def absent(root: Path, executable: str, links: Sequence[str]) -> dict[Path, str]:
    """Those files that this node has a use for and does not have, by their paths."""
    found = {}
    for name, text in texts(executable, links).items():
        path = root / name
        # Nobody wants /etc/zinit on a machine with systemd.
        wanted = root / Path(*Path(name).parts[:2])
        if wanted.is_dir() and not (path.is_file() and path.read_text() == text):
            found[path] = text
    return found


def install(root: Path, executable: str, links: Sequence[str]) -> list[Path]:
    """Write what is `absent`; what was written.

    Raises ToolError where it cannot be.
    """
    missing = absent(root, executable, links)
    for path, text in missing.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolError(f"cannot make {path.parent}: {refused(error)}") from error
        files.write(path, text)
    return list(missing)
