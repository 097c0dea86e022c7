# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes has told the programs in a pod: the Services of its API and of its DNS.

No file on a worker node names both, and asking the API needs credentials; but every container got
the one in its environment and the other in its resolv.conf, whatever the distribution.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from stat import S_ISREG
from typing import Final, NamedTuple

from mycelium_ctl import files

KINDS: Final = ("API", "DNS")
DNS_PORT: Final = 53


class Service(NamedTuple):
    """An address of the cluster's, and what is behind it."""

    what: str
    address: str
    port: int


def services(processes: Sequence[int]) -> list[Service]:
    """The Services that these processes were told of, in the order of KINDS; the first one wins."""
    found: dict[str, Service] = {}
    for pid in processes:
        for service in (*_api(pid), *_dns(pid)):
            found.setdefault(service.what, service)
        if len(found) == len(KINDS):
            break
    return [found[kind] for kind in KINDS if kind in found]


def _api(pid: int) -> Iterator[Service]:
    """From the environment, which the pod may change: only an address and a number are taken."""
    with suppress(OSError, ValueError, KeyError):
        words = files.read(Path(f"/proc/{pid}/environ")).split(b"\0")
        environ = dict(word.split(b"=", 1) for word in words if b"=" in word)
        port = int(environ[b"KUBERNETES_SERVICE_PORT"])
        if 0 < port < 1 << 16:
            yield Service("API", _address(environ[b"KUBERNETES_SERVICE_HOST"].decode()), port)


def _dns(pid: int) -> Iterator[Service]:
    """From resolv.conf, if it is the cluster's: a pod may have its node's."""
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in _resolv_conf(pid).decode().splitlines()]
        searched = [word for line in lines if line[:1] == ["search"] for word in line[1:]]
        if any(word.startswith("svc.") for word in searched):
            for line in lines:
                if line[:1] == ["nameserver"]:
                    yield Service("DNS", _address(line[1]), DNS_PORT)
                    return


def _address(text: str) -> str:
    """As Python writes it, without a zone. Raises ValueError."""
    return str(ip_address(ip_address(text).packed))


def _resolv_conf(pid: int) -> bytes:
    """Raises OSError. No symbolic link is followed: the pod could name files of the node's."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    opened = [os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        opened.append(os.open("etc", flags | os.O_DIRECTORY, dir_fd=opened[-1]))
        opened.append(os.open("resolv.conf", flags, dir_fd=opened[-1]))
        is_file = S_ISREG(os.fstat(opened[-1]).st_mode)
        return os.read(opened[-1], files.SIZE_LIMIT) if is_file else b""
    finally:
        for fd in opened:
            os.close(fd)
