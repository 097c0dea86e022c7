# SPDX-License-Identifier: Apache-2.0
"""Compile, link and bundle: from fetched parts to the one file. Started by build.py.

python3.11 assemble.py FACTS OUTPUT
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundle
import freeze
import sbom
from archive import BuildError, run

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = ROOT / "launcher"
SOURCE = ROOT / "src"

# Modules of CPython's core, whose C functions do not follow from their names.
CORE_MODULES = {
    "_ast": "PyInit__ast",
    "_imp": "PyInit__imp",
    "_string": "PyInit__string",
    "_tokenize": "PyInit__tokenize",
    "_warnings": "_PyWarnings_Init",
    "builtins": "NULL",
    "gc": "PyInit_gc",
    "marshal": "PyMarshal_Init",
    "sys": "NULL",
}
# What CPython's C code imports by itself.
ALWAYS_BUILT_IN = """
    _abc _codecs _collections _functools _io _locale _operator _signal _stat _thread _tracemalloc
    _weakref atexit errno faulthandler itertools posix time zlib
"""


# The start code runs before the stack protector's guard is set; main.c has no arrays on the stack.
OWN_FLAGS = ["-Wall", "-Wextra", "-Werror", "-fno-stack-protector"]


# The parts of libpython that a call of the plugin uses. They are at the beginning of the file, with
# libc and ours, and what only the tool needs after them: from Linux 6.18 on, touching a page of a
# file maps the page cache's whole folio around it, 2 MB of a file written at once.
PLUGIN_OBJECTS = """
    _struct _warnings abstract accu blake2b_impl blake2module bltinmodule boolobject
    bootstrap_hash bytearrayobject bytes_methods bytesobject call capsule cellobject ceval
    classobject codecs codeobject compile descrobject dictobject enumobject errors exceptions
    fcntlmodule fileobject fileutils floatobject frame frameobject funcobject gcmodule genobject
    getargs import iterobject listobject longobject methodobject modsupport moduleobject object
    obmalloc posixmodule pyctype pyhash pystate pystrcmp pystrhex pytime rangeobject
    selectmodule setobject signalmodule sliceobject socketmodule specialize structmember
    structseq sysmodule thread timemodule traceback tupleobject typeobject unicodectype
    unicodeobject unionobject weakrefobject
