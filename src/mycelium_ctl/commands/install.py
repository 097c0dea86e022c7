# SPDX-License-Identifier: Apache-2.0
"""Install the plugin on this node, or upgrade it in place: executable, tool, boot unit, network.

Files are replaced by renaming, so a runtime may call the plugin meanwhile; the network
configuration comes last, because it makes the node ready. Run it again at any time. An existing
configuration of ours stays as it is, unless arguments ask for another one.

Where pods already have a first network it is left alone: the plugin then serves Multus
(`config new --for multus`) or that network's chain. --primary takes the pods over with a file
that sorts first; `--for multus` brings none. `uninstall` removes what was installed and nothing
else.

    mycelium-cni install --dry-run
    mycelium-cni install --service-network fd00:10:96::/112
    mycelium-cni install --for k3s --service-network fd00:43::/112 --ingress closed
    mycelium-cni --host-root /host install        # in a container that mounts the node's / there
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from mycelium_ctl import files, programs, shells, units
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node import cri, network, options, plugins
from mycelium_ctl.node.conflist import TYPE
from mycelium_ctl.node.options import Options
from mycelium_ctl.node.runtimes import (
    FIRST,
    LAST,
    USUAL_FILE,
    CniDirs,
    choose_dirs,
    earlier,
    find_executable,
    read_confs,
    with_brought,
)
from mycelium_ctl.node.state import State
from mycelium_ctl.receipt import Receipt
from mycelium_ctl.units import Step
from mycelium_ctl.view import visible

TOOLS: Final = ("usr/local/bin/mycelium-cni", "opt/bin/mycelium-cni")
MULTUS: Final = f"`{TYPE} config new --for multus --manifest | kubectl apply -f -`"
OF_NERDCTL: Final = "nerdctl-"  # its files begin so, which it makes at its first start
TAKEN_UP_S: Final = 15.0  # containerd watches the directory, and asks for STATUS every 5 s


class Installation:
    """The steps to take on this node, in order."""

    def __init__(self, where: Options, arguments: argparse.Namespace) -> None:
        from mycelium_lab.own import own_executable

        self._where: Final = where
        self._arguments: Final = arguments
        self._receipt: Final = Receipt(where.root)
        self._source: Final = Path(own_executable())
        self._live: Final = where.root == Path("/")
        self.dirs: Final = choose_dirs(where, arguments.runtime)
        self._places: Final = _plugin_places(self.dirs)
        self.plugin: Final = self._places[0]
        self._place: Final = self._receipt.place(self.plugin)
        self.notes: Final[list[str]] = self._missing_runtime()
        self.conflist: Path | None = None
        self.name = ""
        self.steps: Final = [
            *self._executable(),
            *self._tool(),
            *self._units(),
            *self._shell_files(),
            *self._network(),
            *self._setup(),
        ]

    def _missing_runtime(self) -> list[str]:
        """A note if the runtime has directories of its own, and has not made them yet."""
        runtime = self._arguments.runtime
        if runtime not in ("k3s", "microk8s") or self.dirs.whose.casefold().startswith(runtime):
            return []
        return [
            f"there is no {runtime} on this node yet, so the network is for {self.dirs.conf}: "
            f"install again once {runtime} has started"
        ]

    def _executable(self) -> list[Step]:
        octets = self._source.read_bytes()
        return [
            Step(f"write {place}", partial(self._copy, octets, place))
            for place in self._places
            if not (place.is_file() and place.read_bytes() == octets)
        ]

    def _copy(self, octets: bytes, place: Path) -> None:
        """Only an executable that answers as a plugin gets the name that a runtime uses."""
        self._receipt.write(place, octets, 0o755, lambda path: plugins.ask(path).fault)

    def _tool(self) -> list[Step]:
        """A link in PATH. Where /usr is read-only, /opt/bin is often in PATH."""
        links = [self._where.root / tool for tool in TOOLS]
        if any(link.is_symlink() or link.exists() for link in links):
            return []
        if self._live and shutil.which(TYPE):
            return []
        link = next(filter(files.writable, links), None)
        if link is None:
            self.notes.append(f"no directory of PATH can be written: the tool is {self._place}")
            return []
        return [
            Step(f"link {link} to {self._place}", partial(self._receipt.link, link, self._place))
        ]

    def _units(self) -> list[Step]:
        links = State(self._where).own_links
        steps, notes = units.steps(self._receipt, self._place, links)
        self.notes.extend(notes)
        return steps

    def _shell_files(self) -> list[Step]:
        """Completions and the manual page, for the shells that are there."""
        root, steps = self._where.root, []
        for file in shells.INSTALLED:
            path = root / file.local
            if (root / file.reader).is_dir() and files.writable(path):
                octets = file.octets
                if not path.is_file() or path.read_bytes() != octets:
                    write = partial(self._receipt.write, path, octets)
                    steps.append(Step(f"write {path}", write))
        return steps

    def _setup(self) -> list[Step]:
        if not self._live:
            return []
        argv = [str(self.plugin), "setup"]
        return [Step(shlex.join(argv), partial(self._prepare, argv))]

    def _prepare(self, argv: list[str]) -> None:
        try:
            programs.change(argv)
        except ToolError as error:  # the boot unit waits for the daemon, and the first ADD does it
            self.notes.append(f"the node is not ready yet: {error}")

    def _network(self) -> list[Step]:
        if self._arguments.runtime == "multus":
            self.notes.append(f"a second interface for pods that ask: {MULTUS}")
            return []
        found = next(
            (one for one in read_confs(self._where) if one.dirs.conf == self.dirs.conf), None
        )
        winner = found.winner if found else None
        kept = found.ours if found else None
        by_multus, by_name = found is not None and found.by_multus, self.dirs.by_name
        primary = winner and not winner.entries and not by_multus and not by_name
        if winner and not winner.valid and winner.path.name == USUAL_FILE:
            primary = False  # what is left of one of ours
        if winner and winner.path.name.startswith(OF_NERDCTL):
            primary = False  # its containers name it, and ours sorts before it
        if winner and primary and not winner.valid and not self._arguments.primary:
            why = next(fault.what for fault in winner.faults if fault.fatal)
            raise ToolError(
                f"{winner.path} comes first and is invalid ({why}): the runtime loads no network. "
                "Correct or remove it, or take all pods over with --primary"
            )
        if winner and (primary or by_multus) and not self._arguments.primary:
            self.notes.append(_second(winner.path, self.dirs))
            return []
        if kept and not self._asked():
            self.conflist, self.name = kept.path, kept.network
            self.notes.append(f"{kept.path} stays as it is")
            return self._brought(kept.needs)
        there = with_brought(self.dirs)
        made = network.new(self._arguments, there)
        if lacking := network.lacking(["loopback", *made.needs], there):
            if self._live or any(folder.is_dir() for folder in self.dirs.bins):
                brings = ", or start k3s, which brings them" if self._waits_for_k3s else ""
                raise ToolError(f"{lacking} first{brings}")
            self.notes.append(lacking)  # not a node: files are staged there
        self.notes.extend(made.notes)
        text = json.dumps(made.network, indent=2) + "\n"
        name = LAST if by_name else USUAL_FILE
        if winner and primary:
            name = earlier(winner.path.name, FIRST)
        path = self.dirs.conf / name
        if not files.writable(path):
            raise ToolError(
                f"{path} cannot be written, its disk is read-only: have the runtime read its "
                "network configuration in another directory, and name that with --conf-dir"
            )
        self.conflist, self.name = path, str(made.network["name"])
        steps = self._brought(made.needs)
        if not (path.is_file() and path.read_text() == text):
            write = partial(self._receipt.write, path, text.encode())
            steps.append(Step(f"write {path}", write))
        return steps

    def _brought(self, needs: Sequence[str]) -> list[Step]:
        """Links to the plugins that the runtime brings and does not look for."""
        steps = []
        for bins in self.dirs.searched or (self.dirs.bins,):
            folder = next(place.parent for place in self._places if place.parent in bins)
            for kind in dict.fromkeys(("loopback", *needs)):
                path = find_executable(kind, with_brought(self.dirs._replace(bins=bins)))
                if path and path.parent not in bins:
                    link, target = folder / kind, self._receipt.place(path)
                    make = partial(self._receipt.link, link, target)
                    steps.append(Step(f"link {link} to {target}", make))
        return steps

    @property
    def _waits_for_k3s(self) -> bool:
        """Whether k3s is asked for, and has not yet started here."""
        return self._arguments.runtime == "k3s" and not self.dirs.brought

    def _asked(self) -> bool:
        """Whether an argument says something about the network configuration."""
        return any(
            getattr(self._arguments, name) is not None
            for name in network.arguments()
            if name != "runtime"
        )

    def await_runtime(self) -> str:
        """Wait until the runtime has loaded the network; returns what it says. One whose containers
        name their network loads it for each of them."""
        socket = cri.find_socket(self._where.root)
        if socket is None or self.conflist is None or self.dirs.by_name:
            return ""
        deadline = time.monotonic() + TAKEN_UP_S
        while True:
            try:
                said = cri.read_network(socket)
            except OSError as error:
                return f"the runtime at {socket} does not answer: {error.strerror or error}"
            loaded = said.loaded is None or self.name in said.loaded
            if said.ready and loaded:
                return f"the runtime at {socket} has loaded {self.conflist}"
            if time.monotonic() > deadline:
                why = said.message or f"it has loaded {', '.join(said.loaded or ['nothing'])}"
                raise ToolError(f"the runtime at {socket} starts no pods yet: {why}")
            time.sleep(0.2)


def _plugin_places(dirs: CniDirs) -> list[Path]:
    """Where each runtime finds the executable: in the first of its directories that can be written.
    Raises ToolError if there is none, or another one hides it."""
    places: list[Path] = []
    for searched in dirs.searched or (dirs.bins,):
        if not any(place.parent in searched for place in places):
            places.append(_plugin_place(searched))
    return places


def _plugin_place(searched: tuple[Path, ...]) -> Path:
    for directory in searched:
        path = directory / TYPE
        if files.writable(path):
            return path
        if path.exists():
            raise ToolError(f"{path} cannot be replaced, its disk is read-only")
    looked = " and ".join(str(directory) for directory in searched)
    raise ToolError(
        f"{looked} cannot be written: have the runtime look for plugins in a directory that can "
        "(containerd's bin_dirs, CRI-O's plugin_dirs), and name that with --bin-dir"
    )


def _second(first: Path, dirs: CniDirs) -> str:
    return (
        f"{first} is the pods' first network and stays so. A second interface for pods that ask: "
        f"{MULTUS}, with Multus. One for "
        f'every pod: add {{"type": "{TYPE}"}} after the first plugin of {first}. Or take all pods '
        f"of {dirs.whose} over: --primary"
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="print the steps, take none")
    parser.add_argument("--primary", action="store_true", help="take over from another network")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    network.add_options(parser)
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Install; 0 when the runtime has loaded the network, or there is none to ask."""
    installation = Installation(options.read(arguments), arguments)
    done = [step.words for step in installation.steps]
    taken_up = ""
    for step in installation.steps:
        if not arguments.json:
            print(visible(step.words))
        if not arguments.dry_run:
            step.do()
    if not arguments.dry_run:
        taken_up = installation.await_runtime()
    if arguments.json:
        told = {"steps": done, "notes": installation.notes, "runtime": taken_up or None}
        print(json.dumps({"changed": bool(done) and not arguments.dry_run, **told}, indent=2))
        return 0
    for note in (*installation.notes, *filter(None, (taken_up,))):
        print(f"# {visible(note)}")
    if not done:
        print("# nothing to do")
    return 0
