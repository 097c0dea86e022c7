# SPDX-License-Identifier: Apache-2.0
"""Calls of the executable as a runtime makes them, and assertions about their outcome."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from .hosts import Host, Pod
from .schema import NEWEST, check_error, check_result, one_document

Environment = Mapping[Any, str | bytes | None]


def network(version: str | None = NEWEST, /, **keys: Any) -> dict[str, Any]:
    """A network configuration as a runtime hands it to the plugin."""
    conf: dict[str, Any] = {"name": "overlay", "type": "mycelium-cni", **keys}
    return conf if version is None else {"cniVersion": version, **conf}


class Outcome:
    """What one call of the executable did: its exit code and its two streams."""

    def __init__(self, verb: str, code: int, out: bytes, err: bytes) -> None:
        self.verb, self.code, self.out, self.err = verb, code, out, err
        for stream in (out, err):
            assert b"Traceback (most recent call last)" not in stream, self
        assert code in (0, 1), self

    def __repr__(self) -> str:
        return f"{self.verb} exited {self.code}; stdout {self.out!r}; stderr {self.err!r}"

    def result(self, version: str = NEWEST) -> dict[str, Any]:
        """The one result document of a successful ADD."""
        assert self.code == 0, self
        document: dict[str, Any] = one_document(self.out)
        check_result(document, version)
        return document

    def is_silent_success(self) -> None:
        """Assert success without output, as of DEL, CHECK, GC and STATUS."""
        assert self.code == 0, self
        assert self.out == b"", self

    def error(self, *codes: int, says: str = "") -> dict[str, Any]:
        """The one error object of a failed call, with one of these codes and containing this
        text."""
        assert self.code == 1, self
        document: dict[str, Any] = one_document(self.out)
        check_error(document)
        text = f"{document['msg']} {document.get('details', '')}"
        assert not codes or document["code"] in codes, f"wanted {codes}, got {document}"
        assert says.lower() in text.lower(), f"{says!r} is not in {document}"
        if self.verb == "ADD":
            assert document["code"] != 3, "code 3 tells the runtime that no DEL is needed"
        if self.verb == "DEL":
            # containerd takes an error with these words for success and never asks again.
            assert "not found" not in text, document
            assert "no such file or directory" not in text, document
        return document


class Plugin:
    """The executable under test, run on one node with nothing but CNI_* in its environment."""

    def __init__(self, command: Sequence[str], host: Host) -> None:
        self.command = tuple(command)
        self.host = host

    def run(
        self, environment: Environment, stdin: bytes = b"", *, argv: Sequence[str] = ()
    ) -> Outcome:
        """One call with exactly this environment; `argv` replaces the command line."""
        given = {key: value for key, value in environment.items() if value is not None}
        done = subprocess.run(
            self.host.argv(*(argv or self.command)),
            check=False,
            env=given,
            input=stdin,
            capture_output=True,
            timeout=30,
        )
        verb = str(given.get("CNI_COMMAND", ""))
        return Outcome(verb, done.returncode, done.stdout, done.stderr)

    def call(
        self, verb: str, conf: Any, pod: Pod | None = None, env: Environment | None = None
    ) -> Outcome:
        """One call as a runtime makes it: what the verb needs, then `env` on top (None removes)."""
        environment: dict[str, str | bytes | None] = {"CNI_COMMAND": verb}
        if pod is not None:
            environment |= attachment_env(pod)
        return self.run({**environment, **(env or {})}, encoded(conf))

    def add(self, pod: Pod, conf: Any, **env: str | bytes | None) -> Outcome:
        """ADD of the pod's eth0."""
        return self.call("ADD", conf, pod, env)

    def delete(self, pod: Pod, conf: Any, **env: str | bytes | None) -> Outcome:
        """DEL of the pod's eth0."""
        return self.call("DEL", conf, pod, env)

    def check(self, pod: Pod, conf: Any, **env: str | bytes | None) -> Outcome:
        """CHECK of the pod's eth0."""
        return self.call("CHECK", conf, pod, env)

    def gc(self, conf: Any, **env: str | bytes | None) -> Outcome:
        """GC of the network."""
        return self.call("GC", conf, env=env)

    def status(self, conf: Any, **env: str | bytes | None) -> Outcome:
        """STATUS of the network."""
        return self.call("STATUS", conf, env=env)

    def version(self, stdin: bytes, **env: str | bytes | None) -> Outcome:
        """VERSION with these bytes on standard input."""
        return self.call("VERSION", stdin, env=env)


def attachment_env(pod: Pod) -> dict[str, str]:
    """The variables that name the pod's eth0."""
    return {"CNI_CONTAINERID": pod.container, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}


def encoded(conf: Any) -> bytes:
    """A configuration as bytes; bytes stay as they are."""
    return conf if isinstance(conf, bytes) else json.dumps(conf).encode()
