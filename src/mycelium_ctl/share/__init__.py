# SPDX-License-Identifier: Apache-2.0
"""Files that the tool installs. In the static executable also its list of parts and licences."""

from posixpath import dirname, join
from typing import Any

_LOADER: Any = globals()["__loader__"]


def read(name: str) -> str:
    """The text of one of them. Raises OSError if there is none of this name."""
    content: bytes = _LOADER.get_data(join(dirname(__file__), name))
    return content.decode()