"""
# The same for all else that is linked.
PLUGIN_FILES = "main.o snapshot.o _json.o start_*.o *crt*.o *libc.a: *libm*.a: *libgcc*.a:"


# Room for what CPython allocates before its snapshot (snapshot.ld): bytes.
MOST = {".idle": 8 << 20, ".read": 2 << 20, ".written": 2 << 20}

# Functions of libc that snapshot.c and main.c replace.
WRAPPED = ["malloc", "calloc", "realloc", "free", "pthread_self", "_dl_get_origin"]


# What this machine needs to execute what it builds.
EMULATORS = {"x86_64-linux-gnu": [], "aarch64-linux-gnu": ["qemu-aarch64-static"]}


class Toolchain:
    """The compiler, pointed at the unpacked packages instead of the machine's own."""

    def __init__(self, facts: dict[str, Any], objects: Path) -> None:
        self._triplet = facts["triplet"]
        self._sysroot = Path(facts["sysroot"])
        self._objects = objects
        self._compiler = f"{self._triplet}-gcc"
        include = self._sysroot / "usr/include"
        self._flags = [
            f"--sysroot={self._sysroot}",
            f"-ffile-prefix-map={ROOT}=.",  # two checkouts build the same bytes
            f"-isystem{include / 'python3.11'}",
            f"-isystem{include / 'python3.11/internal'}",
            f"-isystem{include / self._triplet}",
            *["-std=c11", "-O2", "-fwrapv", "-fstack-protector-strong"],
            *["-DNDEBUG", "-D_GNU_SOURCE", "-DPy_BUILD_CORE=1"],
        ]

    @property
    def version(self) -> str:
        """The compiler, for the record."""
        return run(self._compiler, "--version").splitlines()[0]

    def compile(self, source: Path, *flags: str) -> Path:
        """One object file."""
        output = self._objects / f"{source.stem}.o"
        run(self._compiler, *self._flags, *flags, "-c", source, "-o", output)
        return output

    def link(self, objects: list[Path], output: Path, room: dict[str, int]) -> None:
        """The static executable, without glibc's warnings: see below. `room`: the bytes that the
        sections of its snapshot may have."""
        libraries = self._sysroot / "usr/lib" / self._triplet
        gcc = self._sysroot / "usr/lib/gcc" / self._triplet / "12"
        options = [
            "-static",
            "-Wl,--gc-sections,--build-id=none,-z,relro,-z,now",
            "-Wl,-z,noseparate-code",  # two segments to map instead of four: 0.04 ms
            *[f"-Wl,--wrap={function}" for function in WRAPPED],
            *[f"-Wl,--defsym={name.lstrip('.')}_size={size}" for name, size in room.items()],
            *[f"-Wl,-T,{LAUNCHER / 'snapshot.ld'}", f"-Wl,-T,{self._objects / 'layout.ld'}"],
            # glibc warns that getaddrinfo() and its like look for name service modules on the
            # host. The plugin calls none of them; the tool asks for numbers and localhost only.
            "-Wl,--no-warnings",
        ]
        run(
            self._compiler,
            f"--sysroot={self._sysroot}",
            f"-L{gcc}",
            *options,
            *objects,
            libraries / "libpython3.11.a",
            *[libraries / f"{name}.a" for name in ("libz", "libssl", "libcrypto")],
            "-lm",
            "-o",
            output,
        )

    def survey(self, linked: Path) -> bytes:
        """What becomes of each block that CPython allocates before its snapshot; see snapshot.c."""
        return self._start(linked, b"")

    def take_snapshot(self, linked: Path, survey: bytes, output: Path) -> dict[str, int]:
        """The executable with an interpreter's snapshot in it; see snapshot.c. Returns how many
        bytes of its sections it fills."""
        names = (".state", *MOST, ".pristine")
        files = {name: linked.with_suffix(name) for name in names}
        sections = [f"{name}={path}" for name, path in files.items()]
        self._objcopy(linked, output, *[f"--dump-section={each}" for each in sections])
        pristine = zlib.compress(files[".state"].read_bytes(), 9)
        room = files[".pristine"].stat().st_size
        if len(pristine) > room:
            raise BuildError(f"snapshot.c: `pristine` needs {len(pristine)} bytes")
        addresses = self._addresses(linked)
        memory = self._start(linked, survey)
        filled = {}
        for name in (".state", *MOST):
            start = addresses[name] - addresses[".idle"]
            part = memory[start : start + files[name].stat().st_size]
            files[name].write_bytes(part)
            filled[name] = int.from_bytes(part[:8], "little")
        files[".pristine"].write_bytes(pristine.ljust(room, b"\0"))
        self._objcopy(linked, output, *[f"--update-section={each}" for each in sections])
        del filled[".state"]
        return filled

    def _start(self, linked: Path, survey: bytes) -> bytes:
        """What the linker's output prints. Nothing of this machine's environment gets in, nor its
        time zone."""
        started = subprocess.run(
            [*EMULATORS[self._triplet], linked],
            env={"TZ": "UTC0"},
            input=survey,
            stdout=subprocess.PIPE,
            check=False,
        )
        if started.returncode != 0:
            raise BuildError(
                f"{linked} did not take its snapshot (exit status {started.returncode})"
            )
        return started.stdout

    def _addresses(self, linked: Path) -> dict[str, int]:
        """The addresses of the sections."""
        headers = run(f"{self._triplet}-objdump", "--section-headers", linked)
        found = re.findall(r"(?m)^ *\d+ (\S+) +\w+ +(\w+)", headers)
        return {name: int(address, 16) for name, address in found}

    def _objcopy(self, source: Path, output: Path, *options: str) -> None:
        run(f"{self._triplet}-objcopy", *options, source, output)

    def strip(self, linked: Path, output: Path) -> None:
        """The executable without its symbols."""
        run(f"{self._triplet}-strip", "--strip-all", "-o", output, linked)


