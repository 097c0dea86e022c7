# SPDX-License-Identifier: Apache-2.0
"""The CNI plugins that a runtime would start, and the versions of the specification each speaks.

Asked with VERSION, and only if nobody but root could have put the executable there.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mycelium_cni.cni.request import VERSIONS
from mycelium_ctl import programs
from mycelium_ctl.node.conflist import TYPE, ConfFile
from mycelium_ctl.node.lenient import Fault
from mycelium_ctl.node.runtimes import CniDirs, find_executable

# What every plugin of the last five years speaks, and containerd 1.6 and podman at most.
SAFE: Final = "1.0.0"
_HINT: Final = "is it complete?"


class Answer(NamedTuple):
    """What an executable said to VERSION. `fault`: why it is not a CNI plugin, or was not asked."""

    versions: tuple[str, ...] = ()
    fault: str = ""


def ask(path: Path) -> Answer:
    """Ask an executable which versions it speaks."""
    try:
        if doubt := programs.doubt(path):
            return Answer(fault=f"was not started: {doubt}")
        done = programs.run([str(path)], {"CNI_COMMAND": "VERSION"}, '{"cniVersion": "1.0.0"}')
        known = json.loads(done.stdout)["supportedVersions"]
    except subprocess.TimeoutExpired:
        return Answer(fault=f"does not answer within {programs.WITHIN_S:g} s")
    except OSError as error:
        if isinstance(error, PermissionError) and os.geteuid():
            raise  # root may well start it
        return Answer(fault=f"cannot be started ({error.strerror}): {_HINT}")
    except (ValueError, KeyError, TypeError):
        return Answer(fault=f"answers no VERSION: {_HINT}")
    if not isinstance(known, list):
        return Answer(fault=f"answers no VERSION: {_HINT}")
    return Answer(tuple(version for version in known if isinstance(version, str)))


def spoken(kind: str, dirs: CniDirs) -> tuple[str, ...]:
    """The versions that a plugin of these directories speaks; () if it is not there, or silent."""
    if kind == TYPE:
        return VERSIONS
    path = find_executable(kind, dirs)
    return ask(path).versions if path else ()


def offer(kinds: Sequence[str], dirs: CniDirs) -> dict[str, object]:
    """The keys `cniVersion` and `cniVersions` of a list of these plugins: only what all of them
    speak, and nothing above 1.0.0 if one of them does not answer.

    A runtime takes the best of `cniVersions` that it knows itself, and from 1.1.0 on it sends
    STATUS to every plugin of the list: one that is older answers with an error, and the node is
    never ready. Runtimes that know no `cniVersions` read `cniVersion`.
    """
    told = [spoken(kind, dirs) for kind in kinds]
    if not all(told):
        return {"cniVersion": SAFE}
    common = [version for version in VERSIONS if all(version in one for one in told)]
    if not common:
        return {"cniVersion": SAFE}
    known_to_all = [version for version in common if version <= SAFE]
    base = (known_to_all or common)[-1]
    newer = common[common.index(base) + 1 :]
    return {"cniVersion": base} | ({"cniVersions": [base, *newer]} if newer else {})


def unfit(conf: ConfFile, dirs: CniDirs, root: Path) -> Iterator[Fault]:
    """What is wrong on this node with a list that is valid: plugins that do not speak the best
    version it offers; on a Kubernetes node, no portmap."""
    if not conf.valid or not conf.entries:
        return
    best = str(conf.entries[0]["cniVersion"])
    for kind in dict.fromkeys(conf.types):
        known = spoken(kind, dirs)
        if known and best not in known:
            newest = [version for version in VERSIONS if version in known] or ["none"]
            yield Fault(
                0,
                f"it offers CNI {best}, and {kind} on this node speaks {newest[-1]} at most: a "
                "runtime that takes it starts no pod, or is never ready",
                f"install a {kind} that speaks {best}, or offer only what all of them speak, "
                "as `mycelium-cni config new` does",
                fatal=False,
            )
    kubernetes = (root / "var/lib/kubelet").is_dir()
    if kubernetes and conf.path.suffix == ".conflist" and "portmap" not in conf.types:
        yield Fault(
            0,
            "the chain has no portmap: a pod's hostPort is silently ignored",
            'add {"type": "portmap", "capabilities": {"portMappings": true}} after mycelium-cni',
            fatal=False,
        )
