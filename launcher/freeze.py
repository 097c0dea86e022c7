# SPDX-License-Identifier: Apache-2.0
"""Python modules as C data: code objects that are there when the process starts.

CPython's own Tools/scripts/deepfreeze.py does the work; it was written for two dozen modules of the
standard library, and what it does not do well for others is put right here. Has to run under
exactly the CPython that is embedded, since the C data is that version's memory layout.
"""

from __future__ import annotations

import ast
import importlib
import io
import math
import re
import sys
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple


class Module(NamedTuple):
    """A module to freeze."""

    name: str
    file: Path

    @property
    def is_package(self) -> bool:
        """Whether it may have submodules."""
        return self.file.name == "__init__.py"

    @property
    def symbol(self) -> str:
        """Its name in C."""
        return self.name.replace(".", "_")


def freeze(
    *, scripts: Path, library: Path, bootstrap: Path, plugin: dict[str, Path], output: Path
) -> list[str]:
    """Write plugin.c, tool.c and tables.c; the names that are frozen for the tool.

    The plugin starts with nothing but `bootstrap` and itself, the tool with CPython's own import
    system, which then finds everything else in the archive behind the executable.
    """
    ours = [Module(name, file) for name, file in sorted(plugin.items())]
    small = Module("bootstrap", bootstrap)
    internal = Module("importlib._bootstrap", library / "importlib/_bootstrap.py")
    external = Module("importlib._bootstrap_external", library / "importlib/_bootstrap_external.py")
    zipimport = Module("zipimport", library / "zipimport.py")
    deepfreeze = _deepfreeze(scripts)
    _write_modules(deepfreeze, output / "plugin.c", [small, *ours])
    _write_modules(deepfreeze, output / "tool.c", [internal, external, zipimport])

    own_names = {module.name: module for module in ours}
    for_plugin = {"_frozen_importlib": small, **own_names}
    for_tool = {
        "_frozen_importlib": internal,
        "_frozen_importlib_external": external,
        "zipimport": zipimport,
        **own_names,
    }
    everything = [small, internal, external, zipimport, *ours]
    (output / "tables.c").write_text(
        '#include "Python.h"\n#include "internal/pycore_import.h"\n'
        + "".join(f"extern PyObject *get_{module.symbol}(void);\n" for module in everything)
        + _names(_identifiers(ours))
        + _table("plugin_modules", for_plugin)
        + _table("tool_modules", for_tool)
        + NO_OTHERS
    )
    return list(for_tool)


def _deepfreeze(scripts: Path) -> Any:
    sys.path.append(str(scripts))
    module: Any = importlib.import_module("deepfreeze")
    # It looks strings up by their C spelling, so the two characters backslash and n would become
    # CPython's own string of one newline.
    module.strings = {key: name for key, name in module.strings.items() if "\\" not in key}
    return module


def _write_modules(deepfreeze: Any, path: Path, modules: list[Module]) -> None:
    """One C file with the code of these modules; equal constants are shared within it.

    The names in the code stay as they are: deepfreeze would have every one of them interned when
    the process starts, which is for speed only, costs more than it brings a process of a few
    milliseconds, and touches memory that is otherwise never read.
    """

    class Printer(deepfreeze.Printer):  # type: ignore[misc]
        """Writes a frozenset as one, where the original settles for a tuple of its members."""

        sets: list[str] = []  # noqa: RUF012 - emptied for each module

        def generate(self, name: str, obj: object) -> str:
            if isinstance(obj, tuple) and _has_frozenset(obj):
                return self.generate_tuple(name, obj)  # completed at run time, so never shared
            return str(super().generate(name, obj))

        def generate_float(self, name: str, x: float) -> str:
            expression = str(super().generate_float(name, 1.0 if math.isinf(x) else x))
            if math.isinf(x):  # `inf` is no word of C
                self.patchups.append(f"{name}.ob_fval = {'-' if x < 0 else ''}Py_HUGE_VAL;")
            return expression

        def generate_tuple(self, name: str, t: tuple[object, ...]) -> str:
            expression = str(super().generate_tuple(name, t))
            for i, item in enumerate(t):
                if isinstance(item, frozenset):
                    self.sets.append(f"&{name}._object.ob_item[{i}]")
            return expression

    text = io.StringIO()
    printer = Printer(text)
    for module in modules:
        printer.sets.clear()
        printer.patchups.clear()
        printer.generate(f"{module.symbol}_toplevel", _code(module))
        printer.write(
            GETTER.format(
                symbol=module.symbol,
                patches="\n        ".join(printer.patchups),
                sets=", ".join(printer.sets) or "NULL",
                set_count=len(printer.sets),
            )
        )
    first, *definitions = re.split("(?m)^static$", text.getvalue())
    path.write_text(first + "".join(map(_placed, definitions)))


