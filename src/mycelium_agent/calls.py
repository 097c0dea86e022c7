# SPDX-License-Identifier: Apache-2.0
"""Counts the plugin's calls: each sends one datagram (mycelium_cni.cni.report)."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter, defaultdict
from typing import Final

from mycelium_cni.cni.report import ADDRESS
from mycelium_cni.verbs import VERBS

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: process, user, group
_LONGEST: Final = 64  # bytes of a datagram


class Calls:
    """`number`: of calls, by verb and error code; `seconds`: what they took, by verb. A call that
    ends while too many others wait to be read is not counted."""

    def __init__(self) -> None:
        self.number: Final[Counter[tuple[str, int]]] = Counter()
        self.seconds: Final[defaultdict[str, float]] = defaultdict(float)

    def start(self) -> None:
        """Count from now on, until the process ends. Raises OSError if the address is taken,
        which any user can do."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            listener.bind(ADDRESS)
        except OSError:
            listener.close()
            raise
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()

    def _listen(self, listener: socket.socket) -> None:
        room = socket.CMSG_SPACE(_CREDENTIALS.size)
        while True:
            word, beside, _, _ = listener.recvmsg(_LONGEST, room)
            for level, kind, octets in beside:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    _, user, _ = _CREDENTIALS.unpack(octets)
                    if user == 0:  # any user can send
                        self._count(word)

    def _count(self, word: bytes) -> None:
        """A datagram of another form than the plugin sends is ignored."""
        try:
            verb, code, microseconds = word.decode().split(" ")
            number, took = int(code), int(microseconds)
        except ValueError:
            return
        if verb in VERBS:
            self.number[verb, number] += 1
            self.seconds[verb] += took / 1e6
