# SPDX-License-Identifier: Apache-2.0
"""What the operator's tool raises when it cannot go on."""

from __future__ import annotations

import errno


class ToolError(Exception):
    """One line for a person: what failed, on which object, and what to do about it.

    `cli.main` prints it on standard error and exits 1. Anything else that gets there is a bug of
    ours and keeps its traceback.
    """


def refused(error: OSError) -> str:
    """A line for what the kernel refused."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{reason}: run it as root (or with CAP_NET_ADMIN)"
    if error.errno == errno.EROFS:
        return f"{error.filename}: read-only; run it in the host, or with /proc/sys writable"
    return f"{error.filename}: {reason}" if error.filename else reason
