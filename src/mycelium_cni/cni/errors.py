# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, in the words and numbers of the CNI specification."""

from __future__ import annotations

from errno import (
    EACCES,
    EAGAIN,
    EINTR,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENODEV,
    ENOMEM,
    ENOPROTOOPT,
    EOPNOTSUPP,
    EPERM,
    EROFS,
)

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
NODE_MISCONFIGURED = 100  # the node must be fixed; trying again does not help
ADDRESS_TAKEN = 101  # the requested address belongs to the node or to another attachment
ALREADY_ATTACHED = 102  # ADD of an attachment, or of a pod link, that is there
ATTACHMENT_BROKEN = 103  # CHECK: the attachment is not, or no longer, what ADD made
KERNEL_REFUSED = 104  # the kernel refused a step; ADD has taken back everything before it


class CniError(Exception):
    """What a failed call says: a code, what is wrong and what to do about it, each by itself.

    `problem` names the object and is complete in itself. `about` is the key of the configuration
    (`routes[0].dst`) or the object (a link, a file, a variable) that is at fault, '' if there is no
    single one. What to do is `run`, commands for root's shell that work as they stand, or `advice`,
    in words, or both. The message makes sense without `details`: kubelet shows them, other programs
    do not.
    """

    def __init__(
        self,
        code: int,
        problem: str,
        advice: str = "",
        *,
        run: str = "",
        about: str = "",
        details: str = "",
    ) -> None:
        super().__init__(problem)
        self.code = code
        self.problem: Final = problem
        self.advice: Final = advice
        self.run: Final = run
        self.about: Final = about
        self.details: Final = details

    @property
    def remedy(self) -> str:
        """What to do, in one line; '' if nobody can say."""
        command = f"run `{self.run}`" if self.run else ""
        return "; ".join([part for part in (command, self.advice) if part])

    @property
    def msg(self) -> str:
        """The line that a runtime shows: the problem, and what to do."""
        return f"{self.problem}: {self.remedy}" if self.remedy else self.problem

    def with_notes_of(self, error: BaseException) -> CniError:
        """This error, with the notes of `Undo` on the error that caused it."""
        for note in getattr(error, "__notes__", ()):
            self.add_note(note)
        return self


def describe(error: OSError) -> str:
    """Why the kernel refused something, with the name of the file, if it was one."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def refusal(error: OSError, doing: str = "") -> CniError:
    """The error for a step of `doing` that the kernel refused: KERNEL_REFUSED with the remedy for
    this errno; TRY_AGAIN_LATER if a resource has run out, NODE_MISCONFIGURED if the kernel lacks a
    feature.
    """
    number, code, advice = error.errno, KERNEL_REFUSED, ""
    if number in (EPERM, EACCES):
        advice = "run it as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
    elif number == EROFS:
        advice = "run it on the host, or with /proc/sys writable"
    # nf_tables uses the same two for full sets and chains (NetlinkError).
    elif number in (EMFILE, ENFILE) and type(error) is OSError:
        code = TRY_AGAIN_LATER
        limit = "fs.file-max" if number == ENFILE else "LimitNOFILE of the container runtime"
        advice = f"end processes that hold them, or raise {limit}"
    elif number == ENODEV:
        code, advice = TRY_AGAIN_LATER, "another program removed or moved the link during the call"
    elif number in (ENOMEM, ENOBUFS):
        code, advice = TRY_AGAIN_LATER, "the node is short of memory"
    elif number in (EINTR, EAGAIN):
        code, advice = TRY_AGAIN_LATER, "the kernel was interrupted"
    elif number in (EOPNOTSUPP, ENOPROTOOPT):
        code = NODE_MISCONFIGURED
        advice = "the kernel must be Linux 5.5 or newer, with veth, bridge and IPv6 policy routing"
    problem = f"{doing}: {describe(error)}" if doing else describe(error)
    return CniError(code, problem, advice, about=error.filename or "").with_notes_of(error)
