# SPDX-License-Identifier: Apache-2.0
"""What the operator's tool has in the executable: the modules that it imports, and its data."""

from __future__ import annotations

import ast
import importlib.util
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import freeze
from archive import BuildError

# Imported by name at run time, so no import statement shows them; for the tool.
ALWAYS = """
    encodings.aliases encodings.ascii encodings.cp437 encodings.idna encodings.latin_1
    encodings.utf_8 _strptime warnings
"""
# Modules that the standard library and rich import only for what the tool never asks of them: each
# such import is in a function, under an `if` or under a `try`.
NEVER = """
    IPython _bootsubprocess _pyio asyncio attr bz2 cgitb concurrent.futures.process configparser
    csv ctypes curses distutils doctest email._header_value_parser email.policy ensurepip ftplib
    getpass gettext gzip idlelib importlib._bootstrap importlib._bootstrap_external
    importlib.metadata ipywidgets jupyter lib2to3 locale lzma markdown_it multiprocessing
    nturl2path optparse pdb pickle pip pkg_resources plistlib pydoc pygments rich._win32_console
    rich._windows rich._windows_renderer rich.markdown rich.syntax rich.traceback setuptools
    sqlite3 statistics tarfile test tkinter tomllib tracemalloc turtle unittest venv webbrowser
    xml xmlrpc
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip file knows no earlier time


class Bundle(NamedTuple):
    """What the tool needs."""

    modules: dict[str, Path]  # dotted name: source file
    built_in: frozenset[str]  # modules written in C


class _Import(NamedTuple):
    name: str
    required: bool  # the importing module does not load without it


def follow_imports(
    roots: list[Path], wanted: list[str], frozen: frozenset[str], c_modules: frozenset[str]
) -> Bundle:
    """The `wanted` modules and all they can import, found by following import statements.

    `roots` are the folders to look for modules in. Those in the first one are ours: what they
    import, in functions too, is required.
    """
    waiting = [_Import(name, True) for name in wanted]
    modules: dict[str, Path] = {}
    built_in: set[str] = set()
    seen: dict[str, bool] = {}
    missing: set[str] = set()
    prunable = tuple(f"{name}." for name in NEVER.split())
    while waiting:
        name, required = waiting.pop()
        pruned = not required and f"{name}.".startswith(prunable)
        if name in frozen or pruned or seen.get(name) in (required, True):
            continue
        seen[name] = required
        if name in c_modules:
            built_in.add(name)
        elif path := _find(name, roots):
            modules[name] = path
            waiting += [
                _Import(each.name, each.required and required)
                for each in _imports(path, name, roots, c_modules)
            ]
            if package := name.rpartition(".")[0]:
                waiting.append(_Import(package, required))
        elif required and name != "os.path":  # not a submodule: os puts it into sys.modules
            missing.add(name)
    if missing:
        names = ", ".join(sorted(missing))
        raise BuildError(f"{wanted[0].partition('.')[0]} imports what is not embedded: {names}")
    return Bundle(modules, frozenset(built_in))


def member(name: str, path: Path) -> str:
    """What a module's file is called in an archive."""
    return name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")


def append(executable: Path, package: str, module: Path, others: dict[str, bytes]) -> None:
    """Put a zip archive with a package of data behind the executable: its `module`, the files
    beside that, and `others`. Its bytes depend only on the content."""
    unchecked = (1).to_bytes(4, "little") + bytes(8)  # PEP 552: a hash that is never checked
    code = freeze.freeze_file(module, member(package, module)).code
    members = {
        path.name: path.read_bytes()
        for path in module.parent.iterdir()
        if path.is_file() and path != module
    }
    members |= {"__init__.pyc": importlib.util.MAGIC_NUMBER + unchecked + code, **others}
    with zipfile.ZipFile(executable, "a") as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(f"{package.replace('.', '/')}/{name}", EPOCH)
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, members[name], zipfile.ZIP_DEFLATED, compresslevel=9)


def names_below(root: Path, package: str) -> list[str]:
    """The modules of a package, in order."""
    return sorted(
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in (root / package).rglob("*.py")
    )


def _find(name: str, roots: list[Path]) -> Path | None:
    tail = name.replace(".", "/")
    for root in roots:
        for path in (root / tail / "__init__.py", root / f"{tail}.py"):
            if path.is_file():
                return path
    return None


def _imports(
    path: Path, name: str, roots: list[Path], c_modules: frozenset[str]
) -> Iterator[_Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    lazy: tuple[type[ast.AST], ...] = (ast.Try, ast.If)
    if not path.is_relative_to(roots[0]):
        lazy += (ast.FunctionDef, ast.AsyncFunctionDef)
    for node, required in _statements(ast.parse(path.read_bytes()), lazy, True):
        if isinstance(node, ast.Import):
            yield from (_Import(alias.name, required) for alias in node.names)
            continue
        above = package.split(".")[: 1 - node.level or None] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield _Import(base, required)
        for alias in node.names:  # a submodule, or just something in the module
            member = f"{base}.{alias.name}"
            if _find(member, roots):
                yield _Import(member, required)


def _statements(
    node: ast.AST, lazy: tuple[type[ast.AST], ...], required: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, required
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _statements(ast.Module(child.orelse, []), lazy, required)
        else:
            yield from _statements(child, lazy, required and not isinstance(child, lazy))
