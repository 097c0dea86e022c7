# SPDX-License-Identifier: Apache-2.0
"""A minute of the soak: whichever calls are killed, nothing is left and every pod answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.timeout(300)
def test_a_minute_of_killed_calls_leaves_nothing_and_every_pod_answers() -> None:
    argv = [sys.executable, "-m", "soak", "--count", "600", "--seconds", "60"]
    done = subprocess.run(
        ["nice", *argv],
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS / 'netns'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
