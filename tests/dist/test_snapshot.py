# SPDX-License-Identifier: Apache-2.0
"""The build refuses what cannot be in the snapshot; no pod has to find out."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import assemble


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("import posix; fd = posix.open('/', 0)", "mycelium_cni.extra: keeps a file open"),
        ("import _signal", "_signal: crashed: it needs more of an interpreter than there is"),
        ("import sys; sys.warnoptions", "mycelium_cni.extra: cannot be imported"),
    ],
    ids=["file", "signal-handlers", "warning-filters"],
)
def test_a_module_that_cannot_be_stored_is_not_built(
    checkout: Path, statement: str, says: str
) -> None:
    (checkout / "src/mycelium_cni/extra.py").write_text(f"{statement}\n")
    built = checkout / "mycelium-cni"
    done = assemble(checkout, built)
    assert done.returncode != 0
    assert f"launcher: {says}" in done.stderr
    assert not built.exists()
