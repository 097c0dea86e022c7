# SPDX-License-Identifier: Apache-2.0
"""The part of a Kubernetes API server that the agent uses, for Nodes: HTTPS, bearer tokens or
client certificates, paged lists of metadata, watches with bookmarks, merge patches, and Events.

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ADDRESS = "::1"
Json = dict[str, Any]


class ApiServer:
    """Its Nodes are what the test makes them. `faults`: what it answers instead of the next
    lists: a status, or bytes for the body. `asked`: requests, by method and path."""

    def __init__(self, secrets: Path, address: str = ADDRESS) -> None:
        self.secrets = secrets
        self.address = address
        self.token = ""
        self.nodes: dict[str, Json] = {}
        self.events: dict[str, Json] = {}
        self.faults: list[int | bytes] = []
        self.asked: Counter[tuple[str, str]] = Counter()
        self.version = 100
        self.oldest = 100  # version that a watch can begin at
        self._log: list[tuple[int, Json]] = []
        self._changed = threading.Condition()
        self._watches: set[socket.socket] = set()
        secrets.mkdir(parents=True, exist_ok=True)
        self._context = _certify(secrets, address)
        self.write_token("first")
        self._server: _Server | None = None
        self.port = 0

    def write_token(self, token: str) -> None:
        """Rotate it, by renaming, as a kubelet does."""
        self.token = token
        new = self.secrets / ".token"
        new.write_text(token)
        new.rename(self.secrets / "token")

    def start(self) -> None:
        self._server = _Server(self, self.port)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        assert self._server
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.cut()

    @contextmanager
    def running(self) -> Iterator[ApiServer]:
        self.start()
        try:
            yield self
        finally:
            if self._server:
                self.stop()

    # Nodes

    def put(self, name: str, annotations: Json | None = None) -> None:
        kind = "MODIFIED" if name in self.nodes else "ADDED"
        self.nodes[name] = {"name": name, "annotations": annotations or {}}
        self.tell(kind, self.nodes[name])

    def delete(self, name: str) -> None:
        self.tell("DELETED", self.nodes.pop(name))

    def annotations(self, name: str) -> Json:
        found: Json = self.nodes[name]["annotations"]
        return found

    def tell(self, kind: str, metadata: Json) -> None:
        """Send an event to every watch."""
        with self._changed:
            self.version += 1
            metadata["resourceVersion"] = str(self.version)
            item = {"kind": "PartialObjectMetadata", "metadata": dict(metadata)}
            self._log.append((self.version, {"type": kind, "object": item}))
            self._changed.notify_all()

    def compact(self) -> None:
        """Drop old versions: a watch that begins at one gets 410 Gone."""
        self.version += 1
        self.oldest = self.version

    def send(self, octets: bytes) -> None:
        """Bytes into every watch, as they are."""
        for connection in list(self._watches):
            connection.sendall(b"%x\r\n%s\r\n" % (len(octets), octets))

    def cut(self) -> None:
        """End all watches in the middle."""
        for connection in list(self._watches):
            self._watches.discard(connection)
            with suppress(OSError):  # it has just ended
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS

    @property
    def watched(self) -> int:
        return len(self._watches)

    # Called by the handler

    def page(self, query: dict[str, str]) -> Json:
        names = sorted(self.nodes)
        start, limit = int(query.get("continue", 0)), int(query["limit"])
        rest = {"continue": str(start + limit)} if start + limit < len(names) else {}
        items = [{"metadata": self.nodes[name]} for name in names[start : start + limit]]
        return {"metadata": {"resourceVersion": str(self.version), **rest}, "items": items}

    def follow(self, handler: _Handler, version: int) -> None:
        self._watches.add(handler.connection)
        too_old = version < self.oldest
        try:
            while handler.connection in self._watches:
                with self._changed:
                    news = [event for number, event in self._log if number > version]
                    if too_old:
                        gone = {"kind": "Status", "code": 410, "message": "too old"}
                        news = [{"type": "ERROR", "object": gone}]
                    elif news:
                        version = self.version
                    else:
                        self._changed.wait(0.1)
                for event in news:
                    octets = json.dumps(event).encode() + b"\n"
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(octets), octets))
                if too_old:
                    return
        except OSError:
            return
        finally:
            self._watches.discard(handler.connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_INET6

    def __init__(self, api: ApiServer, port: int) -> None:
        self.api = api
        super().__init__((api.address, port), _Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.api._context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tests disconnect clients: that is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: Json | bytes) -> None:
        octets = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.close_connection = True

    def _begin(self) -> bool:
        """Count the request; whether it is to be served."""
        api = self.server.api
        api.asked[self.command, urlsplit(self.path).path] += 1
        trusted = self.connection.getpeercert()
        if self.headers["Authorization"] != f"Bearer {api.token}" and not trusted:
            self.answer(401, {"kind": "Status", "message": "Unauthorized"})
            return False
        if api.faults and "limit=" in self.path:
            fault = api.faults.pop(0)
            status = 200 if isinstance(fault, bytes) else fault
            said = fault if isinstance(fault, bytes) else {"kind": "Status", "message": "no"}
            self.answer(status, said)
            return False
        return True

    def _body(self) -> Json:
        found: Json = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def do_GET(self) -> None:
        if not self._begin():
            return
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if "watch" not in query:
            self.answer(200, self.server.api.page(query))
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.server.api.follow(self, int(query["resourceVersion"]))

    def do_PATCH(self) -> None:
        changes = self._body()
        if not self._begin():
            return
        api, name = self.server.api, self.path.rpartition("/")[2]
        if name in api.events:
            api.events[name].update(changes)
            self.answer(200, {})
        elif name in api.nodes:
            api.put(name, {**api.annotations(name), **changes["metadata"]["annotations"]})
            self.answer(200, {})
        else:
            self.answer(404, {"kind": "Status", "message": f'nodes "{name}" not found'})

    def do_POST(self) -> None:
        item = self._body()
        if self._begin():
            self.server.api.events[item["metadata"]["name"]] = item
            self.answer(201, item)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - as it is called there
        """No access log."""


def _certify(folder: Path, address: str) -> ssl.SSLContext:
    """A certificate authority, ca.crt, a client's certificate and key, client.pem, and a server's
    context with a certificate of it."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("ca", "api", "me")
    ]
    made = []
    for number, (key, name) in enumerate(zip(keys, names, strict=True)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=number == 0, path_length=None), critical=True)
        )
        if number == 1:
            alternative = x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address(address))]
            )
            builder = builder.add_extension(alternative, critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "ca.crt").write_bytes(made[0])
    chains = [folder / ".server.pem", folder / "client.pem"]
    for chain, key, certificate in zip(chains, keys[1:], made[1:], strict=True):
        octets = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        chain.write_bytes(octets + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chains[0])
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context
