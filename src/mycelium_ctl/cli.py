# SPDX-License-Identifier: Apache-2.0
"""The operator's tool: the one place that picks the command, prints errors and chooses exit codes.

Only the module of the chosen command is imported.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from errno import EBADF, EIO, ENOSPC, EPIPE
from typing import Final

from mycelium_cni.cni.errors import __version__
from mycelium_ctl import programs
from mycelium_ctl.errors import ToolError
from mycelium_ctl.parsers import COMMANDS, PROGRAM, load
from mycelium_lab.errors import LabError

_OUTPUT_ENDS: Final = (EPIPE, ENOSPC, EIO, EBADF)
# New objects before cycles among them are collected. Most commands end before, also with a thousand
# pods; CPython's default of 700 is reached many times by their imports alone.
_YOUNG: Final = 100_000


def main(argv: list[str]) -> int:
    """Run the command that `argv` (without the program's name) asks for; the exit code.

    0: all is well. 1: it is not. 2: the command line is wrong. 130: stopped with Ctrl-C.
    """
    gc.set_threshold(_YOUNG)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - until the end
    # Locales of other encodings lack the marks that some commands print.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _main(argv)
        except SystemExit as done:  # argparse: --help, or a wrong command line
            code = int(done.code or 0)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _OUTPUT_ENDS or error.filename is not None:
            raise
        if error.errno != EPIPE:  # the reader has enough (`| head`)
            print(f"{PROGRAM}: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1
    return code


def _main(argv: list[str]) -> int:
    if argv[:1] == ["--host-root"]:
        if len(argv) < 3:
            print(f"{PROGRAM}: --host-root takes a directory and a command", file=sys.stderr)
            return 2
        from mycelium_ctl import host

        try:
            host.enter(argv[1])
        except OSError as error:
            print(f"{PROGRAM}: cannot enter {argv[1]}: {error.strerror}", file=sys.stderr)
            return 1
        argv = argv[2:]
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [*argv[1:], "--help"]  # `help config check` too
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name.casefold(), COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"`{PROGRAM} --help` lists the commands"
        print(f"{PROGRAM}: there is no command {name!a}; {hint}", file=sys.stderr)
        return 2

    if os.geteuid() == 0:  # root runs nothing that others could put in PATH
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
