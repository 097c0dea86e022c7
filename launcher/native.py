# SPDX-License-Identifier: Apache-2.0
"""The modules that an ADD spends its time in, compiled to C by mypyc.

mypyc is part of mypy. It compiles the annotated Python as it is, so there is one source of each
module, and the pip-installed command runs it in CPython's interpreter.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from archive import BuildError

# Those whose time a measurement shows. Each makes the file larger.
MODULES = """
    mycelium_cni.cni.config mycelium_cni.cni.jsontext mycelium_cni.cni.log
    mycelium_cni.cni.report mycelium_cni.cni.request mycelium_cni.cni.result
    mycelium_cni.guard.load mycelium_cni.guard.question mycelium_cni.guard.wanted
    mycelium_cni.kernel.address mycelium_cni.kernel.facts mycelium_cni.kernel.files
    mycelium_cni.kernel.link mycelium_cni.kernel.netlink mycelium_cni.kernel.netns
    mycelium_cni.kernel.nftables mycelium_cni.kernel.patience mycelium_cni.kernel.shell
    mycelium_cni.kernel.sysctl
    mycelium_cni.main
    mycelium_cni.node.facts mycelium_cni.node.marks mycelium_cni.node.prepare
    mycelium_cni.node.subnet
    mycelium_cni.overlay
    mycelium_cni.pod.addresses mycelium_cni.pod.attachment mycelium_cni.pod.datapath
    mycelium_cni.pod.facts
    mycelium_cni.undo mycelium_cni.verbs
"""
# The one module in C that they are parts of is called native__mypyc.
_GROUP = "native"

# The line after the first is empty in our modules.
_FUTURE = "from __future__ import annotations"
_NEEDED = (
    "; TYPE_CHECKING = False\n"
    "if TYPE_CHECKING: from mypy_extensions import mypyc_attr; from typing import Final"
)

# Functions that run when a module is imported, and so never in a call of the plugin. mypyc indents
# some of them.
_IMPORTING = re.compile(
    r"^ *(?=char CPyDef_\w+_____top_level__\(void\) \{$"
    r"|(?:static )?(?:int CPyExec_|PyObject \*CPyInit)\w+\(.+\)$)",
    re.MULTILINE,
)


class Native(NamedTuple):
    """The modules in C."""

    source: str  # the file
    folder: str  # of the headers beside it
    functions: dict[str, str]  # which one makes each module


def compile_to_c(source: Path, folder: Path, version: str) -> Native:
    """Write the modules, which are below `source`, in C, by this version of mypy."""
    try:
        from mypy.version import __version__  # noqa: PLC0415
        from mypyc.build import mypyc_build  # noqa: PLC0415
        from mypyc.namegen import exported_name  # noqa: PLC0415
        from mypyc.options import CompilerOptions  # noqa: PLC0415
    except ImportError as error:
        raise BuildError(f"native.py: {error}: pip install -e '.[dev]'") from None
    if __version__ != version:
        raise BuildError(f"native.py: mypy {__version__}, and requirements.txt has {version}")

    shutil.rmtree(folder, ignore_errors=True)
    tree = folder / "src"
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns("__pycache__"))
    names = MODULES.split()
    paths = [f"{name.replace('.', '/')}.py" for name in names]
    bases = _bases_of_others(tree, set(names))
    for path in paths:
        (tree / path).write_text(declared((tree / path).read_text(), bases))
    options = CompilerOptions(
        target_dir=str(folder),
        group_name=_GROUP,
        python_version=(3, 11),
        capi_version=(3, 11),
        strip_asserts=True,
    )
    before = Path.cwd()
    os.chdir(tree)  # tracebacks have the paths that mypyc gets
    try:
        mypyc_build(["--config-file=", *paths], options, always_use_shared_lib=True)
    except SystemExit:
        raise BuildError("native.py: mypyc refuses what is above") from None
    finally:
        os.chdir(before)
    written = folder / f"__native_{_GROUP}.c"
    # Apart from what a call runs: assemble.py has it compressed.
    apart = '__attribute__((section(".importing"))) '
    text = _IMPORTING.sub(apart, written.read_text())
    # No docstrings, as in the modules that freeze.py has for the plugin.
    header = f'#include "__native_{_GROUP}.h"\n'
    undocumented = '#undef PyDoc_STR\n#define PyDoc_STR(text) ""\n'
    written.write_text(text.replace(header, undocumented + header, 1))
    functions = {name: f"CPyInit_{exported_name(name)}" for name in names}
    functions[f"{_GROUP}__mypyc"] = f"PyInit_{_GROUP}__mypyc"
    return Native(str(written), str(folder), functions)


def _bases_of_others(tree: Path, compiled: set[str]) -> set[str]:
    """The names of compiled classes that classes which are not inherit from."""
    found = set()
    for path in tree.rglob("*.py"):
        if ".".join(path.relative_to(tree).with_suffix("").parts) in compiled:
            continue
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
        imported = {
            alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module in compiled
            for alias in node.names
        }
        bases = [base for node in nodes if isinstance(node, ast.ClassDef) for base in node.bases]
        found |= imported & {base.id for base in bases if isinstance(base, ast.Name)}
    return found


def declared(text: str, bases: set[str]) -> str:
    """The source of a module with what mypyc wants to be told. No line gets another number.

    A name in capitals that is bound once is Final: then mypyc has its value wherever it is used,
    instead of looking it up. A class of OSErrors is decorated: mypyc makes no classes of its own
    from them, and so none from what has a decorator that it does not know. Those of the `bases` may
    be inherited from by what it does not compile.
    """
    lines = text.split("\n")
    module = ast.parse(text)
    bound = [
        node.id
        for node in ast.walk(module)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    for statement in module.body:
        first = statement.lineno - 1
        match statement:
            case ast.ClassDef(bases=[ast.Name("OSError")]):
                lines[first - 1] = "@(lambda made: made)"
            case ast.ClassDef(name) if name in bases:
                lines[first - 1] = "@mypyc_attr(allow_interpreted_subclasses=True)"
            case ast.Assign([ast.Name(name)]) if _is_constant(name, bound):
                lines[first] = lines[first].replace(" =", ": Final =", 1)
            case ast.Assign([ast.Tuple(names)], ast.Tuple(values)) if all(
                _is_constant(ast.unparse(name), bound) for name in names
            ):
                after = lines[first][statement.end_col_offset :]
                pairs = zip(names, values, strict=True)
                each = [f"{ast.unparse(n)}: Final = {ast.unparse(v)}" for n, v in pairs]
                lines[first] = "; ".join(each) + after
    return "\n".join(lines).replace(f"{_FUTURE}\n", f"{_FUTURE}{_NEEDED}", 1)


def _is_constant(name: str, bound: list[str]) -> bool:
    return name.isupper() and name != "TYPE_CHECKING" and bound.count(name) == 1
