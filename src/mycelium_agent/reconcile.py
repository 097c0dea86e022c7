# SPDX-License-Identifier: Apache-2.0
"""Looks at the facts of the node and of its attachments, and makes what is missing.

The facts, the question whether they hold and the way to make them are those of `setup`, `doctor
--fix` and ADD (docs/adr/0008). Here is when to look, at what, and when not to
touch it.

ADD and DEL take no lock, and may be at work at any moment. Neither is disturbed:

While an ADD runs, its attachment is incomplete. So an attachment is repaired only once it has been
seen whole, or is older than any ADD can be. Until then it is only watched.

A running DEL removes an attachment piece by piece: first what the guard and the bridge know of the
pod, last the link. A look waits until the kernel has been silent for a moment, and repairs what
still has a link then. If DEL then deletes that link, no harm is done. What is made for an
attachment names its link by index: the kernel drops it with the link, refuses it afterwards, and
gives the index to no other link. Two things do not depend on the link, the guard's entries of a
bridged pod and the bridge's neighbour entry. They allow nothing, and the end of the link, which the
kernel reports, triggers the next look, which sweeps what has no link.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from mycelium_agent.backoff import Backoff
from mycelium_agent.log import Log
from mycelium_agent.watch import HERE, NO_LINK, Changes, Place
from mycelium_cni import guard
from mycelium_cni.cni.errors import CniError
from mycelium_cni.kernel.facts import Fact
from mycelium_cni.node.facts import LOOPBACK
from mycelium_cni.pod import removal
from mycelium_ctl.checks import examine
from mycelium_ctl.checks.finding import names
from mycelium_ctl.checks.pods import ExpectedPod
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node.expected import Expected
from mycelium_ctl.node.options import Options
from mycelium_ctl.node.stale import find_gone, find_left_over
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.view import count

if TYPE_CHECKING:
    from mycelium_agent.cluster import Cluster

# Checks of doctor whose repairs are not facts of `setup`.
CHECKS: Final = ("loopback", "ipv6", "overlay-routes")
PERIOD_S: Final = 60.0  # between looks at everything: the kernel reports no change of most settings
ADD_S: Final = 15.0  # an ADD gives up sooner (kernel/patience.py)
GONE_S: Final = 5.0  # what is gone must still be gone after this (`mycelium-cni gc --grace`)
MOST_NAMED: Final = 3


class Repair(NamedTuple):
    """One thing to be done: its kind for the counter, what is done to it, and what it is for."""

    kind: str
    words: str
    why: str


class Reconciler:
    """`known` and `names`: what to watch (Watch); `due`: when to look again without being told, on
    the monotonic clock; `repairs`: how many facts have been made, by kind."""

    def __init__(self, where: Options, log: Log, cluster: Cluster | None = None) -> None:
        self.where: Final = where
        self.log: Final = log
        self._cluster: Final = cluster
        self.known: dict[Place, set[int]] = {}
        self.names: set[str] = set()
        self.due = 0.0
        self.repairs: Final[Counter[str]] = Counter()
        self._backoff: Final = Backoff()
        self._attached: dict[int, float] = {}  # host links, and when each was seen first
        self._whole: set[int] = set()  # those of them that have been seen whole
        self._gone: dict[int, float] = {}  # links without a pod, and since when
        self._said: dict[str, str] = {}  # troubles, by subject: each is said once

    @property
    def attachments(self) -> int:
        """How many there were at the last look."""
        return len(self._attached)

    def look(self, changes: Changes) -> None:
        """Look at what has changed, or at everything when it is time, and repair it."""
        now = time.monotonic()
        if changes.everything or now >= self.due:
            changes.everything = True
            self.due = now + PERIOD_S
        self._backoff.forget(now)
        try:
            self._look_at_attachments(self._look_at_node(), changes)
        except ToolError as error:  # the configuration cannot be used
            self._trouble("configuration", str(error))
        except OSError as error:
            self._trouble("kernel", refused(error))
        else:
            self._well("configuration", "kernel")

    def _look_at_node(self) -> State:
        """Repair the node; its state as it is then."""
        state = State(self.where)
        if self._cluster:
            self._cluster.keep(state.cluster_file, self.where.root)  # before the policy is read
            self._cluster.publish(state.address)
        self.names = {*state.own_links}
        made = False
        for check, findings in examine(state, CHECKS):
            for found in findings:
                if found.fix is not None and found.mark in ("fail", "warn"):
                    fixed = Repair(check.name, f"fixed: {found.found}", check.why)
                    made |= self._repair("node", [fixed], found.fix)
        if made:
            state = State(self.where)
        try:
            expected = Expected(state)
        except (CniError, ToolError) as error:
            self._trouble("node", error.msg if isinstance(error, CniError) else str(error))
            return state
        self._well("node")
        todo = [_restoring(fact) for fact in expected.missing]
        todo += [Repair("stale", f"dropped {old.label}", old.why) for old in expected.stale]
        return State(self.where) if todo and self._repair("node", todo, expected.make) else state

    def _look_at_attachments(self, state: State, changes: Changes) -> None:
        now = time.monotonic()
        there = {one.link.index for one in state.attachments}
        ended = self._attached.keys() - there
        self._attached = {index: self._attached.get(index, now) for index in there}
        self._whole &= there
        self.known = _places(state)
        if changes.everything:
            self._drop_gone(state, now)
        # A pod may have come and gone between two looks: only the report of the change names its
        # link.
        if ended or changes.everything or changes.links - there - {NO_LINK}:
            self._sweep(state)
        if state.address is None:
            return
        if state.stranded:
            whose = f"{count(len(state.stranded), 'live pod')}: {names(state.stranded)}"
            words = f"the daemon's key has changed under {whose}; delete them to get new addresses"
            self._trouble("subnet", words)
        else:
            self._well("subnet")
        everyone = changes.everything or bool(changes.links - there)
        for one in state.attachments:
            index = one.link.index
            closely = changes.everything or index in changes.links or index not in self._whole
            usable = one.answers and one.octets and one.subnet == state.address[:8]
            if (everyone or closely) and usable and index not in self._gone:
                self._look_at(state, one, now, in_pod=closely)

    def _look_at(self, state: State, one: Attached, now: float, *, in_pod: bool) -> None:
        index = one.link.index

        def ended() -> bool:
            return not removal.exists(state.host, index)

        expected = ExpectedPod(state, one)
        try:
            missing = expected.missing(preferred=True, in_pod=None if in_pod else ())
        except OSError as error:
            if not ended():
                self._failed(one.who, error)
            return
        if not any(each.fact.needed for each in missing):
            self._whole.add(index)
        if not self._is_settled(index, now):
            self.due = min(self.due, self._attached[index] + ADD_S)
        elif missing and not ended():
            todo = [_restoring(each.fact, each.where) for each in missing]
            self._repair(one.who, todo, expected.make, ended)

    def _is_settled(self, index: int, now: float) -> bool:
        """Whether no ADD is at work on a link."""
        return index in self._whole or now >= self._attached.get(index, 0.0) + ADD_S

    def _repair(
        self,
        whose: str,
        todo: Sequence[Repair],
        make: Callable[[], object],
        ended: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Make what is missing, unless all of it is in a pause; returns whether it tried. `ended`:
        whether what it belongs to has gone meanwhile."""
        now = time.monotonic()
        subjects = {f"{whose}: {each.words}": each for each in todo}
        due = min(self._backoff.due(subject, now) for subject in subjects)
        if due > now:
            self.due = min(self.due, due)
            return False
        news = [each for subject, each in subjects.items() if not self._backoff.is_paused(subject)]
        lost = [subject for subject in subjects if self._backoff.repaired(subject, now)]
        try:
            make()
        except (CniError, ToolError, OSError) as error:
            if not ended():
                self._failed(whose, error)
            return True
        self._well(whose)
        self.repairs.update(each.kind for each in todo)
        if news:
            words = _some([each.words for each in news])
            self.log.write("info", f"{whose}: {words} ({news[0].why})")
        if lost:
            self.log.write(
                "warning",
                f"{_some(lost)}: did not last, something undoes it; the next repairs come "
                "after 1, 2, 4 … seconds, in the end once a minute",
            )
        return True

    def _drop_gone(self, state: State, now: float) -> None:
        """Remove the attachments that `mycelium-cni gc` would, when they have been gone for a
        while: a namespace that is just starting, or ending, is left alone."""
        unused = {each.attached.link.index: each.attached.who for each in find_gone(state)}
        unused |= {link.index: link.name for link in find_left_over(state)}
        self._gone = {index: self._gone.get(index, now) for index in unused}
        doomed = [
            index
            for index, since in self._gone.items()
            if now - since >= GONE_S and self._is_settled(index, now)
        ]
        if doomed:
            removal.delete_links(state.host, doomed)
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # the child that waits for the kernel, maybe the last
            whose = _some([unused[index] for index in doomed])
            self.log.write("info", f"removed what pods left that ended without DEL: {whose}")
        if len(doomed) < len(self._gone):
            self.due = min(self.due, now + GONE_S)

    def _sweep(self, state: State) -> None:
        """Drop what remains of pods whose links are gone."""
        swept = guard.sweep(state.host)
        if swept:
            removal.sweep_neighbours(state.host)
            pods = count(swept, "bridged pod")
            self.log.write("info", f"dropped what the guard knew of {pods} that ended without DEL")

    def _failed(self, whose: str, error: Exception) -> None:
        if isinstance(error, CniError):
            self._trouble(whose, error.msg)
        else:
            self._trouble(whose, refused(error) if isinstance(error, OSError) else str(error))

    def _trouble(self, subject: str, words: str) -> None:
        """Say what is wrong, once."""
        if self._said.get(subject) != words:
            self._said[subject] = words
            self.log.write("warning", f"{subject}: {words}")

    def _well(self, *subjects: str) -> None:
        """Say that a trouble is over."""
        for subject in subjects:
            if self._said.pop(subject, ""):
                self.log.write("info", f"{subject}: recovered")


def _places(state: State) -> dict[Place, set[int]]:
    """The links to watch, each with the link here that it belongs to: a pod link and the pod's `lo`
    belong to the host link."""
    around = {link.index for link in (state.interface, state.bridge) if link}
    found = {(HERE, index): {index} for index in (LOOPBACK, *around)}
    for one in state.attachments:
        places = [(HERE, one.link.index)]
        if one.link.nsid is not None:
            places += [(one.link.nsid, one.link.peer), (one.link.nsid, LOOPBACK)]
        for place in places:
            found.setdefault(place, set()).add(one.link.index)
    return found


def _restoring(fact: Fact, where: str = "") -> Repair:
    return Repair(type(fact).__name__.lower(), f"restored {where}{fact.label}", fact.why)


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more
