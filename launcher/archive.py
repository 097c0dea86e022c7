# SPDX-License-Identifier: Apache-2.0
"""The Debian archive: which versions it has, their files and sources, for either architecture.

apt is used with lists of its own, so nothing changes on the machine, and packages are unpacked into
a folder instead of installed: what goes into the executable is the newest the archive has, whatever
the machine has, and a foreign architecture is no special case.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class BuildError(Exception):
    """One line for the person who builds: what is wrong and what to do about it."""


def run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a program prints. Raises BuildError with what it printed when it fails."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=None if env is None else {**os.environ, **env},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise BuildError(f"{' '.join(map(str, argv))[:300]}\nfailed: {said[-3000:]}")
    return done.stdout


class Package(NamedTuple):
    """A binary package that was unpacked."""

    name: str
    version: str
    architecture: str
    sha256: str

    @property
    def folder(self) -> str:
        """Where its copyright and changelog are, below /usr/share/doc."""
        return self.name.partition(":")[0]


class Archive:
    """The archive of the Debian release this machine runs, as seen by one architecture."""

    def __init__(self, work: Path, architecture: str) -> None:
        self.architecture = architecture
        self._work = work
        self._packages = work / "packages"
        self._config = work / f"apt-{architecture}.conf"
        state = work / f"apt-{architecture}"
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        self._packages.mkdir(exist_ok=True)
        sources = state / "sources.list"
        sources.write_text(_sources())
        self._config.write_text(
            f'APT::Architecture "{architecture}";\n'
            f'APT::Architectures "{architecture}";\n'
            f'Acquire::Languages "none";\n'
            f'APT::Sandbox::User "root";\n'  # else apt complains that _apt cannot write here
            f'Dir::State::lists "{state / "lists"}";\n'
            f'Dir::Cache "{state / "cache"}";\n'
            f'Dir::Etc::sourcelist "{sources}";\n'
            f'Dir::Etc::sourceparts "-";\n'
        )

    def refresh(self) -> None:
        """Fetch the archive's package lists."""
        self._apt("apt-get", "update", "--error-on=any")

    def version(self, package: str) -> str:
        """The newest version of a binary package, security updates included."""
        for line in self._apt("apt-cache", "policy", package).splitlines():
            label, _, version = line.strip().partition(": ")
            if label == "Candidate" and version != "(none)":
                return version
        raise BuildError(
            f"the archive has no {package} for {self.architecture}: the static executable can be"
            " built on Debian 12 (bookworm), whose CPython 3.11 it embeds"
        )

    def unpack(self, names: list[str], root: Path) -> list[Package]:
        """The newest version of these packages, unpacked into an empty `root`."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        packages = []
        for name in names:
            version = self.version(name)
            deb = self._download(name, version)
            run("dpkg-deb", "-x", deb, root)
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            packages.append(Package(name, version, self.architecture, digest))
        return packages

    def source(self, package: str, version: str) -> tuple[Path, str]:
        """The patched source of `version`, and the version that it really has.

        A mirror may have the binaries of an update without its source. Then it is the newest
        earlier source of the same upstream version; the caller decides what of it can be used
        (`untouched_since`).
        """
        listed = [
            line.removeprefix("Version: ")
            for line in self._apt("apt-cache", "showsrc", package).splitlines()
            if line.startswith("Version: ")
        ]
        upstream = version.rpartition("-")[0]
        earlier = [each for each in listed if each.rpartition("-")[0] == upstream]
        earlier = [each for each in earlier if _compare(each, "le", version)]
        failure: BuildError | None = None
        for candidate in sorted(earlier, key=_SortKey, reverse=True):
            folder = self._work / f"{package}-{candidate}"
            if folder.is_dir():
                return folder, candidate
            try:
                self._apt("apt-get", "source", "--download-only", f"{package}={candidate}")
            except BuildError as error:
                failure = error
                continue
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            name = f"{package}_{candidate.partition(':')[2] or candidate}.dsc"
            run("dpkg-source", "--no-copy", "-x", name, part, cwd=self._work)
            part.rename(folder)
            return folder, candidate
        raise BuildError(f"the archive has no source of {package} {version}") from failure

    def _download(self, name: str, version: str) -> Path:
        """The package file; fetched once."""
        pattern = f"{name}_{version.replace(':', '%3a')}_*.deb"
        found = [
            path
            for path in self._packages.glob(pattern)
            if path.stem.endswith((f"_{self.architecture}", "_all"))
        ]
        if not found:
            self._apt("apt-get", "download", f"{name}={version}", cwd=self._packages)
            return self._download(name, version)
        return found[0]

    def _apt(self, *argv: str, cwd: Path | None = None) -> str:
        return run(*argv, cwd=cwd or self._work, env={"APT_CONFIG": str(self._config)})


def untouched_since(
    source: Path, version: str, changelog: str, path: str, reviewed: Collection[str] = ()
) -> bool:
    """Whether a file of a patched source can be taken for the same file of a later version.

    It can when no patch of the earlier version touches it and the changes made since, as the later
    version's changelog tells them, do not mention it. `reviewed`: the names of patches and changes
    that somebody has read, and that do not matter.
    """
    if not (source / path).is_file():
        return False
    for patch in (source / "debian/patches").iterdir():
        text = patch.read_text(encoding="utf-8", errors="replace")
        if patch.stem not in reviewed and f"/{path}" in text:
            return False
    since = re.split(r"\n\s*[-*] ", changelog.partition(f"({version})")[0])
    word = Path(path).stem.strip("_").removesuffix("module").lower()
    return not any(
        word in change.lower() for change in since if not any(name in change for name in reviewed)
    )


class _SortKey:
    """Debian's order of versions."""

    def __init__(self, version: str) -> None:
        self._version = version

    def __lt__(self, other: _SortKey) -> bool:
        return _compare(self._version, "lt", other._version)


def _compare(one: str, relation: str, other: str) -> bool:
    return (
        subprocess.run(["dpkg", "--compare-versions", one, relation, other], check=False).returncode
        == 0
    )


def _sources() -> str:
    """The machine's own sources of this Debian release, binary and source packages."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    codename = release.get("VERSION_CODENAME", "").strip('"')
    listing = run(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    )
    places = sorted(
        {
            line
            for line in listing.splitlines()
            if line.split()[1].partition("-")[0] == codename and line.split()[2] == "main"
        }
    )
    if release.get("ID") != "debian" or not places:
        raise BuildError("the static executable is built on Debian: its apt and archive are needed")
    return "".join(f"deb {place}\ndeb-src {place}\n" for place in places)
