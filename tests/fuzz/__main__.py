# SPDX-License-Identifier: Apache-2.0
"""The command line of the fuzzer: atheris on each target in turn, guided by coverage."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
FAULTS = Path("build/fuzz")  # the input that shows a fault is kept there
FOR_EVER_S = 60  # by the clock; what merely takes long is measured by the target
NAMES = sorted(path.name for path in CORPUS.iterdir())
ONE = """
import sys, atheris
with atheris.instrument_imports(include=["mycelium_cni", "mycelium_ctl"]):
    from fuzz.targets import TARGETS
atheris.Setup(sys.argv[:1] + sys.argv[2:], TARGETS[sys.argv[1]])
atheris.Fuzz()
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=…", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"only these, of {', '.join(NAMES)}")
    parser.add_argument("--runs", type=int, default=150_000, help="of each target (150000)")
    options = parser.parse_args()
    FAULTS.mkdir(parents=True, exist_ok=True)
    for name in options.target or NAMES:
        print(f"{name}: {options.runs} runs", flush=True)
        with tempfile.TemporaryDirectory() as found:
            # What it finds goes to the first folder.
            limits = [f"-runs={options.runs}", f"-timeout={FOR_EVER_S}", "-max_len=4096"]
            limits += ["-verbosity=0", f"-artifact_prefix={FAULTS}/"]
            folders = [found, str(CORPUS / name)]
            argv = [sys.executable, "-c", ONE, name, *limits, *folders]
            if subprocess.run(argv, check=False).returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
