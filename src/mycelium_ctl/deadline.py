# SPDX-License-Identifier: Apache-2.0
"""Sockets from which reading ends at one moment, however slowly the other side sends."""

from __future__ import annotations

import socket
import time
from typing import Any, Final


class Deadline(socket.socket):
    """Takes a connected socket over. From `within_s` on, reading raises TimeoutError: a timeout
    alone begins anew with each byte."""

    def __init__(self, connected: socket.socket, within_s: float) -> None:
        family, kind, protocol = connected.family, connected.type, connected.proto
        super().__init__(family, kind, protocol, connected.detach())
        self.settimeout(within_s)
        self._end: Final = time.monotonic() + within_s

    def recv_into(self, *arguments: Any) -> int:
        """As socket.recv_into. What `makefile` returns reads with it."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*arguments)
