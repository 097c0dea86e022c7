# SPDX-License-Identifier: Apache-2.0
"""The command line as completions for shells and as a manual page, from argparse's parsers."""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mycelium_cni.cni.errors import __version__
from mycelium_ctl import parsers
from mycelium_ctl.node import schema
from mycelium_ctl.parsers import PROGRAM

FILES: Final = ("FILE", "DIR", "FILE.svg")  # metavars of values that are paths


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or, without flags, an argument."""

    flags: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    value: str  # what the value is called; "" if there is none


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or an action of one: `config check` has two words."""

    words: tuple[str, ...]
    help: str
    options: tuple[Option, ...]


def tree() -> Iterator[Command]:
    """All commands, each followed by its actions."""
    for name, (_, summary) in parsers.COMMANDS.items():
        yield from _commands((name,), summary, parsers.load(name)[1])


def _commands(
    words: tuple[str, ...], summary: str, parser: argparse.ArgumentParser
) -> Iterator[Command]:
    options = [
        _option(parser, action)
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction) and action.help != argparse.SUPPRESS
    ]
    yield Command(words, summary, tuple(options))
    for name, below, inner in parsers.actions(parser):
        yield from _commands((*words, name), below, inner)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    choices = tuple(map(str, action.choices or ()))
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    value = "" if action.nargs == 0 else metavar or action.dest.upper()
    return Option(tuple(action.option_strings), text, choices, value)


# Completions


def bash() -> str:
    """Completions for bash: words of the command, values of an option, else files."""
    found = list(tree())
    lines = [
        "_mycelium_cni() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words= word",
        "    local command=${COMP_WORDS[1]}",
        '    for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do',
        '        case "$command $word" in',
    ]
    for each in found:
        if len(each.words) > 1:
            lines.append(f'            "{" ".join(each.words)}") command+=" $word" ;;')
    lines += ["        esac", "    done", '    case "$command $prev" in']
    for each in found:
        for option in each.options:
            for flag in option.flags if option.value else ():
                words = " ".join(option.choices) if option.choices else ""
                then = f'words="{words}"' if words else "return"
                lines.append(f'        "{" ".join(each.words)} {flag}") {then} ;;')
    lines += [
        "        *)",
        f'            if ((COMP_CWORD == 1)); then words="{" ".join(parsers.COMMANDS)} --help"; fi',
        '            case "$command" in',
        f'                help) words="{" ".join(parsers.COMMANDS)}" ;;',
    ]
    for each in found:
        actions = [one.words[-1] for one in found if one.words[:-1] == each.words]
        flags = [flag for option in each.options for flag in option.flags or option.choices]
        words = " ".join([*actions, *flags])
        lines.append(f'                "{" ".join(each.words)}") words="{words}" ;;')
    lines += [
        "            esac ;;",
        "    esac",
        '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")',
        "}",
        f"complete -o default -F _mycelium_cni {PROGRAM}",
    ]
    return "\n".join(lines) + "\n"


def zsh() -> str:
    """Completions for zsh."""
    found = list(tree())
    lines = [f"#compdef {PROGRAM}", "_mycelium-cni() {", *_zsh_level((), found), "}"]
    return "\n".join([*lines, '_mycelium-cni "$@"', ""])


def _zsh_level(above: tuple[str, ...], found: list[Command]) -> Iterator[str]:
    """What follows `above`: the words below it, and then what belongs to each."""
    indent = "    " * (len(above) * 2 + 1)
    below = [each for each in found if each.words[:-1] == above]
    names = " ".join(_quoted(f"{each.words[-1]}:{each.help}") for each in below)
    yield f"{indent}local -a words_{len(above)}=({names})"
    yield f"{indent}if (( CURRENT == 2 )); then _describe command words_{len(above)}; return; fi"
    yield f"{indent}shift words; (( CURRENT-- ))"
    yield f"{indent}case $words[1] in"
    if not above:
        yield f"{indent}    help) _describe command words_0 ;;"
    for each in below:
        yield f"{indent}    {each.words[-1]})"
        if any(one.words[:-1] == each.words for one in found):
            yield from _zsh_level(each.words, found)
        else:
            specs = " ".join(_quoted(spec) for option in each.options for spec in _specs(option))
            yield f"{indent}        _arguments -s {specs}"
        yield f"{indent}        ;;"
    yield f"{indent}esac"


def _specs(option: Option) -> Iterator[str]:
    """As zshcompsys(1) describes them, section _arguments."""
    value = re.sub(r"[:\\]", "", option.value)
    does = f"({' '.join(option.choices)})" if option.choices else ""
    does = does or ("_files" if option.value in FILES else " ")
    if not option.flags:
        yield f"*:{value}:{'_files' if option.value in FILES else does}"
    for flag in option.flags:
        text = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
        yield f"{flag}[{text}]" + (f":{value}:{does}" if option.value else "")


