# SPDX-License-Identifier: Apache-2.0
"""Where this node's runtimes look for configurations and executables, and what they find there.

The files are read with the rules of libcni, containerd and CRI-O. A file that is
unreadable or invalid is reported, and stops nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelium_ctl import files
from mycelium_ctl.node.conflist import ConfFile, list_files
from mycelium_ctl.node.conflist import read as read_conf
from mycelium_ctl.node.options import Options

# Where runtimes look: configurations, executables, runtime.
USUAL: Final = ("etc/cni/net.d", ("opt/cni/bin",), "kubelet")
SNAP_DATA: Final = "var/snap/microk8s/current"
MICROK8S: Final = (f"{SNAP_DATA}/args/cni-network", (f"{SNAP_DATA}/opt/cni/bin",), "microk8s")
NOMAD: Final = ("opt/cni/config", ("opt/cni/bin",), "nomad")
# Podman makes this file. It looks in more directories; these are where distributions have plugins.
PODMANS_NETWORK: Final = "etc/cni/net.d/87-podman-bridge.conflist"
PODMANS_PLUGINS: Final = ("usr/libexec/cni", "usr/lib/cni", "opt/cni/bin")
GRIDS_K3S: Final = "mnt/data"  # the data directory of the ThreeFold Grid's k3s image

# Runtimes' configurations: the file, a directory of drop-ins, of which runtime, the defaults, and
# where the runtime has plugins of its own.
CONFIGS: Final = (
    ("etc/containerd/config.toml", "", "containerd", USUAL, ()),
    (f"{SNAP_DATA}/args/containerd.toml", "", "microk8s", MICROK8S, ()),
    ("etc/crio/crio.conf", "etc/crio/crio.conf.d", "CRI-O", USUAL, ()),
)
# Below the data directories of k3s and RKE2. Without their own network (`flannel-backend: none`,
# `cni: none`) the file names no directories for CNI: containerd looks in the usual ones, where the
# plugins that k3s brings are not.
CONTAINERD_OF_RANCHER: Final = "agent/etc/containerd/config.toml"
PLUGINS_OF_K3S: Final = ("data/cni", "data/current/bin")  # the first since k3s 1.31
FIRST: Final = "00-mycelium.conflist"  # before other networks
USUAL_FILE: Final = "10-mycelium.conflist"
LAST: Final = "90-mycelium.conflist"  # beside networks that containers name
MOST_FILES: Final = 100  # of one runtime's configuration


class CniDirs(NamedTuple):
    """A pair of directories that a runtime uses. `named`: a runtime's configuration names it;
    `network`: the one that CRI-O is told to take (cni_default_network); `searched`: where several
    runtimes share `conf` and not `bins`, the `bins` of each; `brought`: where the runtime has
    plugins of its own that it may not look for."""

    conf: Path
    bins: tuple[Path, ...]
    whose: str
    named: bool = False
    network: str = ""
    searched: tuple[tuple[Path, ...], ...] = ()
    brought: tuple[Path, ...] = ()

    @property
    def by_name(self) -> bool:
        """Whether the order of the files does not matter, because each container names its
        network."""
        return self.whose in ("podman", "nomad")


def find_dirs(where: Options) -> list[CniDirs]:
    """The directories that the runtimes of this node read. Those that the command line names, else
    the usual ones that are there, and those that containerd's and CRI-O's configurations name."""
    root = where.root
    if where.conf_dirs:
        bins = where.bin_dirs or _below(root, USUAL[1])
        return [CniDirs(conf, bins, "you") for conf in where.conf_dirs]
    found = {
        root / conf: CniDirs(root / conf, where.bin_dirs or _below(root, bins), whose)
        for conf, bins, whose in (USUAL, MICROK8S, NOMAD)
        if os.path.isdir(root / conf)  # noqa: PTH112 - also False where it may not be looked at
    }
    usual = root / USUAL[0]
    if usual in found and (root / PODMANS_NETWORK).exists():
        there = [place for place in PODMANS_PLUGINS if (root / place).is_dir()]
        found[usual] = CniDirs(usual, where.bin_dirs or _below(root, there or USUAL[1]), "podman")
    configs = (*CONFIGS, *_configs_of_rancher(root))
    for config, drop_ins, whose, (usual_conf, usual_bins, _), brought in configs:
        said = _said(root, config, drop_ins)
        if said is None:
            continue
        conf = _below(root, [said.conf or usual_conf])[0]
        bins = where.bin_dirs or _below(root, said.bins or usual_bins)
        other = found.get(conf)
        searched: tuple[tuple[Path, ...], ...] = ()
        if other and other.named and other.bins != bins:
            searched = (*(other.searched or (other.bins,)), bins)
            bins = tuple(dict.fromkeys((*other.bins, *bins)))
        own = _below(root, brought)
        found[conf] = CniDirs(conf, bins, whose, True, said.network, searched, own)
    if not found:
        conf = root / USUAL[0]
        found[conf] = CniDirs(conf, where.bin_dirs or _below(root, USUAL[1]), USUAL[2])
    return list(found.values())


def _configs_of_rancher(root: Path) -> Iterator[tuple[Any, ...]]:
    """The rows of CONFIGS for k3s and RKE2, by their data directories."""
    for data in (_data_directory(root, "k3s"), GRIDS_K3S):
        own = tuple(f"{data}/{place}" for place in PLUGINS_OF_K3S)
        yield f"{data}/{CONTAINERD_OF_RANCHER}", "", "k3s", USUAL, own
    yield f"{_data_directory(root, 'rke2')}/{CONTAINERD_OF_RANCHER}", "", "rke2", USUAL, ()


def _data_directory(root: Path, name: str) -> str:
    """Where k3s or RKE2 keeps everything, below the root: /var/lib/rancher/NAME, or what `data-dir`
    of its configuration says; the last file wins."""
    folder = root / "etc/rancher" / name
    drop_ins = sorted(_listed(folder / "config.yaml.d"))
    found = f"var/lib/rancher/{name}"
    for path in (folder / "config.yaml", *drop_ins):
        with suppress(OSError):
            said = re.findall(rb"""^data-dir:\s*["']?/([^"'#\s]+)""", files.read(path), re.M)
            found = os.fsdecode(said[-1]) if said else found
    return found


def choose_dirs(where: Options, runtime: str | None) -> CniDirs:
    """The directories of the runtime of this name. Without a name, or if it has none here: those
    that a configuration names, else the first. Those of the command line are its own."""
    found = find_dirs(where)
    if where.conf_dirs and runtime:
        return found[0]._replace(whose=runtime)
    if runtime == "nomad":  # Nomad does not make the directory
        conf, bins, whose = NOMAD
        found.append(CniDirs(where.root / conf, where.bin_dirs or _below(where.root, bins), whose))
    wanted = (runtime or "").casefold()
    theirs = [dirs for dirs in found if wanted and dirs.whose.casefold().startswith(wanted)]
    return (theirs or [dirs for dirs in found if dirs.named] or found)[0]


def _below(root: Path, names: Sequence[str]) -> tuple[Path, ...]:
    # MicroK8s' file is a template with this variable; containerd reads the result.
    snap = [name.replace("${SNAP_DATA}", SNAP_DATA) for name in names]
    return tuple(root / name.lstrip("/") for name in snap)


class Said(NamedTuple):
    """What a runtime's configuration says of CNI; empty where it says nothing."""

    conf: str
    bins: list[str]
    network: str


def _said(root: Path, config: str, drop_ins: str) -> Said | None:
    """What a runtime's files say together, the later ones over the earlier; None without a file."""
    documents = list(_documents(root, root / config, set()))
    if drop_ins:
        folder = root / drop_ins
        names = sorted(path.name for path in _listed(folder))
        documents += [found for name in names if (found := _toml(folder / name)) is not None]
    if not documents:
        return None
    said = Said("", [], "")
    for document in documents:
        confs: list[str] = []
        bins: list[str] = []
        networks: list[str] = []
        _look(document, confs, bins, networks)
        said = Said([said.conf, *confs][-1], bins or said.bins, [said.network, *networks][-1])
    return said


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())[:MOST_FILES]
    except OSError:
        return []


