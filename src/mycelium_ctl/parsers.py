# SPDX-License-Identifier: Apache-2.0
"""The commands, and the parser of each one's command line.

A command is a module with `configure(parser)`, which adds its arguments, and `run(arguments)`,
which does the work and returns the exit code. Its docstring is the text of `--help`, down to the
example at its end.
"""

from __future__ import annotations

import argparse
import importlib
import os
import textwrap
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

PROGRAM: Final = "mycelium-cni"

# name: module, one line of help
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "setup": ("mycelium_ctl.commands.setup", "prepare this node for pods; safe to run again"),
    "status": (
        "mycelium_ctl.commands.status",
        "would a pod get its address now? if not, what to do",
    ),
    "list": (
        "mycelium_ctl.commands.list",
        "the pods on Mycelium, with addresses, links and traffic",
    ),
    "doctor": (
        "mycelium_ctl.commands.doctor",
        "check this node: what is wrong, why it matters, what to run",
    ),
    "sysdump": (
        "mycelium_ctl.commands.sysdump",
        "what a bug report needs, in one file without secrets",
    ),
    "test": (
        "mycelium_ctl.commands.test",
        "do pods of this node reach each other and the overlay?",
    ),
    "install": ("mycelium_ctl.commands.install", "put the plugin on this node, or upgrade it"),
    "uninstall": ("mycelium_ctl.commands.uninstall", "remove what install made"),
    "completion": (
        "mycelium_ctl.commands.completion",
        "completions for bash, zsh and fish, and the manual page",
    ),
    "inspect": ("mycelium_ctl.commands.inspect", "a key's, or this node's, address and subnet"),
    "config": ("mycelium_ctl.commands.config", "check a network configuration, or write one"),
    "agent": ("mycelium_agent.command", "watch node and pods, and repair them, until stopped"),
    "gc": ("mycelium_ctl.commands.gc", "remove attachments whose pod is gone"),
    "teardown": ("mycelium_ctl.commands.teardown", "remove what setup made, and nothing else"),
    "demo": (
        "mycelium_ctl.commands.demo",
        "two nodes, an overlay and pods that talk, on this machine",
    ),
    "version": (
        "mycelium_ctl.commands.version",
        "which mycelium-cni this is, and what it is made of",
    ),
    "overlay": ("mycelium_lab.overlay", "a stand-in for the Mycelium daemon, for labs only"),
}


class Parser(argparse.ArgumentParser):
    """argparse, but help that cannot be written is an error: argparse itself says nothing."""

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        print(self.format_help(), end="", file=file)


class Help(argparse.HelpFormatter):
    """Help whose paragraphs are wrapped; indented ones, such as examples, stay as they are."""

    def __init__(self, prog: str, width: int = 0) -> None:
        super().__init__(prog, width=width or _columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part
            if part.startswith(" ")
            else textwrap.fill(part, width, initial_indent=indent, subsequent_indent=indent)
            for part in text.strip("\n").split("\n\n")
        )


def _columns() -> int:
    """Of the terminal, as shutil.get_terminal_size has it. argparse would import shutil, and with
    it all decompressors, to check each argument that is added."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class Command(Protocol):
    """What a command's module offers."""

    __doc__: str | None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work; the exit code. Raises ToolError with a line for the user."""


def load(name: str) -> tuple[Command, Parser]:
    """A command's module, and the parser of its command line."""
    command: Command = importlib.import_module(COMMANDS[name][0])
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        description=command.__doc__,
        formatter_class=Help,
    )
    command.configure(parser)
    return command, parser


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """The actions of a command, such as `check` of `config`: name, one line of help, parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for shown, inner in zip(action._choices_actions, action.choices.values(), strict=True):
                yield shown.dest, shown.help or "", inner


def texts(name: str, width: int) -> dict[str, str]:
    """The help of a command and of its actions, wrapped at a width in columns; the key is what is
    typed, such as `config check`."""
    _, parser = load(name)
    found = {}
    for words, each in ((name, parser), *((f"{name} {act}", p) for act, _, p in actions(parser))):
        each.formatter_class = partial(Help, width=width)
        found[words] = each.format_help()
    return found
