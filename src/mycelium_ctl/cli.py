# SPDX-License-Identifier: Apache-2.0
"""The operator's tool: one table of commands, one place that prints errors and picks exit codes.

A command is a module with `configure(parser)`, which adds its arguments, and `run(arguments)`,
which does the work and returns the exit code. Its docstring is the text of `--help`, down to the
example at its end. Only the module of the chosen command is imported.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from errno import EBADF, EIO, ENOSPC, EPIPE
from typing import TYPE_CHECKING, Final, Protocol

from mycelium_cni.cni.errors import __version__
from mycelium_ctl import programs
from mycelium_ctl.errors import ToolError
from mycelium_lab.errors import LabError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

PROGRAM: Final = "mycelium-cni"
_OUTPUT_ENDS: Final = (EPIPE, ENOSPC, EIO, EBADF)

# name: module, one line of help
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "setup": ("mycelium_ctl.commands.setup", "prepare this node for pods; again at any time"),
    "status": (
        "mycelium_ctl.commands.status",
        "would a pod get its address now? if not, what to do",
    ),
    "list": (
        "mycelium_ctl.commands.list",
        "the pods on Mycelium, with addresses, links and traffic",
    ),
    "doctor": ("mycelium_ctl.commands.doctor", "every known trap, checked, explained and mended"),
    "sysdump": (
        "mycelium_ctl.commands.sysdump",
        "what a bug report needs, in one file without secrets",
    ),
    "test": (
        "mycelium_ctl.commands.test",
        "do pods of this node reach each other and the overlay?",
    ),
    "install": ("mycelium_ctl.commands.install", "put the plugin on this node, or upgrade it"),
    "uninstall": ("mycelium_ctl.commands.uninstall", "take back what install made"),
    "inspect": ("mycelium_ctl.commands.inspect", "a key's, or this node's, address and subnet"),
    "config": ("mycelium_ctl.commands.config", "check a network configuration, or write one"),
    "agent": ("mycelium_agent.command", "keep node and pods as they were made, until stopped"),
    "gc": ("mycelium_ctl.commands.gc", "remove attachments whose pod is gone"),
    "teardown": ("mycelium_ctl.commands.teardown", "take back what setup made, and nothing else"),
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


class Command(Protocol):
    """What a command's module offers."""

    __doc__: str | None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work; the exit code. Raises ToolError with a line for the user."""


def main(argv: list[str]) -> int:
    """Run the command that `argv` (without the program's name) asks for; the exit code.

    0: all is well. 1: it is not. 2: the command line is wrong. 130: stopped with Ctrl-C.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started us
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - until the end
    try:
        try:
            code = _main(argv)
        except SystemExit as done:  # argparse: --help, or a wrong command line
            code = int(done.code or 0)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _OUTPUT_ENDS or error.filename is not None:
            raise
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != EPIPE:  # then the reader has enough (`| head`)
            print(f"{PROGRAM}: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1
    return code


def _main(argv: list[str]) -> int:
    if argv[:1] == ["--host-root"] and len(argv) > 1:
        try:
            os.chroot(argv[1])
        except OSError as error:
            print(f"{PROGRAM}: cannot be in {argv[1]}: {error.strerror}", file=sys.stderr)
            return 1
        os.chdir("/")
        argv = argv[2:]
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [argv[1], "--help"]
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"`{PROGRAM} --help` lists the commands"
        print(f"{PROGRAM}: there is no command {name}; {hint}", file=sys.stderr)
        return 2

    if os.geteuid() == 0:  # what others could put there is not run as root
        os.environ["PATH"] = programs.trusted_path(os.environ.get("PATH", programs.SYSTEM_PATH))
    try:
        command, parser = load(name)
        return command.run(parser.parse_args(argv[1:]))
    except (ToolError, LabError) as error:
        from mycelium_ctl.view import readable

        print(f"{PROGRAM} {name}: {readable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the shell's next prompt starts on a line of its own
        return 130


def load(name: str) -> tuple[Command, Parser]:
    """A command's module, and the parser of its command line."""
    command: Command = importlib.import_module(COMMANDS[name][0])
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    return command, parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND [ARGUMENT ...]",
            "",
            "Pods on the Mycelium overlay: the operator's side of the CNI plugin.",
            "",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` explains a command, with an example.",
            f"`{PROGRAM} --host-root DIR COMMAND` works from a container on the node.",
            "A container runtime calls the same executable with CNI_COMMAND set: then it is",
            "the plugin, and arguments are ignored.",
        )
    )