def _documents(root: Path, path: Path, seen: set[Path]) -> Iterator[dict[str, Any]]:
    """A file, then the files that it imports (containerd-config.toml(5))."""
    if path in seen or len(seen) >= MOST_FILES:
        return
    seen.add(path)
    document = _toml(path)
    if document is None:
        return
    yield document
    imports = document.get("imports")
    for pattern in imports if isinstance(imports, list) else ():
        if not isinstance(pattern, str) or not pattern.strip("/"):
            continue
        base = root if pattern.startswith("/") else path.parent
        try:
            paths = sorted(base.glob(pattern.lstrip("/")))
        except (OSError, ValueError, NotImplementedError):
            continue
        for imported in paths:
            yield from _documents(root, imported, seen)


def _toml(path: Path) -> dict[str, Any] | None:
    """A file's document; None where there is none, or it cannot be read."""
    import tomllib

    try:
        return tomllib.loads(files.read(path).decode())
    except (OSError, ValueError, RecursionError):
        return None


def _look(
    value: Any, confs: list[str], bins: list[str], networks: list[str], section: str = ""
) -> None:
    """Find the keys at any depth: it differs with the runtime's version. The section's name tells
    them from others' keys of that name."""
    for key, item in value.items() if isinstance(value, dict) else ():
        if section not in ("cni", "network"):
            _look(item, confs, bins, networks, key)
        elif key in ("conf_dir", "network_dir") and isinstance(item, str) and item:
            confs.append(item)
        elif key in ("bin_dir", "bin_dirs", "plugin_dir", "plugin_dirs"):
            listed = item if isinstance(item, list) else [item]
            bins += [one for one in listed if isinstance(one, str) and one]
        elif key == "cni_default_network" and isinstance(item, str):
            networks.append(item)


