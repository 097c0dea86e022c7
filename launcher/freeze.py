# SPDX-License-Identifier: Apache-2.0
"""Python modules as C data, which CPython imports without a file.

Must run under exactly the CPython that is embedded: each version has its own bytecode.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable
from pathlib import Path

# CPython's own import system, under the names by which its C code asks for it.
_IMPORT_SYSTEM = {
    "_frozen_importlib": "importlib/_bootstrap.py",
    "_frozen_importlib_external": "importlib/_bootstrap_external.py",
    "zipimport": "zipimport.py",
}


def freeze(
    library: Path, plugin: dict[str, Path], built_in: Iterable[str], output: Path
) -> list[str]:
    """Write the tables of modules, as C; return the names in the tool's.

    The plugin's interpreter has only these modules. The tool's finds all others in the archive at
    the executable's end. `built_in` are the modules in C that the plugin imports.
    """
    ours = {name: file.read_bytes() for name, file in plugin.items()}
    system = {name: (library / file).read_bytes() for name, file in _IMPORT_SYSTEM.items()}
    for_tool = system | ours
    for_plugin = {
        "_frozen_importlib": system["_frozen_importlib"],
        "__future__": (library / "__future__.py").read_bytes(),
        # To decode what is not UTF-8, CPython looks up an error handler, and imports this first.
        # The handlers and codecs that the plugin uses are all in C, so it can be empty.
        "encodings": b"",
        **ours,
        "rehearsal": Path(__file__).with_name("rehearsal.py").read_bytes(),
    }
    output.write_text(
        '#include "Python.h"\n#include "internal/pycore_import.h"\n'
        + "".join(_code(name, source) for name, source in (for_plugin | for_tool).items())
        + _table("plugin_modules", for_plugin)
        + _table("tool_modules", for_tool)
        + _names("plugin_imports", [*sorted(built_in), *for_plugin])
        + _NO_OTHERS
    )
    return list(for_tool)


def _code(name: str, source: bytes) -> str:
    # Without docstrings, which nobody reads here; there are no assertions.
    code = compile(source, f"<frozen {name}>", "exec", dont_inherit=True, optimize=2)
    numbers = ",".join(map(str, marshal.dumps(code)))
    return f"static const unsigned char {_symbol(name)}[] = {{{numbers}}};\n"


def _table(name: str, modules: Iterable[str]) -> str:
    rows = [
        f'    {{"{module}", {_symbol(module)}, sizeof {_symbol(module)},'
        f" {int(any(each.startswith(f'{module}.') for each in modules))}, NULL}},\n"
        for module in modules
    ]
    return f"const struct _frozen {name}[] = {{\n{''.join(rows)}    {{0}},\n}};\n"


def _names(name: str, modules: Iterable[str]) -> str:
    rows = [f'    "{module}",\n' for module in modules]
    return f"const char *const {name}[] = {{\n{''.join(rows)}    NULL,\n}};\n"


def _symbol(name: str) -> str:
    return "code_of_" + name.replace(".", "_")


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
