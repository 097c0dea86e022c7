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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundle
import elf
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


# What mypyc writes is not meant to be read. Its functions are kept apart for the linker, which
# leaves out the unused ones of the run-time library.
NATIVE_FLAGS = ["-w", "-Os", "-ffunction-sections", "-fno-asynchronous-unwind-tables"]


# The parts of libpython that a call of the plugin uses. They are in the file as they are, with libc
# and ours; all else is compressed (packed.c).
PLUGIN_OBJECTS = """
    _struct _warnings abstract accu blake2b_impl blake2module bltinmodule boolobject
    bootstrap_hash bytearrayobject bytes_methods bytesobject call capsule cellobject ceval
    classobject codecs codeobject compile descrobject dictobject dtoa enumobject errors
    exceptions fcntlmodule fileobject fileutils floatobject formatter_unicode frame frameobject
    funcobject gcmodule genobject getargs import iterobject listobject longobject methodobject
    modsupport moduleobject mysnprintf object obmalloc posixmodule pyctype pyhash pymath pystate
    pystrcmp pystrhex pystrtod pytime rangeobject selectmodule setobject signalmodule
    sliceobject socketmodule specialize structmember structseq sysmodule thread timemodule
    traceback tupleobject typeobject unicodectype unicodeobject unionobject weakrefobject
"""
# The same for all else that is linked: these files, but not those. The start code chooses no AVX
# version of a function.
PLUGIN_FILES = """
    main.o snapshot.o packed.o __native_*.o _json.o resource.o start_*.o *crt*.o
    *libc.a: *libm*.a: *libgcc*.a:
    *libzstd.a:*_d*.o *libzstd.a:*common.o *libzstd.a:error_private.o *libzstd.a:xxhash.o
"""
TOOL_FILES = """
    *libc.a:*-avx*.o *libc.a:*-evex*.o *libc.a:dns-*.o *libc.a:files-*.o *libc.a:gconv_[cd]*.o
    *libc.a:get*info.o *libc.a:ifaddrs.o *libc.a:load*.o *libc.a:nscd_*.o *libc.a:nss_*.o
    *libc.a:plural.o *libc.a:res*.o *libc.a:strto[dfl]*.o *libc.a:utmp*.o *libc.a:vf*scanf*.o
    *libc.a:vfw*.o *libc.a:wcs[cx]*_l.o *libc.a:wfile*.o *libc.a:wgen*.o *libm*.a:*-avx*.o
    *libm*.a:*-fma*.o
"""
# Of these the plugin only executes code.
TOOL_CONSTANTS = "*libm*.a: *libpython3.11.a:pystate.o"


# Room for what CPython allocates before its snapshot, and for what is compressed (snapshot.ld), in
# bytes.
MOST = {".idle": 8 << 20, ".read": 2 << 20, ".written": 2 << 20, ".packed": 8 << 20}
# What is compressed, in the order of packed.h.
PACKED = (".state", ".tool", ".openssl")
# Its size differs a little when all addresses change: at most so many bytes.
PACKED_CHANGES = 8 << 10

# The package of the files that the tool reads.
DATA = "mycelium_ctl.share"

# Functions of libc and of CPython that snapshot.c, main.c and packed.c replace.
WRAPPED = """
    malloc calloc realloc free pthread_self _dl_get_origin PyMarshal_ReadObjectFromString
    PyEval_SaveThread PyEval_RestoreThread
"""


# What this machine needs to execute what it builds.
EMULATORS = {"x86_64-linux-gnu": [], "aarch64-linux-gnu": ["qemu-aarch64-static"]}


