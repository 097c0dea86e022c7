# SPDX-License-Identifier: Apache-2.0
"""What the operator's tool raises when it cannot go on."""

from __future__ import annotations

from mycelium_cni.cni.errors import refusal


class ToolError(Exception):
    """One line for a person: what failed, on which object, and what to do about it.

    `cli.main` prints it on standard error and exits 1. Anything else that gets there is a bug of
    ours and keeps its traceback.
    """


def refused(error: OSError) -> str:
    """One line for an error of the kernel, in the plugin's words."""
    return refusal(error).msg
