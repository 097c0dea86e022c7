# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as the agent uses it: patch, create, list and watch.

https://kubernetes.io/docs/reference/using-api/api-concepts/. Of objects that are followed, only the
metadata is asked for: a Node's status has a hundred times its size.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from mycelium_agent.access import Access

PATIENCE_S: Final = 10.0  # for one answer
WATCH_S: Final = 240  # after which the server ends a watch
PAGE: Final = 50  # objects of a list in one answer
MOST_BYTES: Final = 8 << 20  # of one answer, or one event

_METADATA: Final = "application/json;as={};g=meta.k8s.io;v=v1"
_KEEPALIVE: Final = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}

Json = dict[str, Any]


class ApiError(Exception):
    """What went wrong, in a line. `status`: of the answer, 0 if there was none."""

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.status: Final = status


class Event(NamedTuple):
    """Of a watch: what has happened to an object, and the object."""

    kind: str  # ADDED, MODIFIED, DELETED, BOOKMARK
    item: Json


class Api:
    """An API server. `access`: called for each request; it may raise ValueError.

    All methods raise ApiError.
    """

    def __init__(self, access: Callable[[], Access]) -> None:
        self._access: Final = access

    def create(self, path: str, item: Json) -> None:
        with self._answer("POST", path, json.dumps(item), "application/json") as answer:
            _read(answer)

    def patch(self, path: str, changes: Json) -> None:
        """RFC 7386: null deletes a key."""
        kind = "application/merge-patch+json"
        with self._answer("PATCH", path, json.dumps(changes), kind) as answer:
            _read(answer)

    def list(self, path: str) -> tuple[list[Json], str]:
        """The metadata of all objects, and the version that a watch continues from."""
        found: list[Json] = []
        query: dict[str, str | int] = {"limit": PAGE}
        while True:
            accept = _METADATA.format("PartialObjectMetadataList")
            with self._answer("GET", f"{path}?{urlencode(query)}", accept=accept) as answer:
                page = _object(_read(answer))
                meta, items = _inner(page, "metadata"), page.get("items")
                if not isinstance(items, list):
                    raise ValueError("no items")
                found += [_inner(item, "metadata") for item in items]
            if not (rest := meta.get("continue")):
                return found, str(meta.get("resourceVersion", ""))
            query["continue"] = str(rest)

    def watch(self, path: str, version: str) -> Generator[Event, None, None]:
        """What happens to objects from that version on, until the server ends it; their metadata.

        ApiError with status 410: the version is too old, list again.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_S,
        }
        accept = _METADATA.format("PartialObjectMetadata")
        with self._answer(
            "GET", f"{path}?{urlencode(query)}", accept=accept, patience_s=WATCH_S + PATIENCE_S
        ) as answer:
            while line := answer.readline(MOST_BYTES + 1):
                if not line.endswith(b"\n"):
                    raise ApiError(f"{path}: an event was cut, or is too long")
                event = _object(line)
                kind, item = str(event.get("type")), _inner(event, "object")
                if kind == "ERROR":
                    raise ApiError(f"{path}: {_message(item)}", _code(item))
                yield Event(kind, _inner(item, "metadata"))

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: str | None = None,
        content: str = "",
        *,
        accept: str = "application/json",
        patience_s: float = PATIENCE_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own: there are few, and the token changes."""
        headers = {"Accept": accept, "User-Agent": "mycelium-cni"}
        if content:
            headers["Content-Type"] = content
        try:
            access = self._access()
        except ValueError as error:
            raise ApiError(str(error)) from error
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        where = f"[{access.name}]:{access.port}"
        try:
            context = ssl.create_default_context(cadata=access.authority)
            if access.certificate:
                _identify(context, access.certificate)
            connection = http.client.HTTPConnection(access.name, access.port)
            try:
                connection.sock = _connect(access, context)
                _keep_alive(connection.sock, patience_s)
                connection.request(method, path, body, headers)
                # An answer that ends the connection has taken its socket over.
                with connection.getresponse() as answer:
                    if answer.status // 100 != 2:
                        said = f"{method} {path.partition('?')[0]}: {answer.status}"
                        raise ApiError(f"{said} {_reason(answer)}", answer.status)
                    yield answer
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise ApiError(f"{where} is not trusted: {error.verify_message}") from error
        except OSError as error:
            raise ApiError(f"{where}: {error.strerror or error}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise ApiError(f"{where} does not answer as an API server: {error!r:.200}") from error


def _connect(access: Access, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection to the first address that takes one.

    The context gets a socket before it is connected: one whose peer has reset the connection it
    would leave open (ssl.py of CPython 3.11, SSLSocket._create).
    """
    for address in access.addresses:
        plain = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        connection = context.wrap_socket(plain, server_hostname=access.name)
        try:
            connection.settimeout(PATIENCE_S)
            connection.connect((address, access.port))
        except OSError:
            connection.close()
            if address == access.addresses[-1]:
                raise
        else:
            break
    return connection


def _identify(context: ssl.SSLContext, certificate: bytes) -> None:
    """Load the client certificate and its key. OpenSSL reads them from a file: one in memory."""
    with open(os.memfd_create("certificate"), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(certificate)
        file.flush()
        try:  # without a password it would ask the terminal for one
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
        except ssl.SSLError as error:
            raise ApiError(f"the client certificate or its key is not usable: {error}") from error


def _keep_alive(connection: socket.socket, patience_s: float) -> None:
    """Notice a server that was switched off, also while nothing happens."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, seconds)
    connection.settimeout(patience_s)


def _read(answer: http.client.HTTPResponse) -> bytes:
    octets = answer.read(MOST_BYTES + 1)
    if len(octets) > MOST_BYTES:
        raise ApiError(f"an answer has more than {MOST_BYTES >> 20} MiB")
    return octets


def _object(octets: bytes) -> Json:
    """Raises ValueError, also for what is nested too deeply to be an answer."""
    try:
        found = json.loads(octets)
    except RecursionError as error:
        raise ValueError("its JSON is too deep") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _inner(item: object, key: str) -> Json:
    found = item.get(key) if isinstance(item, Mapping) else None
    if not isinstance(found, dict):
        raise ValueError(f"no {key}")
    return found


def _reason(answer: http.client.HTTPResponse) -> str:
    """What a refusal says: a Status, or, of a proxy in between, whatever."""
    try:
        return _message(_object(answer.read(1 << 16)))
    except (ValueError, OSError, http.client.HTTPException):
        return answer.reason


def _message(status: Json) -> str:
    return str(status.get("message") or status.get("reason") or "no reason given")[:300]


def _code(status: Json) -> int:
    code = status.get("code")
    return code if isinstance(code, int) else 0
