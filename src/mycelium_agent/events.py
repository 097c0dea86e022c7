# SPDX-License-Identifier: Apache-2.0
"""What `doctor` finds, as Kubernetes Events of the node: one for each finding, then its series.

`doctor` runs as a program of its own, so the agent stays small and is not held up.
https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from mycelium_agent.kubernetes import Api, ApiError
from mycelium_agent.log import Log
from mycelium_ctl.view import readable

EVENTS: Final = "/apis/events.k8s.io/v1/namespaces/default/events"  # of what has no namespace
SETTLED_S: Final = 30.0  # after a start: a new node's daemon and Services need a while
PERIOD_S: Final = 300.0  # between two runs of doctor
REPEATED_S: Final = 1200.0  # a server forgets an Event after an hour
DOCTOR_S: Final = 120.0
MOST_NOTE: Final = 1024  # bytes (pkg/apis/core/validation/events.go, NoteLengthLimit)
AMISS: Final = ("fail", "warn")

Finding = dict[str, Any]


@dataclass(slots=True)
class _Series:
    """An Event that was created, how often it has been seen, and when that was last told."""

    name: str
    count: int
    told: float


class Events:
    """`doctor` returns its findings, as `doctor --json` prints them."""

    def __init__(
        self, api: Api, node: str, log: Log, doctor: Callable[[], Sequence[Finding]]
    ) -> None:
        self._api: Final = api
        self._node: Final = node
        self._log: Final = log
        self._doctor: Final = doctor
        self._open: dict[tuple[str, str], _Series] = {}  # by check, and what it found
        self._said = ""

    def start(self) -> None:
        """Examine the node from now on, until the process ends."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        time.sleep(SETTLED_S)
        while True:
            trouble = ""
            try:
                self.tell()
            except (ApiError, OSError, ValueError, subprocess.SubprocessError) as error:
                trouble = str(error)
            if trouble and trouble != self._said:
                self._log.write("warning", f"events: {trouble}")
            self._said = trouble
            time.sleep(PERIOD_S)

    def tell(self) -> None:
        """Examine the node once, and tell what is new, what lasts, and what is recovered."""
        found = {_key(each): each for each in self._doctor() if each["state"] in AMISS}
        for key, each in found.items():
            if key not in self._open or not self._repeat(self._open[key]):
                name = self._create("Warning", each["name"], _note(each))
                self._open[key] = _Series(name, 1, time.monotonic())
        for key in self._open.keys() - found.keys():
            if key[0] not in {check for check, _ in found}:
                self._create("Normal", key[0], f"{key[0]}: recovered")
            del self._open[key]

    def _create(self, kind: str, check: str, note: str) -> str:
        name = f"{self._node}.{time.time_ns():x}"
        item = {
            "metadata": {"name": name, "namespace": "default"},
            "eventTime": _now(),
            "reportingController": "mycelium-cni/agent",
            "reportingInstance": f"mycelium-cni-{self._node}"[:128],
            "action": "Examined",
            "reason": "".join(
                word.capitalize() for word in re.findall(r"\w+", f"mycelium {check}")
            ),
            # `kubectl describe node` looks for the name in place of the UID, as kubelets write it.
            "regarding": {
                "apiVersion": "v1",
                "kind": "Node",
                "name": self._node,
                "uid": self._node,
            },
            "note": note,
            "type": kind,
        }
        self._api.create(EVENTS, item)
        return name

    def _repeat(self, series: _Series) -> bool:
        """Count it once more; False if the server has forgotten it."""
        series.count += 1
        if time.monotonic() - series.told >= REPEATED_S:
            told = {"series": {"count": series.count, "lastObservedTime": _now()}}
            try:
                self._api.patch(f"{EVENTS}/{series.name}", told)
            except ApiError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                return False
            series.told = time.monotonic()
        return True


def run_doctor(argv: Sequence[str]) -> list[Finding]:
    """What `doctor --json` prints. Raises OSError, ValueError, SubprocessError."""
    done = subprocess.run(argv, capture_output=True, check=False, timeout=DOCTOR_S)
    if done.returncode not in (0, 1):
        raise ValueError(f"doctor has ended with {done.returncode}")
    found = json.loads(done.stdout)
    return [each for each in found if isinstance(each, dict)]


def _key(finding: Finding) -> tuple[str, str]:
    """Numbers change while a finding lasts."""
    return str(finding["name"]), re.sub(r"\d+", "", str(finding["found"]))


def _note(finding: Finding) -> str:
    """What was found, why it matters, and what to do."""
    parts = finding["found"], finding.get("why"), finding.get("advice")
    run = [f"Run: {command}" for command in finding.get("run") or ()]
    text = readable(". ".join(str(part) for part in (*parts, *run) if part))
    return text.encode()[:MOST_NOTE].decode(errors="ignore")


def _now() -> str:
    """MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