def embeddable(facts: dict[str, Any]) -> frozenset[str]:
    """The modules in C that can be linked in: libpython's own and ours."""
    folder = Path(facts["sysroot"], "usr/lib/python3.11", f"config-3.11-{facts['triplet']}")
    table = (folder / "config.c").read_text()
    libpython = re.findall(r'\{"(\w+)", PyInit_\w+\}', table)
    return frozenset([*libpython, *facts["extensions"], *CORE_MODULES])


def module_table(names: list[str]) -> str:
    """The table of built-in modules."""
    functions = {name: CORE_MODULES.get(name, f"PyInit_{name}") for name in names}
    functions["posix"] = "PyInit_posix_with_backports"  # main.c
    declared = sorted(set(functions.values()) - {"NULL"})
    return "\n".join(
        [
            '#include "Python.h"',
            *[f"extern PyObject *{function}(void);" for function in declared],
            "struct _inittab _PyImport_Inittab[] = {",
            *[f'    {{"{name}", {function}}},' for name, function in functions.items()],
            "    {0},",
            "};",
            "",
        ]
    )


def layout() -> str:
    """The linker script that puts first what the plugin executes and reads."""
    files = [f"*libpython3.11.a:{name}.o" for name in PLUGIN_OBJECTS.split()]
    files += [f"*{name.lstrip('*')}" for name in PLUGIN_FILES.split()]
    sections = [
        f"    .{kind}.plugin :\n    {{\n"
        + "".join([f"        {file}(.{kind} .{kind}.*)\n" for file in files])
        + "    }\n"
        for kind in ("text", "rodata")
    ]
    return "SECTIONS\n{\n" + "".join(sections) + "}\nINSERT BEFORE .text;\n"


def components(facts: dict[str, Any]) -> list[sbom.Component]:
    """What the SBOM lists."""
    parts = [
        sbom.debian(each["name"], each["version"], each["architecture"], each["sha256"])
        for each in facts["packages"]
    ]
    for i, part in enumerate(parts):
        if part.name == "libpython3.11-dev":
            remarks = {"extension-modules-from-source": facts["source_version"]}
            parts[i] = part._replace(remarks=remarks)
    rich = facts["rich"]
    return [*parts, sbom.pypi("rich", rich["version"], rich["sha256"])]


def about(facts: dict[str, Any], compiler: str, product: str) -> dict[str, bytes]:
    """The members of the archive that are about the executable: facts, SBOM and licences."""
    doc = Path(facts["sysroot"], "usr/share/doc")
    rich = next(Path(facts["rich"]["folder"]).glob("rich-*.dist-info/**/LICENSE"))
    licences = {each["name"]: sbom.licence_file(doc, each["name"]) for each in facts["packages"]}
    licences |= {"rich": rich.read_bytes(), "mycelium-cni": (ROOT / "LICENSE").read_bytes()}
    parts = components(facts)
    build = {
        "architecture": facts["architecture"],
        "python": next(part.version for part in parts if part.name == "libpython3.11-dev"),
        "compiler": compiler,
        "components": {part.name: part.version for part in sorted(parts)},
    }
    return {
        "build.json": json.dumps(build, indent=2).encode(),
        "sbom.cdx.json": sbom.document(product, facts["architecture"], parts).encode(),
        **{f"licenses/{name}.txt": text for name, text in licences.items()},
    }


def product_version() -> str:
    """The version, from the one place that has it."""
    text = (SOURCE / "mycelium_cni/cni/errors.py").read_text()
    return str(re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)[0])


