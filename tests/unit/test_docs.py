# SPDX-License-Identifier: Apache-2.0
"""The documentation: its JSON is JSON, its commands exist, its links lead somewhere."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from mycelium_cni.cni.config import KEYS
from mycelium_ctl import checks, parsers
from mycelium_ctl.node import conflist

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNIT = re.compile(r"^ *```ini\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def read_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name)


@every_page
def test_json_blocks_are_json_and_configurations_are_good(page: Path) -> None:
    for language, block in BLOCK.findall(page.read_text()):
        if language == "json":
            document = json.loads(block)
            if "plugins" in document:
                checked = conflist.check(block.encode(), Path("docs.conflist"))
                assert checked.faults == []


def test_units_are_what_systemd_takes(tmp_path: Path) -> None:
    found = [text for page in PAGES for text in UNIT.findall(page.read_text())]
    found += [path.read_text() for path in (ROOT / "src/mycelium_ctl/share").glob("*.service")]
    assert len(found) == 3
    for number, text in enumerate(found):
        unit = tmp_path / f"{number}.service"
        # The programs need not be here.
        unit.write_text(
            re.sub(r"(?<=^ExecStart=)\S+", "/bin/true", textwrap.dedent(text), flags=re.M)
        )
        argv = ["systemd-analyze", "verify", "--man=no", str(unit)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def commands(text: str) -> list[list[str]]:
    """The calls of this program in a page's blocks and in its `code`, as words."""
    lines: list[str] = []
    for language, block in BLOCK.findall(text):
        if language in ("sh", "console", "bash"):
            lines += block.replace("\\\n", " ").splitlines()
    # Without blocks; a line break inside a sentence may fall into code.
    prose = re.sub(r"(?<=\S)\n(?=\S)", " ", BLOCK.sub("", text))
    lines += [code for code in CODE.findall(prose) if code.startswith("mycelium-cni ")]
    found = []
    for line in lines:
        for call in re.split(r"\||&&|;|\$\(", line):
            words = re.sub(r"^\s*[#$]\s+|\s+#\s.*$|[<>].*$", "", call.strip()).split(" ", 1)
            if Path(words[0]).name.startswith("mycelium-cni") and len(words) == 2:
                whole = words[1].replace("--for …", "--for nomad").replace("…", "x")
                found.append(shlex.split(whole))
    return [words for words in found if words]


@every_page
def test_every_command_exists_with_its_options(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in commands(page.read_text()):
        words = said[2:] if said[0] == "--host-root" else said
        if words[0] in ("--help", "--version", "help", "COMMAND"):
            continue
        assert words[0] in parsers.COMMANDS, words
        _, parser = parsers.load(words[0])
        try:
            parser.parse_args(words[1:])
        except SystemExit as end:
            needs_more = "the following arguments are required" in capsys.readouterr().err
            assert end.code == 0 or (needs_more and len(words) < 3), words


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings]
            assert anchor in slugs, target


def test_pages_of_the_site_do_not_point_outside_it() -> None:
    """MkDocs would not find them."""
    for page in (ROOT / "docs").rglob("*.md"):
        for target in LINK.findall(page.read_text()):
            if not re.match(r"\w+:|#", target):
                assert (
                    (page.parent / target.partition("#")[0]).resolve().is_relative_to(ROOT / "docs")
                )


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)) == pages


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="its argparse prints options otherwise")
@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=name)
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text()
    assert text == read_generator().filled(text), "`make generate` writes them anew"


def test_the_references_name_everything() -> None:
    def named(page: str, pattern: str) -> set[str]:
        return set(re.findall(pattern, (ROOT / "docs" / page).read_text(), re.MULTILINE))

    assert named("configuration.md", r"^\| `(\w+)` ") == set(KEYS)
    assert named("troubleshooting.md", r"^### ([\w-]+)$") == set(checks.NAMES)
    assert named("commands.md", r"^## (\w+)$") == set(parsers.COMMANDS)
    messages = (ROOT / "docs/errors.md").read_text()
    for said in (
        "| 11 | failed to find interface … | start the Mycelium daemon",
        "| 102 | the pod",
        "| 104 | …: Operation not permitted | ",
    ):
        assert said in messages


def test_every_promise_of_security_names_what_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is a test that exists, or a pattern of attacks that exist."""
    monkeypatch.syspath_prepend(ROOT / "tests/netns")
    attacks = importlib.import_module("test_attacks").ATTACKS
    tests = {
        found
        for path in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"(?m)^def (test_\w+)", path.read_text())
    }
    model = (ROOT / "docs/security.md").read_text().partition("## Threat model\n")[2]
    rows = re.findall(r"(?m)^\| (.+) \| (.+) \|$", model.partition("\n## ")[0])
    promises = [(said, CODE.findall(held)) for said, held in rows if said not in ("promise", "---")]
    assert len(promises) > 30
    for said, names in promises:
        assert names, f"nothing holds: {said}"
        for each in names:
            known = each in tests or fnmatch.filter(attacks, each)
            assert known, f"{said}: there is no {each}"


def problems(path: Path) -> list[str]:
    """The fixed parts of what the errors, findings and faults that a module makes say is wrong."""
    places = {"CniError": 1, "ToolError": 0, "LabError": 0, "Finding": 1, "_fault": 0, "_broken": 0}
    parts = []
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        place = places.get(getattr(call.func, "id", ""), len(call.args))
        for text in call.args[place : place + 1]:
            pieces = text.values if isinstance(text, ast.JoinedStr) else [text]
            strings = [each.value for each in pieces if isinstance(each, ast.Constant)]
            parts += [each.strip() for each in strings if isinstance(each, str) and len(each) > 15]
    return parts


def test_each_message_is_found_by_a_search_of_the_pages() -> None:
    pages = "".join((ROOT / f"docs/{n}.md").read_text() for n in ("errors", "troubleshooting"))
    pages = (
        pages.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").replace("\\|", "|")
    )
    modules = [path for path in (ROOT / "src").rglob("*.py") if path.parent.name != "mycelium_lab"]
    texts = {part: path for path in modules for part in problems(path)}
    assert len(texts) > 100
    assert [(part, path.name) for part, path in texts.items() if part not in pages] == []
