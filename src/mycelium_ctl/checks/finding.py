# SPDX-License-Identifier: Apache-2.0
"""What a check is, and what it finds: what is wrong, on which object, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel.shell import quoted
from mycelium_ctl.node.conflist import TYPE
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.view import Mark


class Finding(NamedTuple):
    """What a check saw. What to do is `run`, commands for root's shell that work as they stand, or
    `advice`, in words, or both; neither when nothing is wrong. `fix` does the same as
    `run` without a shell, and breaks nothing that works."""

    mark: Mark
    found: str
    advice: str = ""
    run: tuple[str, ...] = ()
    fix: Callable[[], object] | None = None


class Check(NamedTuple):
    """A named check; `needed`: when it fails, ADD or STATUS would."""

    name: str
    why: str
    look: Callable[[State], Finding | list[Finding]]
    needed: bool = False

    def findings(self, state: State) -> list[Finding]:
        """All faults found, or one finding that says there is none."""
        seen = self.look(state)
        return seen if isinstance(seen, list) else [seen]


def ok(found: str) -> Finding:
    return Finding("ok", found)


def skip(found: str) -> Finding:
    return Finding("skip", found)


def of_error(mark: Mark, error: CniError) -> Finding:
    """A refusal of the plugin, in the words a runtime would get."""
    return Finding(mark, error.problem, error.advice, (error.run,) if error.run else ())


def own(*words: str) -> str:
    """A command line of this program, whatever PATH is."""
    from mycelium_lab.own import OWN_FILE, own_executable

    executable = own_executable()
    return " ".join(quoted(w) for w in (TYPE if executable == OWN_FILE else executable, *words))


def names(attached: Iterable[Attached]) -> str:
    """The first few pods, for a sentence."""
    whose = [one.who for one in attached]
    return ", ".join(whose[:3]) + (" …" if len(whose) > 3 else "")