def compressed(part: Path) -> bytes:
    """A file, as one Zstandard frame."""
    return subprocess.run(
        ["zstd", "--quiet", "-19", "--single-thread", "--stdout", part],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


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

    def compile(self, source: Path, *flags: str, output: Path | None = None) -> Path:
        """One object file."""
        output = output or self._objects / f"{source.stem}.o"
        run(self._compiler, *self._flags, *flags, "-c", source, "-o", output)
        return output

    def compile_native(self, source: Path, headers: list[str]) -> Path:
        """That of what mypyc wrote. It takes as long as all else, so it is made once for each C
        file, which build.py has written anew, and not by those who only assemble again."""
        output = source.with_name(f"{source.stem}-{self._triplet}.o")
        if not output.is_file():
            self.compile(
                source, *NATIVE_FLAGS, *[f"-I{folder}" for folder in headers], output=output
            )
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
            *[f"-Wl,--wrap={function}" for function in WRAPPED.split()],
            *[f"-Wl,--defsym={name.lstrip('.')}_size={size}" for name, size in room.items()],
            *[f"-Wl,-T,{self._objects / 'layout.ld'}", f"-Wl,-T,{LAUNCHER / 'snapshot.ld'}"],
        ]
        run(
            self._compiler,
            f"--sysroot={self._sysroot}",
            f"-L{gcc}",
            *options,
            *objects,
            libraries / "libpython3.11.a",
            *[libraries / f"{name}.a" for name in ("libz", "libzstd", "libssl", "libcrypto")],
            "-lm",
            "-o",
            output,
        )

    def survey(self, linked: Path) -> bytes:
        """What becomes of each block that CPython allocates before its snapshot; see snapshot.c."""
        return self._start(linked, b"")

    def take_snapshot(self, linked: Path, survey: bytes, output: Path) -> dict[str, int]:
        """The executable with an interpreter's snapshot in it, and with what is compressed; see
        snapshot.c and packed.c. Returns how many bytes of its sections it fills."""
        files = {name: linked.with_suffix(name) for name in (*MOST, *PACKED)}
        sections = {name: f"-section={name}={path}" for name, path in files.items()}
        self._objcopy(linked, output, *[f"--dump{each}" for each in sections.values()])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            packed = b"".join(pool.map(compressed, [files[name] for name in PACKED]))
        addresses = self._addresses(linked)
        memory = self._start(linked, survey)
        filled = {}
        for name in (".state", ".idle", ".read", ".written"):
            start = addresses[name] - addresses[".idle"]
            part = memory[start : start + files[name].stat().st_size]
            files[name].write_bytes(part)
            filled[name] = int.from_bytes(part[:8], "little")
        room = files[".packed"].stat().st_size
        if len(packed) > room:
            raise BuildError(f"assemble.py: .packed needs {len(packed)} bytes and has {room}")
        files[".packed"].write_bytes(packed.ljust(room, b"\0"))
        filled[".packed"] = len(packed) + PACKED_CHANGES
        del filled[".state"]
        changed = [f"--update{sections[name]}" for name in (".state", *MOST)]
        self._objcopy(linked, output, *changed)
        return filled

    def cut(self, linked: Path, executable: Path) -> None:
        """Leave out what is compressed and not needed to start."""
        elf.cut(executable, self._addresses(linked)[".openssl"])

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


def module_table(names: list[str], native: dict[str, str]) -> str:
    """The table of built-in modules, and of those compiled by mypyc."""
    functions = {name: CORE_MODULES.get(name, f"PyInit_{name}") for name in names} | native
    functions["posix"] = "PyInit_posix_with_backports"  # main.c
    functions["_ssl"] = "PyInit__ssl_unpacked"
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
    """The linker script of what the plugin executes and reads."""
    files = [f"*libpython3.11.a:{name}.o" for name in PLUGIN_OBJECTS.split()]
    files += [f"*{name.lstrip('*')}" for name in PLUGIN_FILES.split()]
    tool = {"text": TOOL_FILES, "rodata": f"{TOOL_FILES} {TOOL_CONSTANTS}"}
    sections = [
        f"    .{kind}.plugin :\n    {{\n"
        + "".join(
            f"        EXCLUDE_FILE({' '.join(excluded.split())}) {file}(.{kind} .{kind}.*)\n"
            for file in files
        )
        + "    }\n"
        for kind, excluded in tool.items()
    ]
    return "SECTIONS\n{\n" + "".join(sections) + "}\nINSERT BEFORE .text;\n"


