# SPDX-License-Identifier: Apache-2.0
"""The command line of the soak: how many attachments, and the outcome."""

from __future__ import annotations

import argparse
import math
import os
import secrets
import shlex
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import releases
from mycelium_lab.errors import LabError
from mycelium_lab.lab import Lab
from mycelium_lab.own import own_executable
from soak.churn import MODES, Churn
from soak.runtime import Runtime


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make soak ARGS=…",
        description="Attach pods by the thousand while every fifth call is killed, and see what is"
        " left. MYCELIUM_CNI_COMMAND names another executable than the one in .venv.",
        epilog="example: make soak ARGS='--count 10000 --mode bridge'",
    )
    parser.add_argument("--count", type=int, default=1000, help="attachments (1000)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin none after that")
    parser.add_argument("--mode", choices=MODES, default="mixed", help="of the networks (mixed)")
    parser.add_argument("--seed", type=int, help="what chance begins with, as an earlier run said")
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed

    print(f"seed {seed}", flush=True)
    command = shlex.split(os.environ.get("MYCELIUM_CNI_COMMAND", "")) or [own_executable()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    start = time.monotonic()
    stopped = threading.Event()
    try:
        with tempfile.TemporaryDirectory() as folder, Lab(command, overlay="stand-in") as lab:
            churn = Churn(
                lab,
                command,
                releases.previous(Path(folder)),
                lambda fault: print(f"FAULT {fault}", flush=True),
                mode=options.mode,
                seed=seed,
                total=options.count,
            )
            # Ctrl-C ends it early, with the look at what is left.
            signal.signal(signal.SIGINT, lambda *_: stopped.set())
            with progress:
                bar = progress.add_task("attachments", total=options.count)
                tried = churn.run(
                    lambda done: progress.update(bar, completed=done),
                    lambda: not stopped.is_set() and time.monotonic() < start + options.seconds,
                )
    except (LabError, RuntimeError) as error:  # the second: no previous release in this clone
        print(f"soak: {error}", file=sys.stderr)
        return 2
    print(f"{tried} attachments in {time.monotonic() - start:.0f} s, {options.mode}, seed {seed}")
    print(_calls(churn.runtime))
    print(f"{churn.faults} faults")
    return 1 if churn.faults else 0


def _calls(runtime: Runtime) -> str:
    lines = []
    for verb in ("ADD", "CHECK", "DEL", "GC"):
        times = sorted(runtime.took[verb])
        middle, longest = (times[len(times) // 2], times[-1]) if times else (0, 0)
        lines.append(
            f"{verb:6} {runtime.calls[verb]:6} calls, {runtime.killed[verb]:5} killed;"
            f" median {middle * 1000:.0f} ms, longest {longest * 1000:.0f} ms"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
