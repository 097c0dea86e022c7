# SPDX-License-Identifier: Apache-2.0
"""The attachments whose pod is gone, for `gc`, `list`, `doctor` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mycelium_ctl.node.namespaces import PodNetns
from mycelium_ctl.node.state import Attached, LinkFacts, State
from mycelium_ctl.view import Mark


class Gone(NamedTuple):
    """An attachment whose pod is gone, and how that shows."""

    attached: Attached
    why: str


def find_gone(state: State, *, empty: bool = False) -> list[Gone]:
    """The attachments whose pod is gone; none where that cannot be seen."""
    if state.blindness:
        return []
    gone = _gone(state, state.netns, empty=empty)
    # While the processes were listed, one may have ended whose child was not listed yet.
    if not gone:
        return []
    again = {one.attached.link.index for one in _gone(state, state.read_netns(), empty=empty)}
    return [one for one in gone if one.attached.link.index in again]


def _gone(state: State, held_by: Mapping[int, PodNetns], *, empty: bool) -> list[Gone]:
    gone = []
    for attached in state.attachments:
        if not attached.answers:
            gone.append(Gone(attached, "the pod's end of the link is gone"))
            continue
        held = held_by.get(attached.link.nsid if attached.link.nsid is not None else -1)
        if held is None:
            gone.append(Gone(attached, "no process is in its namespace, and no file names it"))
        elif empty and not held.processes:
            gone.append(Gone(attached, f"no process is in its namespace {held.names[0]}"))
    return gone


def verdicts(state: State) -> dict[int, tuple[Mark, str]]:
    """A word or two on the state of each attachment, by its host link."""
    unused = {gone.attached.link.index for gone in find_gone(state)}
    return {
        one.link.index: ("fail", "gone") if one.link.index in unused else _verdict(one, state)
        for one in state.attachments
    }


def _verdict(one: Attached, state: State) -> tuple[Mark, str]:
    if not one.link.up:
        return "fail", "host link down"
    if not one.pod_link:
        return "skip", "not visible"
    if not one.pod_up:
        return "fail", f"{one.pod_link} down"
    if state.address and one.subnet != state.address[:8]:
        return "warn", "old subnet"
    return "ok", one.pod_link


def find_left_over(state: State) -> list[LinkFacts]:
    """Links whose deletion was interrupted: the process that deleted them was killed."""
    return [link for link in state.links if link.left_over]