def freeze_modules(
    library: Path,
    plugin: list[str],
    needed: bundle.Bundle,
    tool: bundle.Bundle,
    output: Path,
    *,
    native: dict[str, str],
) -> None:
    """The modules of either interpreter. Only ours keep docstrings, which --help prints."""
    system = {
        name: freeze.freeze_file(library / path, f"<frozen {name}>")
        for name, path in freeze.IMPORT_SYSTEM.items()
    }
    shared = {
        name: freeze.of_native(name)
        if name in native
        else freeze.freeze_file(needed.modules[name], f"<frozen {name}>")
        for name in plugin
    }
    of_tool = {
        name: freeze.freeze_file(
            path, bundle.member(name, path), docstrings=path.is_relative_to(SOURCE)
        )
        for name, path in sorted(tool.modules.items())
        if name != DATA
    }
    freeze.write_tables(
        freeze.for_plugin(library, shared, system),
        system | shared,
        freeze.compress(of_tool, output.with_name("modules")),
        needed.built_in,
        output,
    )


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
    return [*parts, *[sbom.pypi(name, **pin) for name, pin in facts["packaged"].items()]]


def about(facts: dict[str, Any], compiler: str, product: str) -> dict[str, bytes]:
    """The members of the archive that are about the executable: facts, SBOM and licences."""
    doc = Path(facts["sysroot"], "usr/share/doc")
    licences = {each["name"]: sbom.licence_file(doc, each["name"]) for each in facts["packages"]}
    for name in facts["packaged"]:
        found = next(Path(facts["index"]).glob(f"{name}-*.dist-info/**/LICENSE"))
        licences[name] = found.read_bytes()
    licences["mycelium-cni"] = (ROOT / "LICENSE").read_bytes()
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
        **{f"{name}.license": text for name, text in licences.items()},
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
    index = Path(facts["index"])
    tool = bundle.follow_imports(
        [SOURCE, LAUNCHER / "instead", index, library],
        [
            "mycelium_entry",
            *bundle.names_below(SOURCE, "mycelium_ctl"),
            *bundle.names_below(SOURCE, "mycelium_agent"),
            *bundle.names_below(SOURCE, "mycelium_lab"),
            # How wide a character is, by the Unicode version of the terminal; loaded by name.
            *bundle.names_below(index, "rich/_unicode_data"),
            *bundle.ALWAYS.split(),
        ],
        frozenset([*freeze.IMPORT_SYSTEM, *plugin]),
        available,
    )
    native = facts["native"]
    functions = native["functions"]
    freeze_modules(library, plugin, needed, tool, objects / "tables.c", native=functions)
    built_in = sorted({*needed.built_in, *tool.built_in, *ALWAYS_BUILT_IN.split(), *CORE_MODULES})
    (objects / "modules.c").write_text(module_table(built_in, functions))
    (objects / "layout.ld").write_text(layout())

    toolchain = Toolchain(facts, objects)
    ours = [LAUNCHER / name for name in ("main.c", "packed.c", "snapshot.c")]
    if facts["architecture"] == "amd64":
        ours.append(LAUNCHER / "start_x86_64.c")
    generated = [objects / name for name in ("tables.c", "modules.c")]
    extensions = [source / path for name, path in facts["extensions"].items() if name in built_in]
    replaced = [LAUNCHER / path.name for path in extensions]
    extensions = [
        own if own.is_file() else path for own, path in zip(replaced, extensions, strict=True)
    ]
    headers = [native["folder"], str(index / "mypyc/lib-rt")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        longest = pool.submit(toolchain.compile_native, Path(native["source"]), headers)
        compiled = [
            *pool.map(lambda path: toolchain.compile(path, *OWN_FLAGS), ours),
            *pool.map(
                lambda path: toolchain.compile(path, "-DPy_BUILD_CORE_BUILTIN", f"-I{source}"),
                extensions,
            ),
            *pool.map(lambda path: toolchain.compile(path, f"-Wa,-I{objects}"), generated),
            longest.result(),
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
    for executable in (whole, part):
        toolchain.cut(linked, executable)

    documents = about(facts, toolchain.version, product_version())
    bundle.append(part, DATA, tool.modules[DATA], documents)
    part.chmod(0o755)
    part.rename(output)
    output.with_name(f"{output.name}.cdx.json").write_bytes(documents["sbom.cdx.json"])
    size = output.stat().st_size / 1e6
    print(f"launcher: {output} ({size:.1f} MB, {len(tool.modules)} modules)", file=sys.stderr)


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
