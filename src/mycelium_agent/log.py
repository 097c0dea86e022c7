# SPDX-License-Identifier: Apache-2.0
"""One line per event on standard error, for people or as JSON.

Text has no time: journald and container runtimes put one before every line.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Literal

from mycelium_ctl.view import readable

Level = Literal["info", "warning", "error"]


class Log:
    """The log of the agent. Names from aliases and files are untrusted: nothing that is not
    printable gets into a line."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def write(self, level: Level, event: str, **facts: object) -> None:
        """One event; `facts` are for machines."""
        if self._as_json:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = json.dumps({"time": now, "level": level, "event": event, **facts})
        else:
            line = f"{level}: {readable(event)}"
        print(line, file=sys.stderr, flush=True)
