# SPDX-License-Identifier: Apache-2.0
"""Python modules as C data, which CPython imports without a file.

Must run under exactly the CPython that is embedded: each version has its own bytecode.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# CPython's own import system, under the names by which its C code asks for it.
IMPORT_SYSTEM = {
    "_frozen_importlib": "importlib/_bootstrap.py",
    "_frozen_importlib_external": "importlib/_bootstrap_external.py",
    "zipimport": "zipimport.py",
}


class Frozen(NamedTuple):
    """A module."""

    code: bytes  # marshalled
    is_package: bool


def freeze(source: bytes, name: str, *, docstrings: bool = False, package: bool = False) -> Frozen:
    """A module of this source. `name`: what a traceback calls its file. There are no assertions,
    or, with docstrings, there are."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0 if docstrings else 2)
    return Frozen(marshal.dumps(code), package)


def freeze_file(path: Path, name: str, *, docstrings: bool = False) -> Frozen:
    """The same of a file."""
    is_package = path.name == "__init__.py"
    return freeze(path.read_bytes(), name, docstrings=docstrings, package=is_package)


def for_plugin(
    library: Path, modules: dict[str, Frozen], system: dict[str, Frozen]
) -> dict[str, Frozen]:
    """All that the plugin's interpreter has: it imports them when the executable is built."""
    future = library / "__future__.py"
    rehearsal = Path(__file__).with_name("rehearsal.py")
    return {
        "_frozen_importlib": system["_frozen_importlib"],
        "__future__": freeze_file(future, "<frozen __future__>"),
        # To decode what is not UTF-8, CPython looks up an error handler, and imports this first.
        # The handlers and codecs that the plugin uses are all in C, so it can be empty.
        "encodings": freeze(b"", "<frozen encodings>"),
        **modules,
        "rehearsal": freeze_file(rehearsal, "<frozen rehearsal>"),
    }


def write_tables(
    plugin: dict[str, Frozen], tool: dict[str, Frozen], built_in: Iterable[str], output: Path
) -> None:
    """Write the tables of modules of both interpreters, as C, and their code beside it.

    `built_in` are the modules in C that the plugin imports.
    """
    offsets: dict[bytes, int] = {}
    content = b""
    for module in [*plugin.values(), *tool.values()]:
        if module.code not in offsets:
            offsets[module.code] = len(content)
            content += module.code
    code = output.with_suffix(".bin")
    code.write_bytes(content)
    output.write_text(
        '#include "Python.h"\n#include "internal/pycore_import.h"\n'
        + _CODE.format(file=code.name)
        + _table("plugin_modules", plugin, offsets)
        + _table("tool_modules", tool, offsets)
        + _names("plugin_imports", [*sorted(built_in), *plugin])
        + _NO_OTHERS
    )


_CODE = """\
__asm__(".pushsection .rodata.modules, \\"a\\"\\n"
        "modules: .incbin \\"{file}\\"\\n"
        ".popsection");
extern const unsigned char modules[];
"""


def _table(name: str, modules: dict[str, Frozen], offsets: dict[bytes, int]) -> str:
    rows = [
        f'    {{"{module}", modules + {offsets[frozen.code]}, {len(frozen.code)},'
        f" {int(frozen.is_package)}, NULL}},\n"
        for module, frozen in modules.items()
    ]
    return f"const struct _frozen {name}[] = {{\n{''.join(rows)}    {{0}},\n}};\n"


def _names(name: str, modules: Iterable[str]) -> str:
    rows = [f'    "{module}",\n' for module in modules]
    return f"const char *const {name}[] = {{\n{''.join(rows)}    NULL,\n}};\n"


# Replaces libpython's own tables, whose modules would be linked in, used or not.
_NO_OTHERS = """
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
