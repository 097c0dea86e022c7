# SPDX-License-Identifier: Apache-2.0
"""One function per parser of foreign bytes: each returns, or raises what a caller expects.

Any other exception is a fault: a caller would show it as a bug of ours. So is a reading that takes
longer than a second of CPU time, which does not depend on what else the machine does. Each is named
as its folder in `corpus/`.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from time import process_time
from typing import Any

from mycelium_cni.cni.config import Config, Network, PodOptions
from mycelium_cni.cni.errors import CniError
from mycelium_cni.cni.jsontext import dump, parse
from mycelium_cni.cni.request import VERSIONS, Request
from mycelium_cni.cni.result import Result
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nft
from mycelium_cni.kernel.link import Link
from mycelium_cni.node import subnet
from mycelium_cni.pod.attachment import Attachment
from mycelium_ctl.node import daemon, lenient

_LONGEST_CPU_S = 1.0
_KEY = Path(tempfile.gettempdir(), "mycelium-cni-fuzz-key")


def configuration(data: bytes) -> None:
    """A network configuration on standard input."""
    with suppress(CniError):
        network = Network(data)
        assert isinstance(network.log(), tuple)
        for warning in network.warnings():
            dump(warning.msg)
        with suppress(CniError):
            network.valid_attachments()
        network.require_version("ADD")
        config = Config(network)
        PodOptions(network, {})
        Result(config.prev_result, network.cni_version)


def environment(data: bytes) -> None:
    """CNI_* variables, as `env -0` prints them."""
    pairs = (entry.partition(b"=") for entry in data.split(b"\0"))
    environ = {key: value for key, equals, value in pairs if equals}
    with suppress(CniError):
        request = Request(environ)
        Attachment("overlay", request.container, request.ifname).alias("routed", "::", "x/y")
        PodOptions(Network(b'{"cniVersion": "1.1.0", "name": "overlay"}'), request.args)


def prev_result(data: bytes) -> None:
    """A previous result, converted to every version of the specification."""
    with suppress(CniError, ValueError):
        document: Any = parse(data)
        assert json.loads(dump(document)) == json.loads(data.decode()), (
            "dump changes what parse has read"
        )
        if isinstance(document, dict):
            for version in VERSIONS:
                with suppress(CniError):
                    result = Result(document, version)
                    pair: list[dict[str, Any]] = [{"name": "m"}, {"name": "e", "sandbox": "/x"}]
                    result.add(pair, {"address": "5a1::2/128", "gateway": "fe80::1"}, [])
                    dump(result.in_version(version))


class _Answers:
    """A kernel that answers with these bytes, a datagram of a third of them at a time."""

    def __init__(self, data: bytes) -> None:
        size = max(1, len(data) // 3)
        self._datagrams = [data[at : at + size] for at in range(0, len(data), size)]

    def send(self, _: bytes) -> None:
        pass

    def recv(self, *_: int) -> bytes:
        if not self._datagrams:
            raise BlockingIOError
        return self._datagrams.pop(0)


def netlink(data: bytes) -> None:
    """Answers that no kernel gives: to requests, to a dump, and in a link."""
    channel = nl.Socket.__new__(nl.Socket)
    channel._filters = True
    question = nl.get_link("eth0")
    # A field that is cut short is one of these, which `main` answers like any other bug.
    for ask in (channel.request, channel.attempt, channel.ask, channel.dump):
        channel._socket, channel._sequence = _Answers(data), 0  # type: ignore[assignment]
        with suppress(OSError, struct.error, StopIteration, IndexError):
            ask(question)
    with suppress(struct.error, IndexError):
        link = Link(data)
        _ = link.name, link.alias, link.altnames, link.mac, link.peer, link.master
        _ = link.mtu, link.group
    with suppress(KeyError):
        nft.keys(data)


def api(data: bytes) -> None:
    """Answers of whatever listens where the daemon's API should be."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return
    pages = ("admin", "admin/peers", "admin/routes/selected")
    for page in pages:
        daemon._daemon({page: answer}, "")
    if isinstance(answer, list):
        daemon._daemon(dict(zip(pages, answer, strict=False)), "")


def key(data: bytes) -> None:
    """The daemon's key file."""
    _KEY.write_bytes(data)
    with suppress(CniError):
        subnet.read_key(str(_KEY))


def conflist(data: bytes) -> None:
    """A file of the runtime's directory, as `config check` reads it."""
    lenient.parse(data)


def _timed(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    @wraps(target)
    def run(data: bytes) -> None:
        start = process_time()
        target(data)
        took = process_time() - start
        assert took < _LONGEST_CPU_S, f"{len(data)} bytes take {took:.1f} s to read"

    return run


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: _timed(each)
    for each in (configuration, environment, prev_result, netlink, api, key, conflist)
}