class ConfDir(NamedTuple):
    """A configuration directory with its files, in the order in which runtimes read them.
    `trouble`: why it could not be listed."""

    dirs: CniDirs
    files: list[ConfFile]
    trouble: str = ""

    @property
    def winner(self) -> ConfFile | None:
        """The file that decides how pods are attached: containerd takes the first one, and nothing
        at all when that is invalid; CRI-O its cni_default_network, else the first
        valid one."""
        read = [conf for conf in self.files if not conf.skipped]
        if self.dirs.network:
            return next((c for c in read if c.valid and c.network == self.dirs.network), None)
        if self.dirs.whose == "CRI-O":
            return next((c for c in read if c.valid), None)
        return read[0] if read else None

    @property
    def ours(self) -> ConfFile | None:
        """The file whose configuration of our plugin is used: the winner, else what a
        meta-plugin such as Multus might delegate to."""
        winner = self.winner
        ours = [conf for conf in self.files if conf.valid and conf.entries]
        return next((conf for conf in ours if conf is winner), ours[0] if ours else None)

    @property
    def by_multus(self) -> bool:
        winner = self.winner
        return winner is not None and any(kind.startswith("multus") for kind in winner.types)


def read_confs(where: Options) -> list[ConfDir]:
    """What the runtimes find in the directories that they use."""
    found = []
    for dirs in find_dirs(where):
        try:
            paths = list_files(dirs.conf)
        except OSError as error:
            found.append(ConfDir(dirs, [], error.strerror or str(error)))
            continue
        confs = []
        for path in paths:
            with suppress(FileNotFoundError):  # it has just gone
                confs.append(read_conf(path))
        found.append(ConfDir(dirs, confs))
    # The usual directory is not used where runtimes are told to use another one, if ours is not
    # there all the same.
    if any(one.dirs.named for one in found):
        found = [one for one in found if one.dirs.named or one.ours]
    return found


def earlier(name: str, wanted: str = USUAL_FILE) -> str:
    """A file name of ours that sorts before this one; `wanted` if that does."""
    for ours in (wanted, FIRST):
        if ours < name:
            return ours
    return "00-" + "0" * len(name) + "-mycelium.conflist" if name > "00-0" else "!mycelium.conflist"


def find_executable(name: str, dirs: CniDirs) -> Path | None:
    """The executable that the runtime starts for a plugin type."""
    if "/" in name or name in ("", ".", ".."):
        return None  # libcni refuses such a type
    return next((path for folder in dirs.bins if (path := folder / name).is_file()), None)


def with_brought(dirs: CniDirs) -> CniDirs:
    """The directories as they are once the plugins that the runtime brings are linked there."""
    return dirs._replace(bins=(*dirs.bins, *dirs.brought))