def _placed(definition: str) -> str:
    """A C definition without its first word, `static`, in a section with others of its kind.

    Running Python code writes to objects, if only to count references, and each page first written
    to costs a microsecond and a half. So what is written to at every start (names, functions) is
    kept from what mostly rests (line tables, messages).
    """
    kind = re.findall(r"\.ob_type = &Py(\w+)_Type", definition)[0]
    name = re.findall(r"(?m)^(\w+) = \{$", definition)[0]
    if kind == "Unicode" and not name.startswith("const_str_"):  # no identifier
        kind = "Text"
    return f'static __attribute__((section(".data.frozen_{kind}")))\n{definition}'


def _code(module: Module) -> CodeType:
    """The module's code, without what no run of it reads: docstrings and annotations."""
    tree = _Stripper().visit(ast.parse(module.file.read_bytes()))
    name = f"<frozen {module.name}>"
    return compile(tree, name, "exec", dont_inherit=True, optimize=0)


class _Stripper(ast.NodeTransformer):
    def visit(self, node: Any) -> Any:
        self.generic_visit(node)
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            return None  # annotations is all there is in 3.11
        if isinstance(node, ast.AnnAssign):
            if node.value is None:
                return ast.copy_location(ast.Pass(), node)
            return ast.copy_location(ast.Assign([node.target], node.value), node)
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        has_body = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_body and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.copy_location(ast.Pass(), node.body[0])
        return node


def _has_frozenset(constant: object) -> bool:
    if isinstance(constant, tuple):
        return any(_has_frozenset(item) for item in constant)
    return isinstance(constant, frozenset)


def _identifiers(modules: list[Module]) -> set[str]:
    """Every name that the code of these modules can read from another module, and more."""
    found: set[str] = set()
    waiting = [_code(module) for module in modules]
    while waiting:
        code = waiting.pop()
        found.update(code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                waiting.append(constant)
            elif isinstance(constant, str):  # for getattr(module, "NAME")
                found.add(constant)
    return {name for name in found if name.isidentifier() and name.isascii()}


def _names(names: set[str]) -> str:
    """A set of hashes, a bit for each of 65,536: two in a hundred other names seem to be in it."""
    words = [0] * 1024
    for name in names:
        word, bit = divmod(_hash(name) % 2**16, 64)
        words[word] |= 1 << bit
    rows = "".join(f"    {word:#x}u,\n" for word in words)
    return f"const uint64_t plugin_names[1024] = {{\n{rows}}};\n"


def _hash(text: str) -> int:
    """FNV-1a, as in launcher/main.c."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return value


def _table(name: str, modules: dict[str, Module]) -> str:
    rows = [
        f'    {{"{as_name}", NULL, 0, {int(module.is_package)}, get_{module.symbol}}},\n'
        for as_name, module in modules.items()
    ]
    return f"const struct _frozen {name}[] = {{\n{''.join(rows)}    {{0}},\n}};\n"


# The code object, ready from the first import on.
GETTER = """
PyObject *
get_{symbol}(void)
{{
    static PyObject **const sets[] = {{{sets}}};
    static int ready;
    if (!ready) {{
        {patches}
        for (size_t i = 0; i < {set_count}; i++) {{
            PyObject *set = PyFrozenSet_New(*sets[i]);
            if (set == NULL)
                return NULL;
            *sets[i] = set;
        }}
        ready = 1;
    }}
    return Py_NewRef((PyObject *)&{symbol}_toplevel);
}}
"""

# In the place of libpython's own table, whose modules cost the start a millisecond, used or not.
NO_OTHERS = """
static const struct _frozen none[] = {{0}};
const struct _frozen *_PyImport_FrozenBootstrap = none;
const struct _frozen *_PyImport_FrozenStdlib = none;
const struct _frozen *_PyImport_FrozenTest = none;
const struct _frozen *PyImport_FrozenModules = NULL;
static const struct _module_alias aliases[] = {
    {"_frozen_importlib", "importlib._bootstrap"},
    {"_frozen_importlib_external", "importlib._bootstrap_external"},
    {0},
};
const struct _module_alias *_PyImport_FrozenAliases = aliases;
int _Py_Deepfreeze_Init(void) { return 0; }
void _Py_Deepfreeze_Fini(void) {}
"""
