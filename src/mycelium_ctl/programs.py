# SPDX-License-Identifier: Apache-2.0
"""Which programs this one may start: those that nobody but root, or its own user, could replace.

The tool runs as root, and looks at places where others write: /proc, directories of PATH, what a
unit names. What it finds there is started only if `doubt` returns "".
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mycelium_ctl.errors import ToolError

if TYPE_CHECKING:
    import subprocess

WITHIN_S: Final = 2.0  # for a program that only prints something
CHANGE_S: Final = 60.0
MAX_SYMLINKS: Final = 40  # as the kernel's own limit (linux/namei.h, MAXSYMLINKS)
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def doubt(path: Path) -> str:
    """Who else could replace this file or write to it, in words; "" for nobody. Every directory and
    symbolic link on the way is checked. Raises OSError.
    """
    steps = list(path.absolute().parts)
    at, links = Path("/"), 0
    while steps:
        there = at / steps.pop(0)
        status = there.lstat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{there} belongs to user {status.st_uid}"
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_SYMLINKS:
                return f"{path} is a loop of symbolic links"
            steps = [*there.readlink().parts, *steps]
            continue
        writers = status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0))
        # In a sticky directory, such as /tmp, nobody replaces what belongs to root.
        if writers and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            return f"others may write {there} (mode {stat.S_IMODE(status.st_mode):04o})"
        at = there
    return ""


def trusted_path(path: str) -> str:
    """PATH without directories that are relative, missing or writable by others; SYSTEM_PATH if
    none is left, because an empty PATH means the working directory."""

    def good(directory: str) -> bool:
        try:
            return directory.startswith("/") and not doubt(Path(directory))
        except OSError:
            return False

    return ":".join(filter(good, path.split(":"))) or SYSTEM_PATH


def run(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    sent: str = "",
    *,
    within_s: float = WITHIN_S,
) -> subprocess.CompletedProcess[str]:
    """Run a program that only prints something, with no environment but PATH and `env`.

    Raises OSError, and subprocess.TimeoutExpired after `within_s`.
    """
    import subprocess

    return subprocess.run(
        argv,
        env={"PATH": os.environ.get("PATH", SYSTEM_PATH), **(env or {})},
        input=sent,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=within_s,
        check=False,
    )


def change(argv: Sequence[str]) -> None:
    """Run a program that changes something, such as systemctl. Raises ToolError with what it said
    if it fails."""
    import subprocess

    try:
        done = run(argv, within_s=CHANGE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{shlex.join(argv)}: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ToolError(f"{shlex.join(argv)}: {said}")