def fish() -> str:
    """Completions for fish."""
    found = list(tree())
    lines = [f"complete -c {PROGRAM} -f"]
    for each in found:
        *above, name = each.words
        actions = [one.words[-1] for one in found if one.words[:-1] == each.words]
        seen = [f"__fish_seen_subcommand_from {word}" for word in above]
        siblings = " ".join(one.words[-1] for one in found if one.words[:-1] == tuple(above))
        seen.append(f"not __fish_seen_subcommand_from {siblings}")
        when = _quoted("; and ".join(seen))
        lines.append(f"complete -c {PROGRAM} -n {when} -a {name} -d {_quoted(each.help)}")
        when = _quoted("; and ".join(f"__fish_seen_subcommand_from {word}" for word in each.words))
        for option in () if actions else each.options:
            words = [f"complete -c {PROGRAM} -n {when} -d {_quoted(option.help)}"]
            words += [
                f"-{'l' if f.startswith('--') else 's'} {f.lstrip('-')}" for f in option.flags
            ]
            if option.choices:
                words.append(f"-x -a {_quoted(' '.join(option.choices))}")
            elif option.value in FILES:
                words.append("-r -F" if option.flags else "-F")
            elif option.value and option.flags:
                words.append("-x")
            lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """In single quotes, for all three shells."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS: Final = {"bash": bash, "zsh": zsh, "fish": fish}


# The manual

_MANUAL: Final = """\
.TH MYCELIUM-CNI 8 "" "mycelium-cni {version}" "System administration"
.SH NAME
mycelium-cni \\- CNI plugin and operator's tool for the Mycelium overlay network
.SH SYNOPSIS
.B mycelium-cni
.I COMMAND
.RI [ ARGUMENT " ...]"
.SH DESCRIPTION
With CNI_COMMAND set, as container runtimes set it, it is the plugin, and attaches pods to the
overlay. Otherwise it is the operator's tool.
.SH COMMANDS
{commands}
.SH CONFIGURATION
The keys of the plugin's entry in a network configuration. Every key but
.B type
is optional.
{keys}
.SH FILES
.TP
.I /opt/cni/bin/mycelium-cni
the executable
.TP
.I /etc/cni/net.d/10-mycelium.conflist
the network configuration;
.I /usr/share/doc/mycelium-cni/examples
has one to start from
.SH EXIT STATUS
0 if all is well, 1 if it is not, 2 if the command line is wrong.
"""


def manual() -> str:
    """The manual page mycelium-cni(8)."""
    sections = []
    for name in parsers.COMMANDS:
        for words, text in parsers.texts(name, 78).items():
            sections.append(f".SS {words}\n.nf\n{_roff(text)}.fi")
    keys = []
    for key, meaning in schema.MEANINGS.items():
        default = schema.default(key)
        shown = f" (default {json.dumps(default)})" if default is not None else ""
        keys.append(f".TP\n.B {key}\n{_roff(meaning.replace('`', '') + shown)}")
    return _MANUAL.format(version=__version__, commands="\n".join(sections), keys="\n".join(keys))


def _roff(text: str) -> str:
    text = text.replace("…", "...").replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return re.sub(r"(?m)^\.", r"\\&.", text)


# Where they belong


class Installed(NamedTuple):
    """A file for a shell or for man, which a package and `install` put in different places. All
    paths are below the root."""

    reader: str  # the program that reads it is on this node if this folder is
    packaged: str
    local: str
    make: Callable[[], str]

    @property
    def octets(self) -> bytes:
        made = self.make().encode()
        return gzip.compress(made, mtime=0) if self.packaged.endswith(".gz") else made


INSTALLED: Final = (
    Installed(
        "usr/share/bash-completion",
        "usr/share/bash-completion/completions/mycelium-cni",
        "usr/local/share/bash-completion/completions/mycelium-cni",
        bash,
    ),
    Installed(
        "usr/share/zsh",
        "usr/share/zsh/vendor-completions/_mycelium-cni",
        "usr/local/share/zsh/site-functions/_mycelium-cni",
        zsh,
    ),
    Installed(
        "usr/share/fish",
        "usr/share/fish/vendor_completions.d/mycelium-cni.fish",
        "etc/fish/completions/mycelium-cni.fish",  # fish does not look below usr/local by itself
        fish,
    ),
    Installed(
        "usr/share/man",
        "usr/share/man/man8/mycelium-cni.8.gz",
        "usr/local/share/man/man8/mycelium-cni.8.gz",
        manual,
    ),
)
