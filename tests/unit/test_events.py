# SPDX-License-Identifier: Apache-2.0
"""What doctor finds becomes a few Events of the Node."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from apiserver import ApiServer
from mycelium_agent import events
from mycelium_agent.access import service_account
from mycelium_agent.events import Events
from mycelium_agent.kubernetes import Api
from mycelium_agent.log import Log

RED: dict[str, Any] = {"state": "fail", "run": [], "advice": None, "why": "no pod gets an address"}


class Reported:
    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.found: list[dict[str, Any]] = []
        api = Api(partial(service_account, server.address, server.port, str(server.secrets)))
        self.events = Events(api, "ours", Log(as_json=False), lambda: self.found)

    def tell(self, *found: dict[str, Any]) -> list[dict[str, Any]]:
        """Let doctor find this; all Events then."""
        self.found = [{"name": "guard", **RED, **each} for each in found]
        self.events.tell()
        return list(self.server.events.values())


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reported]:
    monkeypatch.setattr(events, "REPEATED_S", 0.0)
    with ApiServer(tmp_path / "secrets").running() as server:
        yield Reported(server)


def test_a_finding_is_an_event_of_the_node_with_its_remedy(reported: Reported) -> None:
    (event,) = reported.tell(
        {"found": "it is down", "run": ["mycelium-cni setup"], "advice": "or wait"}
    )
    assert event["note"] == ("it is down. no pod gets an address. or wait. Run: mycelium-cni setup")
    assert (event["type"], event["reason"]) == ("Warning", "MyceliumGuard")
    assert event["regarding"]["kind"] == "Node"
    assert event["regarding"]["name"] == "ours"
    assert event["metadata"]["namespace"] == "default"


def test_what_lasts_is_one_series_whatever_the_numbers_in_it(reported: Reported) -> None:
    for number in range(1, 4):
        (event,) = reported.tell({"found": f"{number} pods are cut off"})
    assert event["series"]["count"] == 3


def test_what_is_well_or_was_not_looked_at_is_no_event(reported: Reported) -> None:
    assert (
        reported.tell({"found": "all is well", "state": "ok"}, {"found": "", "state": "skip"}) == []
    )


def test_the_end_of_a_finding_is_told_once(reported: Reported) -> None:
    reported.tell({"found": "it is down"}, {"found": "so is this", "name": "routes"})
    reported.tell({"found": "so is this", "name": "routes"})
    all_events = reported.tell({"found": "so is this", "name": "routes"})
    assert [each["note"] for each in all_events if each["type"] == "Normal"] == ["guard: recovered"]
    assert len(all_events) == 3


def test_an_event_that_the_server_has_forgotten_is_made_again(reported: Reported) -> None:
    reported.tell({"found": "it is down"})
    reported.server.events.clear()
    (event,) = reported.tell({"found": "it is down"})
    assert event["note"].startswith("it is down")


def test_a_long_or_strange_text_is_cut_and_harmless(reported: Reported) -> None:
    (event,) = reported.tell({"found": "pod é\x1b[2J\n" * 500})
    assert len(event["note"].encode()) <= 1024
    assert event["note"].isprintable()
