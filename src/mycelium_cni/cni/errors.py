# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, in the words and numbers of the CNI specification."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__version__ = "0.1.0"

# Well-known codes: CNI SPEC.md, section "Error"; 8 and 999 are libcni's (pkg/types/types.go).
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN_LATER = 11
PLUGIN_NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51
INTERNAL = 999

# Ours: the specification leaves 100 and above to the plugin.
NODE_MISCONFIGURED = 100  # somebody must mend the node; trying again does not help
ADDRESS_TAKEN = 101  # the requested address belongs to the node or to another attachment
ALREADY_ATTACHED = 102  # ADD of an attachment, or of a pod link, that is there
ATTACHMENT_BROKEN = 103  # CHECK: the attachment is not, or no longer, what ADD made
KERNEL_REFUSED = 104  # the kernel refused a step; ADD has taken back everything before it


class CniError(Exception):
    """The one error object a CNI call may print: a code, a line for the pod's events, details.

    `details` must not be needed to understand `msg`: kubelet shows both, other tools only `msg`.
    """

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code: Final = code
        self.msg: Final = msg
        self.details: Final = details

    def with_notes_of(self, error: BaseException) -> CniError:
        """The same error, its details telling what `Undo` noted on `error`."""
        notes = [self.details, *getattr(error, "__notes__", ())]
        return CniError(self.code, self.msg, "; ".join([note for note in notes if note]))


def describe(error: OSError) -> str:
    """What the kernel refused and why, with the file it was asked of, if it was one."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