def assemble(facts: dict[str, Any], output: Path) -> None:
    """Make the executable."""
    objects = ROOT / "build/launcher" / f"objects-{facts['architecture']}"
    objects.mkdir(parents=True, exist_ok=True)
    source = Path(facts["source"])
    library = Path(facts["sysroot"], "usr/lib/python3.11")

    plugin = bundle.names_below(SOURCE, "mycelium_cni")
    available = embeddable(facts) - {"unicodedata"}
    # Looked for in our own folder only: of the standard library the plugin may use what is in C.
    needed = bundle.follow_imports([SOURCE], plugin, frozenset(["__future__"]), available)
    files = {name: _file_of(name) for name in plugin}
    frozen = freeze.freeze(library, files, needed.built_in, objects / "tables.c")
    rich = Path(facts["rich"]["folder"])
    tool = bundle.follow_imports(
        [SOURCE, LAUNCHER / "instead", rich, library],
        [
            "mycelium_entry",
            *bundle.names_below(SOURCE, "mycelium_ctl"),
            *bundle.names_below(SOURCE, "mycelium_agent"),
            *bundle.names_below(SOURCE, "mycelium_lab"),
            # How wide a character is, by the Unicode version of the terminal; loaded by name.
            *bundle.names_below(rich, "rich/_unicode_data"),
            *bundle.ALWAYS.split(),
        ],
        frozenset(frozen),
        available,
    )
    built_in = sorted({*needed.built_in, *tool.built_in, *ALWAYS_BUILT_IN.split(), *CORE_MODULES})
    (objects / "modules.c").write_text(module_table(built_in))
    (objects / "layout.ld").write_text(layout())

    toolchain = Toolchain(facts, objects)
    ours = [LAUNCHER / "main.c", LAUNCHER / "snapshot.c"]
    if facts["architecture"] == "amd64":
        ours.append(LAUNCHER / "start_x86_64.c")
    generated = [objects / name for name in ("tables.c", "modules.c")]
    extensions = [source / path for name, path in facts["extensions"].items() if name in built_in]
    replaced = [LAUNCHER / path.name for path in extensions]
    extensions = [
        own if own.is_file() else path for own, path in zip(replaced, extensions, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = [
            *pool.map(lambda path: toolchain.compile(path, *OWN_FLAGS), ours),
            *pool.map(
                lambda path: toolchain.compile(path, "-DPy_BUILD_CORE_BUILTIN", f"-I{source}"),
                extensions,
            ),
            *pool.map(toolchain.compile, generated),
        ]
    # With symbols, for the instruction budget and for debuggers; they are not shipped.
    linked, whole = objects / "linked", objects / "mycelium-cni"
    toolchain.link(compiled, linked, MOST)
    survey = toolchain.survey(linked)
    filled = toolchain.take_snapshot(linked, survey, whole)
    toolchain.link(compiled, linked, filled)  # again, without what is left of the room
    toolchain.take_snapshot(linked, survey, whole)
    part = output.with_name(f".{output.name}.part")
    output.parent.mkdir(parents=True, exist_ok=True)
    toolchain.strip(whole, part)

    documents = about(facts, toolchain.version, product_version())
    data = {
        str(path.relative_to(SOURCE)): path.read_bytes()
        for path in sorted((SOURCE / "mycelium_ctl").rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc", ".typed")
    }
    bundle.append(part, {**bundle.compiled(tool, SOURCE), **data, **documents})
    part.chmod(0o755)
    part.rename(output)
    output.with_name(f"{output.name}.cdx.json").write_bytes(documents["sbom.cdx.json"])
    size = output.stat().st_size / 1e6
    print(f"launcher: {output} ({size:.1f} MB, {len(tool.modules)} modules)", file=sys.stderr)


def _file_of(name: str) -> Path:
    path = SOURCE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def main() -> int:
    """Read the facts and assemble."""
    facts = json.loads(Path(sys.argv[1]).read_text())
    try:
        assemble(facts, Path(sys.argv[2]))
    except BuildError as error:
        print(f"launcher: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
