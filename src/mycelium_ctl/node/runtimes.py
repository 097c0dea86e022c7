# SPDX-License-Identifier: Apache-2.0
"""Where this node's runtimes look for configurations and executables, and what they find there.

The files are read with the rules of libcni, containerd and CRI-O.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelium_ctl.errors import ToolError
from mycelium_ctl.node.conflist import ConfFile, list_files
from mycelium_ctl.node.conflist import read as read_conf

if TYPE_CHECKING:
    from mycelium_ctl.node.state import Options

# Where runtimes look: configurations, executables, whose they are. The grid's k3s image comes last.
PLACES: Final = (
    ("etc/cni/net.d", ("opt/cni/bin",), "kubelet"),
    (
        "var/lib/rancher/k3s/agent/etc/cni/net.d",
        ("var/lib/rancher/k3s/data/cni", "var/lib/rancher/k3s/data/current/bin", "opt/cni/bin"),
        "k3s",
    ),
    ("mnt/data/agent/etc/cni/net.d", ("mnt/data/data/cni",), "k3s of the ThreeFold Grid"),
)


class CniDirs(NamedTuple):
    """A pair of directories that a runtime uses."""

    conf: Path
    bins: tuple[Path, ...]
    whose: str


def find_dirs(where: Options) -> list[CniDirs]:
    """The directories that the runtimes of this node read. Those that the command line names, else
    those that containerd's and CRI-O's configurations name, and the usual ones that are there."""
    root = where.root
    if where.conf_dirs:
        bins = where.bin_dirs or (root / PLACES[0][1][0],)
        return [CniDirs(conf, bins, "you") for conf in where.conf_dirs]
    found = [
        CniDirs(root / conf, where.bin_dirs or tuple(root / name for name in bins), whose)
        for conf, bins, whose in PLACES
        if (root / conf).is_dir()
    ]
    for config, whose in (
        ("etc/containerd/config.toml", "containerd"),
        ("var/lib/rancher/k3s/agent/etc/containerd/config.toml", "k3s"),
        ("etc/crio/crio.conf", "CRI-O"),
    ):
        said, executables = _said_dirs(root / config)
        known = [dirs.conf for dirs in found]
        for conf in said:
            place = root / conf.lstrip("/")
            if place not in known:
                named = tuple(root / name.lstrip("/") for name in executables)
                found.append(CniDirs(place, where.bin_dirs or named, whose))
    if not found:
        usual, paths, whose = PLACES[0]
        bins = where.bin_dirs or tuple(root / name for name in paths)
        found = [CniDirs(root / usual, bins, whose)]
    return found


def _said_dirs(path: Path) -> tuple[list[str], list[str]]:
    """CNI directories in a runtime's configuration: their keys differ with the version, so they are
    looked for wherever they stand."""
    if not path.is_file():
        return [], []
    import tomllib

    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return [], []
    confs: list[str] = []
    bins: list[str] = []

    def look(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else ():
            if key in ("conf_dir", "network_dir") and isinstance(item, str) and "cni" in item:
                confs.append(item)
            elif key in ("bin_dir", "bin_dirs", "plugin_dirs"):
                listed = item if isinstance(item, list) else [item]
                bins.extend(str(one) for one in listed)
            else:
                look(item)

    look(document)
    return confs, bins


@dataclass(frozen=True, slots=True)
class ConfDir:
    """A configuration directory with its files, in the order in which runtimes read them."""

    dirs: CniDirs
    files: list[ConfFile]

    @property
    def winner(self) -> ConfFile | None:
        """The file that decides how pods are attached: containerd takes the first one, and nothing
        at all when that is invalid."""
        return self.files[0] if self.files else None

    @property
    def ours(self) -> ConfFile | None:
        """The file with our plugin's configuration that counts: the winner, else what a
        meta-plugin such as Multus might delegate to."""
        return next((conf for conf in self.files if conf.valid and conf.entries), None)

    @property
    def by_multus(self) -> bool:
        winner = self.winner
        return winner is not None and any(kind.startswith("multus") for kind in winner.types)


def read_confs(where: Options) -> list[ConfDir]:
    found = []
    for dirs in find_dirs(where):
        files = []
        for path in list_files(dirs.conf):
            try:
                files.append(read_conf(path))
            except OSError as error:
                raise ToolError(f"cannot read {path}: {error.strerror}") from error
        found.append(ConfDir(dirs, files))
    return found


def find_executable(name: str, dirs: CniDirs) -> Path | None:
    """The executable that the runtime starts for a plugin type."""
    for directory in dirs.bins:
        path = directory / name
        if path.is_file():
            return path
    return None
