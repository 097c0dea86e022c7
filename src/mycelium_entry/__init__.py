# SPDX-License-Identifier: Apache-2.0
"""The entry point: the plugin when a container runtime calls, else the operator's tool.

A package of its own because the plugin may not know the tool (docs/architecture.md), and
because importing the tool's package would cost every pod the milliseconds that the plugin saves.
"""

import sys
from posix import _exit, environ


def main() -> int:
    if environ.get(b"CNI_COMMAND") or len(sys.argv) < 2:  # the bare command prints the about text
        from mycelium_cni.main import main as plugin  # noqa: PLC0415

        return plugin()
    from mycelium_ctl.cli import main as tool  # noqa: PLC0415

    # All is written and closed; to free object by object takes a tenth of a short command's time.
    _exit(tool(sys.argv[1:]))
