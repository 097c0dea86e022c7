# SPDX-License-Identifier: Apache-2.0
"""Report a finished call to the agent, if one runs: nothing waits for it, nothing is stored."""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_DGRAM, SOCK_NONBLOCK, socket
from time import monotonic

# In the abstract namespace, of which each network namespace has its own (unix(7)): no file is left
# behind, and containers need not share a directory.
ADDRESS = b"\0mycelium-cni calls"


def report(verb: str, code: int, started: float) -> None:
    """Send the verb, its error code (0: none) and the microseconds since `started`. If no agent
    listens, or it reads too slowly, the report is lost."""
    try:
        sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
        if not sender.connect_ex(ADDRESS):  # raises nothing: usually nobody listens
            took = (monotonic() - started) * 1e6
            sender.send(f"{verb} {code} {took:.0f}".encode())
        sender.close()
    except OSError:
        return
