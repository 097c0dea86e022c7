# SPDX-License-Identifier: Apache-2.0
"""Build the static executable: get what goes into it, then hand over to assemble.py.

    launcher/build.py [--arch amd64|arm64] [--output FILE]

Runs on Debian 12 with the packages that apt-ARCH.txt lists, under any Python from 3.11 that has pip
and mypy (native.py). assemble.py runs under the CPython that is embedded: each version has its own
bytecode and object layout.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

from archive import Archive, BuildError, Package, run, untouched_since
from native import compile_to_c

ROOT = Path(__file__).resolve().parent.parent

# Linked in, or their modules bundled: these, and their updates, are ours to ship.
LINKED = [
    "libc6-dev",
    "libgcc-12-dev",
    "libpython3.11-dev",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libssl-dev",
    "libzstd-dev",
    "linux-libc-dev",
    "zlib1g-dev",
]
# They hold the copyright files that two of those refer to.
COPYRIGHTS = ["gcc-12-base", "zlib1g"]
# Run on this machine to build; nothing of them is shipped.
INTERPRETER = ["libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"]
# Modules that Debian has only as shared objects. All others are in libpython3.11.a. No _bz2, no
# _lzma: the tool reads no such files, and each would be one more library to keep updated.
EXTENSIONS = {
    "_contextvars": "Modules/_contextvarsmodule.c",
    "_json": "Modules/_json.c",
    "_queue": "Modules/_queuemodule.c",
    "_ssl": "Modules/_ssl.c",
    "_typing": "Modules/_typingmodule.c",
    "mmap": "Modules/mmapmodule.c",
    "resource": "Modules/resource.c",
    "termios": "Modules/termios.c",
}
# Patches of a source that the archive has, and changes since, that were read when the mirror lacked
# the newest source.
REVIEWED = {
    "Modules/_ssl.c": (
        "CVE-2024-0397",  # in the source that is used
        "CVE-2026-19445",  # the servername callback of a server
        "CVE-2026-19553",  # in ssl.py, which is bundled from the newest binary package
    )
}


TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}


def extension_source(archive: Archive, python: str, root: Path) -> tuple[Path, str]:
    """The source of the extension modules, safe to link with this version of libpython.

    Raises BuildError when it is an earlier one and a module in it may have changed since.
    """
    source, version = archive.source("python3.11", python)
    if version != python:
        changelog = run("zcat", root / "usr/share/doc/libpython3.11-minimal/changelog.Debian.gz")
        for path in EXTENSIONS.values():
            if not untouched_since(source, version, changelog, path, REVIEWED.get(path, ())):
                raise BuildError(
                    f"the archive has python3.11 {python} but only the source of {version}, and"
                    f" {path} may have changed between them; try again when the source is there"
                )
        say(f"extension modules from the source of {version}: unchanged in {python}")
    return source, version


def fetch_from_index(folder: Path) -> dict[str, dict[str, str]]:
    """The Python packages, exactly as pinned, for every Python; what the SBOM says of each."""
    requirements = ROOT / "launcher/requirements.txt"
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:", "--require-hashes"]
    options += ["--platform", "any", "--implementation", "py", "--abi", "none"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    run(*pip, *options, "--root-user-action", "ignore", "--target", folder, "-r", requirements)
    pins = re.findall(r"(?m)^(\S+)==(\S+) --hash=sha256:(\w+)$", requirements.read_text())
    return {name: {"version": version, "sha256": digest} for name, version, digest in pins}


def fetch(architecture: str) -> Path:
    """Everything the executable is made of, and a file of facts about it for assemble.py."""
    work = ROOT / "build/launcher"
    work.mkdir(parents=True, exist_ok=True)
    native = run("dpkg", "--print-architecture").strip()
    if native != "amd64":
        raise BuildError(f"this machine is {native}; the executables are built on amd64")

    say(f"asking the archive ({architecture})")
    archive = Archive(work, architecture)
    archive.refresh()
    sysroot = work / f"root-{architecture}"
    packages = unpack_once(archive, [*LINKED, *COPYRIGHTS], sysroot)[: len(LINKED)]
    interpreter = work / "interpreter"
    here = archive
    if architecture != native:
        here = Archive(work, native)
        here.refresh()
    own = unpack_once(here, INTERPRETER, interpreter)

    versions = {package.name: package.version for package in packages}
    python = versions["libpython3.11-dev"]
    if any(package.version != python for package in own):
        raise BuildError(f"libpython3.11-dev is {python} for {architecture}, not for {native}")
    if not versions["libc6-dev"].startswith("2.36-"):
        raise BuildError("launcher/start_x86_64.c was written for glibc 2.36: read it again")
    source, source_version = extension_source(archive, python, sysroot)
    index = work / "index"
    packaged = fetch_from_index(index)
    compiled = compile_to_c(ROOT / "src", work / "native", packaged["mypy"]["version"])
    facts = work / f"facts-{architecture}.json"
    facts.write_text(
        json.dumps(
            {
                "architecture": architecture,
                "triplet": TRIPLETS[architecture],
                "sysroot": str(sysroot),
                "interpreter": str(interpreter / "usr/bin/python3.11"),
                "packages": [package._asdict() for package in packages],
                "source": str(source),
                "source_version": source_version,
                "extensions": EXTENSIONS,
                "index": str(index),
                "packaged": packaged,
                "native": compiled._asdict(),
            },
            indent=2,
        )
    )
    return facts


def unpack_once(archive: Archive, names: list[str], root: Path) -> list[Package]:
    """Unpack packages unless exactly these versions are there from the last build."""
    stamp = root.with_name(f"{root.name}.json")
    wanted = [archive.version(name) for name in names]
    if stamp.is_file():
        packages = [Package(**each) for each in json.loads(stamp.read_text())]
        if [each.name for each in packages] == names and wanted == [
            each.version for each in packages
        ]:
            return packages
    stamp.unlink(missing_ok=True)
    packages = archive.unpack(names, root)
    stamp.write_text(json.dumps([package._asdict() for package in packages]))
    return packages


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"launcher: {line}", file=sys.stderr)


def main() -> None:
    """Parse the arguments and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=sorted(TRIPLETS), default="amd64")
    parser.add_argument("--output", type=Path, help="default: dist/mycelium-cni-linux-ARCH")
    arguments = parser.parse_args()
    output = arguments.output or ROOT / f"dist/mycelium-cni-linux-{arguments.arch}"
    try:
        facts = fetch(arguments.arch)
    except BuildError as error:
        sys.exit(f"launcher: error: {error}")
    interpreter = json.loads(facts.read_text())["interpreter"]
    script = ROOT / "launcher/assemble.py"
    # -S, -s, -E: nothing of this machine's own Python may get in. Without the columns of each
    # instruction, which a traceback would underline, bytecode takes a quarter less room.
    options = ["-SsE", "-X", "no_debug_ranges"]
    argv = [interpreter, *options, str(script), str(facts), str(output.resolve())]
    os.execv(interpreter, argv)  # noqa: S606 - no shell is needed


if __name__ == "__main__":
    main()
