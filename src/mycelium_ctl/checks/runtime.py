# SPDX-License-Identifier: Apache-2.0
"""What the container runtime finds: configurations, executables, and the chain."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Final

from mycelium_cni.cni.errors import __version__
from mycelium_cni.kernel.shell import quoted
from mycelium_ctl import programs
from mycelium_ctl.checks.finding import Finding, ok, own, skip
from mycelium_ctl.node import conflist, plugins
from mycelium_ctl.node.conflist import ConfFile
from mycelium_ctl.node.lenient import Fault
from mycelium_ctl.node.runtimes import LAST, ConfDir, earlier, find_executable, with_brought
from mycelium_ctl.node.state import State
from mycelium_ctl.view import count

_REFERENCE_PLUGINS: Final = (
    *("loopback", "bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "dummy", "tap"),
    *("portmap", "bandwidth", "firewall", "sbr", "tuning", "vrf", "host-local", "dhcp", "static"),
)

_KUBERNETES: Final = ("k3s", "rke2", "microk8s")  # these runtimes start pods, or nothing


def conf(state: State) -> Finding:
    """In every directory that a runtime reads, a configuration of ours is the one used."""
    good, hidden = [], []
    elsewhere = [str(one.ours.path) for one in state.confs if one.ours]
    for directory in state.confs:
        winner, ours = directory.winner, directory.ours
        folder = directory.dirs.conf
        if directory.trouble:
            hidden.append(f"{folder} cannot be listed: {directory.trouble}")
        elif winner and winner.hidden:
            hidden.append(f"{winner.path} {winner.faults[0].what}")
        elif directory.dirs.network and not winner:
            return Finding(
                "fail",
                f"CRI-O waits for network {directory.dirs.network} (cni_default_network), and no "
                f"file in {folder} has it",
                "give the network that name, or change cni_default_network",
            )
        elif winner and not winner.valid:
            return Finding(
                "fail",
                f"{winner.path} comes first and is invalid: the runtime loads nothing",
                run=(own("config", "check", str(winner.path)),),
            )
        elif winner and ours and (winner is ours or directory.by_multus or directory.dirs.by_name):
            by = f", called by {winner.path.name}" if directory.by_multus else ""
            how = f", for containers that name {ours.network}" if directory.dirs.by_name else by
            good.append(f"{ours.path} is in use{how}")
        elif winner and ours:
            return Finding(
                "fail",
                f"{winner.path} ({', '.join(winner.types)}) comes before {ours.path.name}",
                run=(shlex.join(["mv", str(ours.path), f"{folder}/{earlier(winner.path.name)}"]),),
            )
        elif winner and directory.dirs.by_name:
            path = f"{folder}/{LAST}"
            return Finding(
                "fail",
                f"no network in {folder} calls mycelium-cni",
                run=(own("config", "new", "--for", directory.dirs.whose, "--output", path),),
            )
        elif winner and directory.by_multus:
            good.append(f"{winner.path} is in use, and may call ours")
        elif winner:
            kinds = ", ".join(winner.types)
            return Finding(
                "fail",
                f"{winner.path} ({kinds}) comes first, and does not call mycelium-cni",
                "keep it, and add mycelium-cni after it in its chain, or as a second network "
                "through Multus (docs/operate.md); a file of ours before it takes over all pods",
            )
        elif directory.dirs.whose in _KUBERNETES and elsewhere:
            return Finding(
                "fail",
                f"{directory.dirs.whose} finds nothing in {folder}",
                run=(shlex.join(["cp", elsewhere[0], f"{folder}/10-mycelium.conflist"]),),
            )
    for directory in state.confs:
        folder = directory.dirs.conf
        if directory.files and (doubt := programs.doubt(folder)):
            return Finding(
                "warn",
                f"{doubt}, and so decide what root runs for every pod",
                f"make {folder} and its parents owned by root, and writable by root only",
            )
    if good:
        return ok("; ".join(good))
    if hidden:
        return skip("; ".join(hidden))
    folder = state.confs[0].dirs.conf
    return Finding(
        "fail",
        f"no network configuration in {folder}",
        run=(own("config", "new", "--output", f"{folder}/10-mycelium.conflist"),),
    )


def conf_valid(state: State) -> Finding:
    files = [conf for directory in state.confs for conf in directory.files]
    for one in files:
        for fault in one.faults:
            if fault.fatal:
                what = f"{_where(one, fault)}: {fault.what}"
                command = own("config", "check", str(one.path))
                return Finding("fail", what, fault.remedy, run=(command,))
    if not files:
        return skip("there is no file to check")
    for one in files:
        for fault in one.faults:
            return Finding("warn", f"{_where(one, fault)}: {fault.what}", fault.remedy)
    return ok(f"{count(len(files), 'file')}, all valid")


def _where(one: ConfFile, fault: Fault) -> str:
    return f"{one.path}, line {fault.line}" if fault.line else str(one.path)


def plugin(state: State) -> Finding:
    """The executable that the runtime would start exists, works, and is of this version."""
    seen = []
    for directory in _used(state):
        path = find_executable(conflist.TYPE, directory.dirs)
        folder = directory.dirs.bins[0]
        if path is None:
            return Finding("fail", f"there is no {folder}/{conflist.TYPE}", run=_copy_to(folder))
        if not path.stat().st_mode & 0o111:
            return Finding(
                "fail", f"{path} is not executable", run=(f"chmod 755 {quoted(str(path))}",)
            )
        if doubt := programs.doubt(path):
            return Finding(
                "warn",
                f"{path} is not asked for its version: {doubt}, and root runs it for every pod",
                "make it and its parent directories owned by root, and writable by root only",
            )
        problem = plugins.ask(path).fault
        if problem:
            return Finding("fail", f"{path} {problem}", run=_copy_to(path.parent))
        version = _tool_version(path)
        if version != __version__:
            what = f"is of version {version}" if version else "is not this program"
            return Finding(
                "warn", f"{path} {what}, this is {__version__}", run=_copy_to(path.parent)
            )
        seen.append(str(path))
    return ok(f"{', '.join(dict.fromkeys(seen))} is of version {__version__}")


def _copy_to(folder: Path) -> tuple[str, ...]:
    """The command that puts this program there; `install` does not write over a file that runs."""
    from mycelium_lab.own import own_executable

    return (shlex.join(["install", "-m", "755", own_executable(), str(folder / conflist.TYPE)]),)


def _used(state: State) -> list[ConfDir]:
    """The directories with a configuration of ours; the first one when none has."""
    return [one for one in state.confs if one.ours] or state.confs[:1]


def _tool_version(path: Path) -> str:
    """What `mycelium-cni --version` says; "" for the Go plugins of the same name."""
    try:
        words = programs.run([str(path), "--version"]).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return words[1] if len(words) == 2 and words[0] == conflist.TYPE else ""


def chain(state: State) -> Finding:
    """The other executables that the runtime needs: loopback, and the rest of the chain."""
    for directory in _used(state):
        wanted = {"loopback": "containerd and CRI-O before 2.0 call it for every pod"}
        for conf in filter(None, (directory.winner, directory.ours)):
            for kind in conf.needs:
                wanted.setdefault(kind, f"{conf.path.name} names it")
        for name, reason in wanted.items():
            if name == conflist.TYPE or find_executable(name, directory.dirs):
                continue
            folder = directory.dirs.bins[0]
            what = f'failed to find plugin "{name}" in {folder}: {reason}'
            if brought := find_executable(name, with_brought(directory.dirs)):
                return Finding(
                    "fail", what, run=(shlex.join(["ln", "-s", str(brought), str(folder)]),)
                )
            advice = (
                f"install the CNI plugins (containernetworking/plugins) into {folder}"
                if name in _REFERENCE_PLUGINS
                else f"install it into {folder}, or, if it is left over, remove what names it"
            )
            return Finding("fail", what, advice)
    for directory in _used(state):
        for winner in filter(None, (directory.winner,)):
            for fault in plugins.unfit(winner, directory.dirs, state.where.root):
                return Finding("warn", f"{_where(winner, fault)}: {fault.what}", fault.remedy)
    return ok("loopback and all plugins of the configuration are installed")
