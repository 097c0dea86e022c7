# SPDX-License-Identifier: Apache-2.0
"""Files that other programs read: the boot unit, and what keeps network managers off our links."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from mycelium_ctl import files, programs, share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelium_ctl.receipt import Receipt


class Step(NamedTuple):
    """One thing to do, in words that a person could follow."""

    words: str
    do: Callable[[], object]


class Unit(NamedTuple):
    """Where a file of share/ belongs. `reader`: the directory of the program that reads it; a node
    without it does not need the file. `boot`: the symbolic links that run it at boot, as
    `systemctl enable` and `rc-update add` make them."""

    place: str
    reader: str
    mode: int = 0o644
    boot: tuple[str, ...] = ()


UNITS: Final = {
    "mycelium-cni-setup.service": Unit(
        "etc/systemd/system/mycelium-cni-setup.service",
        "etc/systemd",
        boot=tuple(
            f"etc/systemd/system/{target}.wants/mycelium-cni-setup.service"
            for target in ("multi-user.target", "mycelium.service")
        ),
    ),
    "networkd.network": Unit("etc/systemd/network/05-mycelium-cni.network", "etc/systemd"),
    "networkd.conf": Unit("etc/systemd/networkd.conf.d/05-mycelium-cni.conf", "etc/systemd"),
    "NetworkManager.conf": Unit(
        "etc/NetworkManager/conf.d/05-mycelium-cni.conf", "etc/NetworkManager"
    ),
    "openrc": Unit(
        "etc/init.d/mycelium-cni-setup",
        "etc/runlevels",
        mode=0o755,
        boot=("etc/runlevels/default/mycelium-cni-setup",),
    ),
    # zinit runs whatever is in its directory.
    "zinit.yaml": Unit("etc/zinit/mycelium-cni-setup.yaml", "etc/zinit"),
}
RELOAD: Final = ("systemctl", "daemon-reload")
_SHIPPED_PATH: Final = "/opt/cni/bin/mycelium-cni"
_SHIPPED_NAMES: Final = "myc*"  # pods' host links, and the usual names of interface and bridge


def patterns(links: Sequence[str]) -> list[str]:
    """Patterns for pods' host links and these others."""
    others = [name for name in links if not fnmatchcase(name, _SHIPPED_NAMES)]
    return [_SHIPPED_NAMES, *dict.fromkeys(others)]


def texts(executable: str, links: Sequence[str]) -> dict[Unit, str]:
    """The shipped files, for this executable, and for links of these names beside pods'."""
    found = {}
    for name, unit in UNITS.items():
        text = share.read(name).replace(_SHIPPED_PATH, executable)
        # Each line that names links names all of them.
        by_name = f"interface-name:{_SHIPPED_NAMES}"
        also = ";".join(f"interface-name:{pattern}" for pattern in patterns(links))
        text = text.replace(by_name, also)
        found[unit] = text.replace(f"Name={_SHIPPED_NAMES}", f"Name={' '.join(patterns(links))}")
    return found


def covers(root: Path, unit: str, links: Sequence[str]) -> bool:
    """Whether a file exists and, if it names links, names pods' host links and these."""
    place = UNITS[unit].place
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


def holds(path: Path, text: str) -> bool:
    """Whether a file exists with exactly this text."""
    return path.is_file() and path.read_text() == text


def steps(receipt: Receipt, executable: str, links: Sequence[str]) -> tuple[list[Step], list[str]]:
    """What this node lacks of them, and how to make it, noted in the receipt for `uninstall`; and
    notes on what cannot be made. `executable`: as the node has it."""
    found, notes, root = [], [], receipt.root
    for unit, text in texts(executable, links).items():
        path = root / unit.place
        if not (root / unit.reader).is_dir():
            continue
        if not files.writable(path):
            notes.append(f"{path} cannot be written, its disk is read-only")
            continue
        if not holds(path, text):
            write = partial(receipt.write, path, text.encode(), unit.mode)
            found.append(Step(f"write {path}", write))
        for link in (root / place for place in unit.boot):
            if not link.is_symlink():
                target = receipt.place(path)
                make = partial(receipt.link, link, target)
                found.append(Step(f"link {link} to {target}", make))
    if found and systemd_runs(root):
        found.append(Step(shlex.join(RELOAD), partial(programs.change, RELOAD)))
    return found, notes


def systemd_runs(root: Path) -> bool:
    """Whether the systemd of this root directory runs, and can load new units."""
    return root == Path("/") and Path("/run/systemd/system").is_dir()  # sd_booted(3)
