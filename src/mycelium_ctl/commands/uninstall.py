# SPDX-License-Identifier: Apache-2.0
"""Remove what `install` put on this node, and nothing else; what it had displaced is put back.

It refuses while pods are attached: they would be cut off, and without the plugin no runtime could
delete them. It also refuses while the agent runs, which would restore what is removed. --force does
it anyway. The network configuration goes first, so that no pod starts meanwhile. A file that was
edited is kept beside its place, with the suffix .saved.

    mycelium-cni uninstall --dry-run
    mycelium-cni uninstall
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from mycelium_ctl import programs, units
from mycelium_ctl.node import options
from mycelium_ctl.node.conflist import SUFFIXES, TYPE
from mycelium_ctl.node.inuse import refuse_while_in_use
from mycelium_ctl.node.state import State
from mycelium_ctl.receipt import Receipt, displaced
from mycelium_ctl.view import visible


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--dry-run", action="store_true", help="print the steps, take none")
    parser.add_argument(
        "--force", action="store_true", help="also while pods are attached or the agent runs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Remove; 0 when nothing of it is left."""
    where = options.read(arguments)
    receipt = Receipt(where.root)
    if where.root == Path("/") and not (arguments.force or arguments.dry_run):
        refuse_while_in_use(State(where).attachments, "could not be deleted without the plugin")
    # Networks first, the executable last.
    paths = sorted(receipt.paths, key=lambda path: _rank(path.suffix, path.name))
    words = []
    for path in paths:
        if receipt.taken_over(path):
            words.append(f"leave {path}, which is another program's now")
            continue
        back = (
            f", put back what it displaced ({displaced(path)})"
            if os.path.lexists(displaced(path))
            else ""
        )
        kept = f", keep your changes in {path}.saved" if receipt.edited(path) else ""
        words.append(f"remove {path}{kept}{back}")
    if not arguments.dry_run:
        _take_back(receipt, paths, where.root)
    if arguments.json:
        print(json.dumps({"changed": bool(words) and not arguments.dry_run, "steps": words}))
        return 0
    for line in words:
        print(visible(line))
    if not words:
        print("nothing to do: install has made nothing here")
    return 0


def _rank(suffix: str, name: str) -> int:
    return 0 if suffix in SUFFIXES else 2 if name == TYPE else 1


def _take_back(receipt: Receipt, paths: list[Path], root: Path) -> None:
    from mycelium_lab.own import own_executable

    for path in paths:
        if root == Path("/") and path.name == TYPE and not path.is_symlink():
            programs.change([own_executable(), "teardown", "--force"])
        receipt.take_back(path)
    if paths and units.systemd_runs(root):
        programs.change(units.RELOAD)
