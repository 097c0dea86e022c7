# SPDX-License-Identifier: Apache-2.0
"""Only tests whose verdict depends on the clock get a second try, and not many of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# One that passes when it is run again, and one that fails because others run at the same time:
# alone, its worker has no number but 0.
SAMPLES = """
import os
from pathlib import Path
import pytest

def first_time(name):
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

@pytest.mark.parametrize("number", range({late}))
@pytest.mark.timing("a sample")
def test_late(number):
    assert not first_time(f"late{{number}}")

@pytest.mark.skipif({alone}, reason="not asked for")
@pytest.mark.parametrize("number", range(8))
def test_alone(number):
    assert os.environ.get("PYTEST_XDIST_WORKER_COUNT") is None
"""


def run(folder: Path, *, late: int, alone: bool = True) -> tuple[int, str]:
    """A run of the samples as the Makefile runs the tests; its exit code and what it printed."""
    (folder / "test_samples.py").write_text(SAMPLES.format(late=late, alone=alone))
    plugins = ["second_try", "no:cacheprovider", "no:hypothesispytest", "no:timeout"]
    options = [word for plugin in plugins for word in ("-p", plugin)]
    argv = [sys.executable, "-m", "pytest", "-n", "2", *options]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        argv,
        cwd=folder,
        env=environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_what_the_clock_decides_is_tried_again_and_counted(tmp_path: Path) -> None:
    code, said = run(tmp_path, late=3)
    assert code == 0, said
    assert "3 passed" in said
    assert "3 tried again (3 may be)" in said


def test_more_than_three_fail_the_run(tmp_path: Path) -> None:
    code, said = run(tmp_path, late=4)
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert "4 tried again (more than 3 fail the run)" in said


def test_what_fails_only_beside_others_has_failed(tmp_path: Path) -> None:
    code, said = run(tmp_path, late=0, alone=False)
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert "8 failed" in said
    assert "0 tried again" in said


def test_a_second_try_has_a_reason(tmp_path: Path) -> None:
    text = "import pytest\n@pytest.mark.timing\ndef test_x(): pass\n"
    (tmp_path / "test_bare.py").write_text(text)
    code, said = run(tmp_path, late=0)
    assert code != 0, said
