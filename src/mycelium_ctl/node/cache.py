# SPDX-License-Identifier: Apache-2.0
"""The attachments that this node's runtimes know: libcni's cache of results.

libcni writes a file for each attachment once ADD has succeeded, and removes it with DEL (api.go,
`cachedInfo`). The files survive a reboot and the pods do not, so only those count whose
network namespace exists.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelium_cni.kernel import netns
from mycelium_ctl import files
from mycelium_ctl.node.conflist import TYPE

RESULTS: Final = "var/lib/cni/results"
MOST_FILES: Final = 4096


class Cached(NamedTuple):
    """An attachment of ours that a runtime has added and not deleted."""

    network: str
    container: str
    ifname: str
    pod: str  # namespace/name; "" if the runtime did not say


def read_cache(root: Path) -> list[Cached]:
    """Our attachments in the cache. What is not as libcni writes it is skipped."""
    folder = root / RESULTS
    try:
        names = sorted(os.listdir(folder))[:MOST_FILES]  # noqa: PTH208 - names alone
    except OSError:
        return []
    found = []
    for name in names:
        try:
            document = json.loads(files.read(folder / name))
            found += list(_ours(document))
        except (OSError, ValueError, RecursionError):
            continue
    return found


def _ours(document: Any) -> Iterator[Cached]:
    if not isinstance(document, dict):
        return
    words = [document.get(key) for key in ("networkName", "containerId", "ifName")]
    config = json.loads(base64.b64decode(str(document.get("config", ""))))
    listed = config.get("plugins", [config]) if isinstance(config, dict) else []
    types = [each.get("type") for each in listed if isinstance(each, dict)]
    if not all(isinstance(word, str) for word in words) or TYPE not in types:
        return
    result = document.get("result")
    interfaces = result.get("interfaces") if isinstance(result, dict) else None
    sandboxes = (
        {each.get("sandbox") for each in interfaces if isinstance(each, dict)}
        if isinstance(interfaces, list)
        else set()
    )
    if any(_is_netns(path) for path in sandboxes if isinstance(path, str) and path):
        said = dict(pair for pair in document.get("cniArgs") or [] if len(pair) == 2)
        pod = f"{said.get('K8S_POD_NAMESPACE', '')}/{said.get('K8S_POD_NAME', '')}".strip("/")
        network, container, ifname = map(str, words)
        yield Cached(network, container, ifname, pod)


def _is_netns(path: str) -> bool:
    try:
        os.close(netns.open_netns(path))
    except (OSError, ValueError):
        return False
    return True
