# SPDX-License-Identifier: Apache-2.0
"""Damaged input of every kind is refused with a message, within a second of CPU time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
# Where, how many bytes go, and what comes instead.
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 12), st.integers(0, 8), st.binary(max_size=8)), max_size=6
)


def test_every_target_has_a_corpus() -> None:
    assert sorted(TARGETS) == sorted(path.name for path in CORPUS.iterdir())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=1000)
@given(data=st.data())
def test_damaged_input_is_read_to_its_end(name: str, data: st.DataObject) -> None:
    samples = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    octets = data.draw(st.sampled_from(samples))
    for place, gone, new in data.draw(EDITS):
        at = place % (len(octets) + 1)
        octets = octets[:at] + new + octets[at + gone :]
    TARGETS[name](octets)
