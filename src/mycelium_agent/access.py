# SPDX-License-Identifier: Apache-2.0
"""Where the Kubernetes API is, and as whom it is asked: a pod's service account, or a kubeconfig.

The files are read for each request, because tokens and certificates are renewed.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from mycelium_ctl import files, host, programs

SECRETS: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # what a kubelet gives every pod

# Kubeconfigs are YAML as Go writes it, or JSON: in both, a key and its value are on one line.
_KEYS: Final = (
    *("server", "tls-server-name", "certificate-authority", "certificate-authority-data"),
    *("client-certificate", "client-certificate-data", "client-key", "client-key-data"),
    *("token", "tokenFile"),
)
_PAIR: Final = re.compile(
    rf"""(?:^|[\s{{,])["']?({"|".join(_KEYS)})["']?\s*:\s*["']?([^\s"',}}]+)"""
)


class Access(NamedTuple):
    """`addresses`: of the server, each is tried. `name`: what its certificate is for. `authority`:
    certificates, PEM. Who asks has a token, or a certificate with its key, PEM."""

    addresses: list[str]
    port: int
    name: str
    authority: str
    token: str = ""
    certificate: bytes = b""


def service_account(address: str, port: int, secrets: str = SECRETS) -> Access:
    """Of the pod that this process is. Raises ValueError."""
    try:
        token, authority = (
            host.read_own(f"{secrets}/{name}").decode().strip() for name in ("token", "ca.crt")
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"no service account in {secrets}: {error}") from error
    return Access([address], port, address, authority, token)


def kubeconfig(path: Path) -> Access:
    """What a kubeconfig with one cluster and one user says, such as a kubelet's. Raises ValueError.

    https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
    """
    try:
        return _Kubeconfig(path).access()
    except (OSError, ValueError) as error:
        raise ValueError(f"kubeconfig {path}: {error}") from error


class _Kubeconfig:
    def __init__(self, path: Path) -> None:
        text = re.sub(r"^\s*#.*", "", files.read(path).decode(), flags=re.MULTILINE)
        self._folder: Final = path.parent
        self._said: Final = dict(_PAIR.findall(text))
        if len(set(_PAIR.findall(text))) > len(self._said):
            raise ValueError(
                "it has several clusters or users; `kubectl config view --minify --flatten --raw` "
                "prints one"
            )

    def access(self) -> Access:
        said = self._said
        server = urlsplit(said.get("server", ""))
        if server.scheme != "https" or not server.hostname:
            raise ValueError("it names no server with https")
        authority = self._content("certificate-authority").decode()
        if not authority:
            raise ValueError("it names no certificate-authority")
        token = said.get("token") or self._read(said.get("tokenFile")).decode().strip()
        certificate = self._content("client-certificate") + b"\n" + self._content("client-key")
        if not token and not certificate.strip():
            raise ValueError(
                "it has neither token nor client-certificate, and programs that get one are not run"
            )
        name = said.get("tls-server-name") or server.hostname
        addresses = _resolve(server.hostname)
        return Access(addresses, server.port or 443, name, authority, token, certificate.strip())

    def _content(self, key: str) -> bytes:
        """Of a file, or what stands in its place."""
        if data := self._said.get(f"{key}-data"):
            return base64.b64decode(data, validate=True)
        return self._read(self._said.get(key))

    def _read(self, name: str | None) -> bytes:
        return files.read(self._folder / name) if name else b""


def _resolve(name: str) -> list[str]:
    """The addresses of a server. The node's own libc is asked: a static executable must not load
    the modules that nsswitch.conf names. Raises OSError, ValueError."""
    if re.fullmatch(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*", name):
        return [name]
    import subprocess

    try:
        found = programs.run(("getent", "ahosts", "--", name)).stdout
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{name} is not resolved within {error.timeout} s") from error
    if not found:
        raise ValueError(f"{name} is not resolved")
    return list(dict.fromkeys(line.split()[0] for line in found.splitlines()))
