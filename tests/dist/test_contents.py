# SPDX-License-Identifier: Apache-2.0
"""The executable lists what it is made of, and the check for updates uses that list."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT


def tool(executable: Path, *arguments: str) -> str:
    return subprocess.run(
        [executable, *arguments], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def sbom(executable: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tool(executable, "version", "--sbom"))
    return document


def test_the_list_of_parts_is_cyclonedx(sbom: dict[str, Any]) -> None:
    assert sbom["bomFormat"] == "CycloneDX"
    assert sbom["specVersion"] == "1.5"
    references = {sbom["metadata"]["component"]["bom-ref"]}
    for part in sbom["components"]:
        assert part["type"] == "library"
        assert part["version"]
        assert part["purl"].startswith(("pkg:deb/debian/", "pkg:pypi/"))
        assert len(part["hashes"][0]["content"]) == 64
        assert part["licenses"][0]["expression"]
        references.add(part["bom-ref"])
    assert len(references) == len(sbom["components"]) + 1
    assert {each for link in sbom["dependencies"] for each in link["dependsOn"]} < references


def test_the_list_beside_the_executable_is_the_one_inside(executable: Path) -> None:
    beside = executable.with_name(f"{executable.name}.cdx.json").read_text()
    assert beside == tool(executable, "version", "--sbom")


def test_what_is_linked_in_is_listed(sbom: dict[str, Any]) -> None:
    names = {part["name"] for part in sbom["components"]}
    assert names >= {"libc6-dev", "libgcc-12-dev", "libpython3.11-dev", "zlib1g-dev", "rich", "mypy"}


def test_version_names_the_embedded_python_with_debians_patch_level(executable: Path) -> None:
    facts = json.loads(tool(executable, "version", "--json"))
    assert facts["python"].startswith("3.11.2-")
    assert facts["python"] == facts["components"]["libpython3.11-dev"]
    assert facts["architecture"] == "amd64"


def test_every_part_has_its_licence_inside(executable: Path, sbom: dict[str, Any]) -> None:
    text = tool(executable, "version", "--licenses")
    for part in sbom["components"]:
        assert f"=== {part['name']} ===\n\n" in text
    for words in (
        "PYTHON SOFTWARE FOUNDATION LICENSE",
        "GNU Lesser General Public",
        "Jean-loup Gailly",
        "Apache License",
    ):
        assert words in text


# What is not in the executable: libraries with many past vulnerabilities, and what only tests need.
@pytest.mark.parametrize("module", ["_hashlib", "_bz2", "_lzma", "_sqlite3", "pyexpat"])
def test_it_is_free_of(symbols: str, module: str) -> None:
    assert f" PyInit_{module}\n" not in symbols
    assert " PyInit__json\n" in symbols


class Newer:
    """An archive that has had a security update of zlib."""

    def __init__(self, built: dict[str, str]) -> None:
        self._versions = {**built, "zlib1g-dev": "1:1.2.13.dfsg-1+deb12u1"}

    def version(self, package: str) -> str:
        return self._versions[package]


@pytest.mark.usefixtures("launcher_path")
def test_a_newer_package_in_the_archive_is_named(executable: Path) -> None:
    import drift
    import sbom as sboms

    document = tool(executable, "version", "--sbom")
    built = sboms.debian_versions(document)
    assert drift.stale(document, Newer(built)) == [
        f"zlib1g-dev {built['zlib1g-dev']}: the archive has 1:1.2.13.dfsg-1+deb12u1"
    ]


@pytest.mark.usefixtures("launcher_path")
@pytest.mark.parametrize(
    ("patched", "changelog", "usable"),
    [
        ("Modules/_ssl.c", "CVE-1: fix something in _ssl", True),
        ("Modules/_json.c", "CVE-1: fix something in _ssl", False),
        ("Modules/_ssl.c", "CVE-1: escape control characters in json strings", False),
    ],
)
def test_an_earlier_source_is_used_only_for_what_cannot_have_changed(
    tmp_path: Path, patched: str, changelog: str, usable: bool
) -> None:
    from archive import untouched_since

    (tmp_path / "Modules").mkdir()
    (tmp_path / "Modules/_json.c").touch()
    (tmp_path / "debian/patches").mkdir(parents=True)
    (tmp_path / "debian/patches/one.patch").write_text(f"--- a/{patched}\n+++ b/{patched}\n")
    log = (
        f"python3.11 (3.11.2-6+deb12u9)\n  * {changelog}\n\npython3.11 (3.11.2-6+deb12u8)\n  * x\n"
    )
    assert untouched_since(tmp_path, "3.11.2-6+deb12u8", log, "Modules/_json.c") is usable


@pytest.mark.usefixtures("launcher_path")
@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("from errno import ENOENT", False),
        ("import json", True),
        ("def late():\n    import subprocess", True),
        ("if TYPE_CHECKING:\n    from typing import Final", False),
        ("try:\n    import ctypes\nexcept ImportError:\n    pass", False),
    ],
)
def test_a_plugin_that_imports_what_is_not_in_c_is_not_built(
    tmp_path: Path, statement: str, refused: bool
) -> None:
    from archive import BuildError
    from bundle import follow_imports

    (tmp_path / "plugin.py").write_text(statement)
    c_modules = frozenset(["errno", "posix"])
    if refused:
        with pytest.raises(BuildError, match="plugin imports what is not embedded"):
            follow_imports([tmp_path], ["plugin"], frozenset(), c_modules)
    else:
        assert follow_imports([tmp_path], ["plugin"], frozenset(), c_modules).built_in <= c_modules


def test_the_executable_is_hardened_where_it_costs_nothing(executable: Path) -> None:
    listed = subprocess.check_output(["readelf", "-lW", executable], text=True)
    rows = [line.split() for line in listed.splitlines()]
    segments = [(row[0], " ".join(row[6:-1])) for row in rows if row and row[0].isupper()]
    flags = dict(segments)
    assert flags["GNU_STACK"] == "RW"
    assert flags["GNU_RELRO"] == "R"
    assert not [kind for kind, allowed in segments if "W" in allowed and "E" in allowed]


def test_nothing_of_openssl_runs_before_it_is_needed(executable: Path) -> None:
    """It would ask for the processor's features in every call of the plugin, at microseconds each
    under a hypervisor."""
    unstripped = ROOT / "build/launcher/objects-amd64/mycelium-cni"
    code = subprocess.check_output(["objdump", "-d", "-j", ".init", unstripped], text=True)
    assert "<_init>" in code
    assert "OPENSSL" not in code
    sections = subprocess.check_output(["readelf", "-SW", executable], text=True)
    assert re.search(r" \.init_array +INIT_ARRAY +\w+ \w+ 000008 ", sections)
