# SPDX-License-Identifier: Apache-2.0
"""The command line: build, measure, show, write, check."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from bench.candidates import ROOT, build
from bench.chart import draw
from bench.measure import FULL, QUICK, Bench
from bench.report import describe, imports_of_add
from bench.testbed import BenchError, Testbed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure mycelium-cni against the reference plugins, side by side.",
        epilog="example: make bench ARGS='--quick --json build/bench.json'",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument(
        "--write", action="store_true", help="write docs/performance.md and docs/performance.svg"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()

    # A pipe has no width of its own; the table needs this much.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    progress = Console(stderr=True, highlight=False)
    size = QUICK if options.quick else FULL
    try:
        programs = build()
        load = os.getloadavg()[0]
        imports = imports_of_add(programs)
        with Testbed(programs.spawner) as testbed:
            figures = Bench(testbed, programs, size, progress.print).all()
    except BenchError as error:
        progress.print(f"bench: {error}", style="bold red")
        return 1
    except KeyboardInterrupt:
        return 130
    report = describe(figures, size, programs, imports, load)
    report.show(console)
    if options.json is not None:
        options.json.write_text(report.json())
    if options.write:
        (ROOT / "docs/performance.svg").write_text(draw(report))
        (ROOT / "docs/performance.md").write_text(report.markdown("performance.svg"))
    return 1 if options.check and not report.reached else 0


if __name__ == "__main__":
    sys.exit(main())
