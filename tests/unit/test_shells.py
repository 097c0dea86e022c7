# SPDX-License-Identifier: Apache-2.0
"""Completions and the manual page, tested in the programs that read them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mycelium_ctl import shells
from mycelium_ctl.parsers import COMMANDS

CASES: list[tuple[str, set[str]]] = [  # what is typed, the last word begun; what is offered
    ("", {*COMMANDS, "--help"}),
    ("do", {"doctor"}),
    ("list --w", {"--watch"}),
    ("setup --mode ", {"auto", "routed", "bridge"}),
    ("doctor --fix --mode b", {"bridge"}),
    ("config ", {"check", "new", "schema"}),
    ("config new --ing", {"--ingress"}),
    ("config new --ingress c", {"cluster", "closed"}),
    ("completion ", {"bash", "zsh", "fish", "man"}),
    ("help unin", {"uninstall"}),
]


@pytest.fixture
def written(command: list[str], tmp_path: Path) -> dict[str, Path]:
    """What the command prints for each shell, in files."""
    found = {}
    for shell in shells.SHELLS:
        found[shell] = tmp_path / f"mycelium-cni.{shell}"
        argv = [*command, "completion", shell]
        found[shell].write_bytes(subprocess.run(argv, capture_output=True, check=True).stdout)
    return found


def said(argv: list[str]) -> list[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_bash_offers_what_fits(written: dict[str, Path], typed: str, offered: set[str]) -> None:
    script = (
        f'source {written["bash"]}; COMP_WORDS=(mycelium-cni "$@"); COMP_CWORD=$#; '
        '_mycelium_cni; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    found = set(said(["bash", "-c", script, "bash", *typed.split(" ")]))
    flags = {word for word in found if word.startswith("-")}
    assert (found if offered & flags else found - flags) == offered - ({"--help"} - flags)


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_fish_offers_what_fits(written: dict[str, Path], typed: str, offered: set[str]) -> None:
    script = f"source {written['fish']}; complete -C 'mycelium-cni {typed}'"
    found = {line.partition("\t")[0] for line in said(["fish", "--no-config", "-c", script])}
    assert offered - {"--help"} <= found
    assert not {word for word in found if not word.startswith("-")} - offered


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_zsh_is_told_what_fits(written: dict[str, Path], typed: str, offered: set[str]) -> None:
    """zsh completes in a terminal only: here two stubs print the arguments of its functions."""
    script = (
        'words=(mycelium-cni "$@"); CURRENT=$#words; '
        '_describe() { print -l -- "${(P@)2}" }; _arguments() { print -l -- "$@" }; '
        f"source {written['zsh']}"
    )
    told = said(["zsh", "-f", "-c", script, "zsh", *typed.split(" ")])
    for word in offered - {"--help"}:
        names = rf"(?:^|[( ]){re.escape(word)}(?:[\[:) ]|$)"
        assert any(re.search(names, line) for line in told), (word, told)


def test_the_manual_page_is_read_without_complaint_and_is_whole(
    command: list[str], tmp_path: Path
) -> None:
    argv = [*command, "completion", "man"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert f"\n.SS {name}\n" in text
    for line in text.splitlines():
        macro = line.split(" ")[0]
        assert not line.startswith("'")
        assert macro[:1] != "." or macro in (
            ".TH",
            ".SH",
            ".SS",
            ".B",
            ".I",
            ".RI",
            ".TP",
            ".nf",
            ".fi",
        )
    assert "\n.B serviceNetworks\n" in text


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        " ".join((*each.words, *option.flags))
        for each in shells.tree()
        for option in each.options
        if not option.help
    ]
    assert silent == []
