# SPDX-License-Identifier: Apache-2.0
"""Answers over HTTP: /healthz, /readyz and /metrics.

In threads of their own, so that a slow client does not delay a repair. Only the main thread
enters pods' namespaces.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from mycelium_agent import metrics
from mycelium_agent.calls import Calls
from mycelium_agent.reconcile import Reconciler
from mycelium_ctl.commands.status import refusal
from mycelium_ctl.deadline import Deadline
from mycelium_ctl.errors import ToolError, refused
from mycelium_ctl.node.state import State

DEFAULT: Final = "127.0.0.1:9654"
PATIENCE_S: Final = 5.0  # for one question, from its first byte to its last
MOST_THREADS: Final = 16  # any user of the node can ask
LATE_S: Final = 30.0  # a look this late will not come

Answer = tuple[HTTPStatus, str, str]  # status, content type, body


def address(text: str) -> tuple[str, int]:
    """An argument ADDRESS:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!a} is not ADDRESS:PORT, such as {DEFAULT}")
    return host.strip("[]"), int(port)


def start(where: tuple[str, int], reconciler: Reconciler, calls: Calls) -> None:
    """Answer from now on, until the process ends. Raises ToolError if it cannot listen there."""

    def plain(status: HTTPStatus, words: str) -> Answer:
        return status, "text/plain; charset=utf-8", f"{words}\n"

    def healthz() -> Answer:
        late = time.monotonic() - reconciler.due
        if late > LATE_S:
            words = f"the last look should have ended {late:.0f} s ago"
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, words)
        return plain(HTTPStatus.OK, "ok")

    def readyz() -> Answer:
        wrong = refusal(State(reconciler.where))
        if wrong:
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, wrong)
        return plain(HTTPStatus.OK, "ready")

    def numbers() -> Answer:
        state = State(reconciler.where)
        text = metrics.text(state, calls, reconciler.repairs.copy(), ready=not refusal(state))
        return HTTPStatus.OK, metrics.CONTENT_TYPE, text

    pages = {"/healthz": healthz, "/readyz": readyz, "/metrics": numbers}
    try:
        server = _Server(where, pages)
    except OSError as error:
        raise ToolError(f"cannot listen on {where[0]} port {where[1]}: {refused(error)}") from error
    # By default it wakes twice a second to see whether to end.
    threading.Thread(target=server.serve_forever, args=(None,), daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, where: tuple[str, int], pages: dict[str, Callable[[], Answer]]) -> None:
        if ":" in where[0]:
            self.address_family = socket.AF_INET6
        self.pages: Final = pages
        super().__init__(where, _Handler)

    def server_bind(self) -> None:
        """Without a look-up of the address' name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A client that sends a byte now and then has no longer than others."""
        connected, client_address = super().get_request()
        return Deadline(connected, PATIENCE_S), client_address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Each in a thread; those beyond MOST_THREADS are refused."""
        if threading.active_count() > MOST_THREADS:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has hung up needs no answer."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            status, kind, body = page()
        except (ToolError, OSError) as error:
            words = refused(error) if isinstance(error, OSError) else str(error)
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{words}\n"
        octets = body.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(octets)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - as it is called there
        """Requests are not logged."""
