# SPDX-License-Identifier: Apache-2.0
"""scripts/step: what `make` prints while pip and apt run."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

STEP = str(Path(__file__).resolve().parents[2] / "scripts/step")


def test_in_a_pipe_it_says_what_it_does_and_how_long_it_took() -> None:
    argv = [STEP, "making tea", "sh", "-c", "echo noise; echo more >&2"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first == "making tea ..."
    assert last.startswith("making tea: ")


def test_a_failure_shows_everything_and_keeps_its_exit_code() -> None:
    argv = [STEP, "making tea", "sh", "-c", "echo no water; exit 7"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert "no water\nmaking tea: failed, exit code 7\n" in done.stderr


def test_on_a_terminal_the_last_line_is_shown_while_it_goes_on() -> None:
    ours, theirs = pty.openpty()
    goes_on, end = os.pipe()
    script = f"echo boiling; read -r _ </proc/self/fd/{goes_on}"  # until it has been seen
    argv = [STEP, "making tea", "sh", "-c", script]
    step = subprocess.Popen(argv, stderr=theirs, pass_fds=[goes_on])
    os.close(theirs)
    seen = b""
    while b"s: boiling" not in seen:
        seen += os.read(ours, 1000)
    os.write(end, b"\n")
    assert step.wait(10) == 0
    assert b"making tea" in seen
