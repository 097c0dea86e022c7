# SPDX-License-Identifier: Apache-2.0
"""Files of directories that others write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mycelium_ctl import files


def test_no_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a regular one: /proc/kmsg is, and a link may lead there. Reading that one would
    take lines from the machine's log, so the test looks how a file is opened."""
    opened = []

    def spy(path: str | Path, flags: int) -> int:
        opened.append(flags)
        return real(path, flags)

    real = os.open
    (tmp_path / "05-first.conflist").write_text("{}")
    monkeypatch.setattr(os, "open", spy)
    assert files.read(tmp_path / "05-first.conflist") == b"{}"
    assert opened
    assert all(flags & (os.O_NONBLOCK | os.O_PATH) for flags in opened)
