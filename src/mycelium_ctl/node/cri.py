# SPDX-License-Identifier: Apache-2.0
"""What the node's container runtime says about its pod network, asked over CRI.

One call, RuntimeService/Status of cri-api's runtime.v1, for which a page of gRPC and protobuf is
enough: a client library would be ten times the size of the rest of this tool.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

# Where runtimes listen, below the root directory.
SOCKETS: Final = (
    "run/k3s/containerd/containerd.sock",
    "var/snap/microk8s/common/run/containerd.sock",
    "run/crio/crio.sock",
    "run/containerd/containerd.sock",
)
PATIENCE_S: Final = 3.0
ANSWER_LIMIT: Final = 8 << 20  # bytes; an answer has tens of thousands
_WINDOW: Final = 1 << 24  # bytes that the runtime may send unasked

# RFC 9113, section 6
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_INITIAL_WINDOW_SIZE: Final = 4


class Network(NamedTuple):
    """A runtime's pod network: whether pods can be started, why not, and the names of the networks
    that it has loaded; None if it does not say (CRI-O)."""

    ready: bool
    message: str
    loaded: list[str] | None


def find_socket(root: Path) -> Path | None:
    """The socket of this node's runtime; None if there is none."""
    for place in SOCKETS:
        path = root / place
        if path.is_socket():
            return path
    return None


def read_network(path: Path) -> Network:
    """Ask the runtime. Raises OSError if it does not answer as a runtime does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
        verbose = b"\x08\x01"
        answer = _call(connection, "/runtime.v1.RuntimeService/Status", verbose)
    try:
        return _network(answer)
    except (ValueError, IndexError) as error:
        raise OSError(f"{path}: its answer is not a StatusResponse") from error


def _call(connection: socket.socket, method: str, message: bytes) -> bytes:
    """One unary gRPC call: the message of the answer. Raises OSError.

    https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
    """
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    connection.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW))
        + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW))
        + _frame(_HEADERS, _END_HEADERS, 1, b"".join(map(_header, headers, headers.values())))
        + _frame(_DATA, _END_STREAM, 1, struct.pack(">?I", False, len(message)) + message)
    )
    deadline = time.monotonic() + PATIENCE_S
    received = b""
    while True:
        kind, flags, stream, payload = _read_frame(connection)
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            connection.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _DATA and stream == 1:
            received += payload
        if kind in (_RST_STREAM, _GOAWAY) or len(received) > ANSWER_LIMIT:
            break
        if stream == 1 and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            break
        if time.monotonic() > deadline:
            raise TimeoutError("the runtime's answer does not end")
    if (
        len(received) < 5
        or received[0]
        or len(received) != 5 + int.from_bytes(received[1:5], "big")
    ):
        raise OSError("the runtime refused the call")
    return received[5:]


def _header(name: str, value: str) -> bytes:
    """A literal header field without indexing, not compressed (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _read_frame(connection: socket.socket) -> tuple[int, int, int, bytes]:
    head = _read(connection, 9)
    length = int.from_bytes(head[:3], "big")
    kind, flags, stream = struct.unpack(">BBI", head[3:])
    return kind, flags, stream & 0x7FFFFFFF, _read(connection, length)


def _read(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise ConnectionResetError("the runtime closed the connection")
        received += part
    return received


def _network(answer: bytes) -> Network:
    """StatusResponse: the condition NetworkReady, and containerd's networks."""
    ready, message = False, "the runtime says nothing about its network"
    loaded: list[str] | None = None
    for number, value in _fields(answer):
        if number == 1:  # status.conditions
            for _, condition in _fields(value):
                words = dict(_fields(condition))
                if words.get(1) == b"NetworkReady":
                    ready = words.get(2) == b"\x01"
                    message = words.get(4, b"").decode(errors="replace")
        elif number == 2:  # info
            entry = dict(_fields(value))
            if entry.get(1) == b"cniconfig":
                loaded = _names(entry.get(2, b""))
    return Network(ready, message, loaded)


def _names(cniconfig: bytes) -> list[str] | None:
    """The networks that go-cni has loaded, from containerd's details (go-cni, types.go)."""
    with suppress(ValueError, TypeError, KeyError):
        networks = json.loads(cniconfig).get("Networks") or []
        return [str(network["Config"]["Name"]) for network in networks]
    return None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message; a number as its bytes. Raises ValueError, IndexError."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        start = at
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                length, start = _varint(message, at)
                at = start + length
            case 5:
                at += 4
            case _:
                raise ValueError(f"wire type {tag & 7}")
        if at > len(message):
            raise ValueError("it ends too early")
        yield tag >> 3, message[start:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends (https://protobuf.dev/programming-guides/encoding/#varints)."""
    value = shift = 0
    while True:
        octet = message[at]
        value |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return value, at
