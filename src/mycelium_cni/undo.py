# SPDX-License-Identifier: Apache-2.0
"""All or nothing: the steps done so far, and how to undo them."""

from __future__ import annotations

from errno import EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH
from posix import O_CLOEXEC, O_PATH, close, open  # type: ignore[attr-defined,unused-ignore]

from mycelium_cni.cni.errors import describe
from mycelium_cni.kernel.facts import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


# It went with something else: a bridge that goes down loses its addresses.
_GONE = (ENOENT, ENODEV, EADDRNOTAVAIL, ESRCH)


class Undo(Steps):
    """The steps taken so far, each beside its undo; on an exception they are undone, newest first.

    An undo that fails does not stop the older ones: its reason becomes a note on the first error
    (PEP 678), which `mycelium_cni.main` adds to the details.

    A step may fail because file descriptors have run out, and an undo needs one. So one is held
    from the start, and closed before the undo.
    """

    __slots__ = ("_held", "_steps")

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self._held = open("/", O_PATH | O_CLOEXEC)

    def push(self, step: Callable[..., object], *arguments: object) -> None:
        self._steps.append((step, arguments))

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        close(self._held)
        if error is None:
            return
        while self._steps:
            step, arguments = self._steps.pop()
            try:
                step(*arguments)
            except OSError as failure:
                if failure.errno not in _GONE:
                    error.add_note(f"not undone: {describe(failure)}")
