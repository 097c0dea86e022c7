# SPDX-License-Identifier: Apache-2.0
"""What the plugin really loads: `sys.modules` after a successful call. And circles of imports.

Linters see imports that are written down; this sees those that happened. A module that should be
allowed costs every pod its milliseconds: see docs/adr/0004.
"""

from __future__ import annotations

import ast
import json
import posix
import sys
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mycelium_cni
from mycelium_lab.lab import Node

SOURCE = mycelium_cni.__path__[0].rpartition("/")[0]
ALLOWED = [
    "__future__",
    "_blake2",
    "_json",
    "_socket",
    "_struct",
    "errno",
    "fcntl",
    "posix",
    "resource",
    "select",
    "time",
]
# Before 3.12 `posix` has no setns, and only a pip-installed plugin needs ctypes for it.
SETNS = [] if hasattr(posix, "setns") else ["ctypes"]
CONF = {"cniVersion": "1.1.0", "name": "mycelium", "type": "mycelium-cni"}
REPORT = """
import sys
sys.path.insert(0, {source!r})
from mycelium_entry import main
code = main()
print(code, *sys.modules, file=sys.stderr)
"""


def loaded(node: Node, program: str, **environ: str) -> set[str]:
    """The modules of a bare interpreter after `program`; its first word is the exit status."""
    conf = "" if not environ else json.dumps(CONF)
    argv = [sys.executable, "-ISc", program]
    run = node.run(argv, env=environ, input=conf, check=False)
    code, *modules = run.stderr.split()
    assert code == "0", run
    return set(modules)


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.fixture
def bare(node: Node) -> set[str]:
    """What the interpreter and the allowed modules load by themselves."""
    imports = ", ".join([*ALLOWED, *SETNS])
    return loaded(node, f"import sys, {imports}\nprint(0, *sys.modules, file=sys.stderr)")


def test_a_served_add_has_loaded_the_plugin_and_what_is_allowed(node: Node, bare: set[str]) -> None:
    pod = node.pod("p")
    modules = loaded(
        node,
        REPORT.format(source=SOURCE),
        CNI_COMMAND="ADD",
        CNI_CONTAINERID=pod.container_id,
        CNI_NETNS=str(pod.path),
        CNI_IFNAME="eth0",
    )
    assert pod.ip("address", "show", "dev", "eth0"), "the ADD was real"
    ours = {name for name in modules if name.startswith("mycelium_")}
    assert packages(modules - bare) == {"mycelium_cni", "mycelium_entry"}
    assert "mycelium_cni.pod.datapath" in ours


def test_a_version_has_loaded_next_to_nothing(node: Node, bare: set[str]) -> None:
    modules = loaded(node, REPORT.format(source=SOURCE), CNI_COMMAND="VERSION")
    assert modules - bare == {
        *("mycelium_entry", "mycelium_cni", "mycelium_cni.main", "mycelium_cni.cni"),
        *(f"mycelium_cni.cni.{name}" for name in ("errors", "jsontext", "request")),
    }


def imported(path: Path, modules: Collection[str]) -> set[str]:
    """The modules of ours that a file names in imports, those for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules)


def test_no_module_imports_itself_through_others() -> None:
    """Not even for type checkers, which import-linter lets pass: one of the two is then too big."""
    files = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in Path(SOURCE).rglob("*.py")
    }
    graph = {name: imported(path, files) - {name} for name, path in files.items()}
    assert len(graph) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" → ".join(circle.args[1]))
