# SPDX-License-Identifier: Apache-2.0
"""From a container onto its node: the node's root directory becomes this process' own."""

from __future__ import annotations

import os

MOST_BYTES = 1 << 20
_container: int | None = None  # the container's root directory, once we have left it


def enter(root: str) -> None:
    """Leave the container's root directory for the node's (docs/adr/0014). Raises OSError."""
    global _container
    _container = os.open("/", os.O_PATH | os.O_DIRECTORY)
    os.chroot(root)
    os.chdir("/")


def read_own(path: str) -> bytes:
    """A file of the container that this process runs in, or of the node if it runs in none. Links
    must be relative, as those are that a kubelet makes. Raises OSError."""
    within = path if _container is None else path.lstrip("/")
    with open(os.open(within, os.O_RDONLY, dir_fd=_container), "rb") as file:  # noqa: PTH123
        return file.read(MOST_BYTES)
