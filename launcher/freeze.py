# SPDX-License-Identifier: Apache-2.0
"""Python modules as C data, which CPython imports without a file.

Must run under exactly the CPython that is embedded: each version has its own bytecode.
"""

from __future__ import annotations

import marshal
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from archive import run

# CPython's own import system, under the names by which its C code asks for it.
IMPORT_SYSTEM = {
    "_frozen_importlib": "importlib/_bootstrap.py",
    "_frozen_importlib_external": "importlib/_bootstrap_external.py",
    "zipimport": "zipimport.py",
}


# Bytes that compressed modules have in common: half a module in twenty.
_DICTIONARY = 256 << 10


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
        # What mypyc's modules ask of the import system, at the names that it has in the tool.
        "importlib": freeze(b"", "<frozen importlib>", package=True),
        "importlib._bootstrap": freeze(_BOOTSTRAP, "<frozen importlib._bootstrap>"),
        "importlib.machinery": freeze(_MACHINERY, "<frozen importlib.machinery>"),
        # To decode what is not UTF-8, CPython looks up an error handler, and imports this first.
        # The handlers and codecs that the plugin uses are all in C, so it can be empty.
        "encodings": freeze(b"", "<frozen encodings>"),
        **modules,
        "rehearsal": freeze_file(rehearsal, "<frozen rehearsal>"),
    }


_BOOTSTRAP = b"from _frozen_importlib import _get_module_lock, _DeadlockError"
# The loader is only for a module's __spec__.
_MACHINERY = b"""\
from _frozen_importlib import BuiltinImporter, ModuleSpec
def ExtensionFileLoader(name, path):
    return BuiltinImporter
"""


def of_native(name: str) -> Frozen:
    """What stands for a module of native.py. CPython looks for a module in C only if it is in no
    package, but would find it, and mypyc asks for the file of the one that it makes of all."""
    source = b"""\
import _imp, sys, native__mypyc
native__mypyc.__file__ = ""
sys.modules[__name__] = _imp.create_builtin(__spec__)
"""
    return freeze(source, f"<frozen {name}>")


class Compressed(NamedTuple):
    """Modules, each as a Zstandard frame of its own, and the dictionary for all (packed.c)."""

    modules: dict[str, Frozen]
    dictionary: bytes


def compress(modules: dict[str, Frozen], folder: Path) -> Compressed:
    """Compress these modules."""
    shutil.rmtree(folder, ignore_errors=True)
    frames = folder / "frames"
    frames.mkdir(parents=True)
    files = [folder / name for name in modules]
    for file, module in zip(files, modules.values(), strict=True):
        file.write_bytes(module.code)
    dictionary = folder / "dictionary"
    run("zstd", "--quiet", "--train", f"--maxdict={_DICTIONARY}", "-o", dictionary, *files)
    options = ["--quiet", "-19", "--single-thread", "--no-check", "--no-dictID"]
    run("zstd", *options, "-D", dictionary, "--output-dir-flat", frames, *files)
    made = {
        name: module._replace(code=(frames / f"{name}.zst").read_bytes())
        for name, module in modules.items()
    }
    return Compressed(made, dictionary.read_bytes())


def write_tables(
    plugin: dict[str, Frozen],
    tool: dict[str, Frozen],
    compressed: Compressed,
    built_in: Iterable[str],
    output: Path,
) -> None:
    """Write the tables of modules of both interpreters, as C, and their code beside it. The tool's
    has the compressed ones, too.

    `built_in` are the modules in C that the plugin imports.
    """
    places: dict[bytes, str] = {}
    definitions = []
    for symbol, section, parts in (
        ("packed_modules", ".modules", [each.code for each in compressed.modules.values()]),
        ("packed_dictionary", ".rodata.modules", [compressed.dictionary]),
        ("modules", ".rodata.modules", [each.code for each in [*plugin.values(), *tool.values()]]),
    ):
        content = b""
        for part in parts:
            if part not in places:
                places[part] = f"{symbol} + {len(content)}"
                content += part
        file = output.with_name(f"{symbol}.bin")
        file.write_bytes(content)
        definitions.append(_INCLUDED.format(symbol=symbol, section=section, file=file.name))
    output.write_text(
        '#include "Python.h"\n#include "internal/pycore_import.h"\n'
        + "".join(definitions)
        + _table("plugin_modules", plugin, places)
        + _table("tool_modules", tool | compressed.modules, places)
        + _names("plugin_imports", [*sorted(built_in), *plugin])
        + _NO_OTHERS
    )


_INCLUDED = """\
__asm__(".pushsection {section}, \\"a\\"\\n"
        ".global {symbol}, {symbol}_end\\n"
        "{symbol}: .incbin \\"{file}\\"\\n"
        "{symbol}_end:\\n"
        ".popsection");
extern const unsigned char {symbol}[];
"""


def _table(name: str, modules: dict[str, Frozen], places: dict[bytes, str]) -> str:
    rows = [
        f'    {{"{module}", {places[frozen.code]}, {len(frozen.code)}, {int(frozen.is_package)},'
        " NULL},\n"
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
