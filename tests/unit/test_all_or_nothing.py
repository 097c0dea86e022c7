# SPDX-License-Identifier: Apache-2.0
"""Undo: the steps of a failed call are taken back, all of them, newest first."""

from __future__ import annotations

import errno

import pytest

from mycelium_cni.cni.errors import CniError
from mycelium_cni.undo import Undo


def test_a_success_undoes_nothing() -> None:
    calls: list[str] = []
    with Undo() as undo:
        undo.push(calls.append, "made")
    assert calls == []


@pytest.mark.parametrize("failure", [OSError(1, "refused"), CniError(101, "taken"), KeyError("x")])
def test_any_exception_undoes_the_steps_newest_first(failure: Exception) -> None:
    calls: list[str] = []
    with pytest.raises(type(failure)) as raised, Undo() as undo:
        for step in ("first", "second", "third"):
            undo.push(calls.append, step)
        raise failure
    assert calls == ["third", "second", "first"]
    assert raised.value is failure


def test_an_interrupted_call_is_undone_too() -> None:
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt), Undo() as undo:
        undo.push(calls.append, "made")
        raise KeyboardInterrupt
    assert calls == ["made"]


def refuse(what: str) -> None:
    raise OSError(16, f"{what} is busy")


def test_an_undo_that_fails_is_noted_and_does_not_stop_the_older_ones() -> None:
    calls: list[str] = []
    with pytest.raises(CniError) as raised, Undo() as undo:
        undo.push(calls.append, "first")
        undo.push(refuse, "the bridge")
        undo.push(calls.append, "third")
        raise CniError(101, "address taken")
    assert calls == ["third", "first"]
    (note,) = raised.value.__notes__
    assert "the bridge is busy" in note
    explained = CniError(104, "cannot attach").with_notes_of(raised.value)
    assert explained.__notes__ == [note]


def test_what_went_with_something_else_is_not_called_not_undone() -> None:
    def drop() -> None:
        raise OSError(errno.EADDRNOTAVAIL, "address not found")

    with pytest.raises(CniError) as raised, Undo() as undo:
        undo.push(drop)
        raise CniError(101, "address taken")
    assert not hasattr(raised.value, "__notes__")


def test_steps_taken_before_the_failing_one_are_all_that_is_undone() -> None:
    calls: list[str] = []

    def fail() -> None:
        raise OSError(1, "refused")

    with pytest.raises(OSError, match="refused"), Undo() as undo:
        undo.push(calls.append, "made")
        fail()
        undo.push(calls.append, "never made")
    assert calls == ["made"]
