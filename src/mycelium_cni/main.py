# SPDX-License-Identifier: Apache-2.0
"""Environment and standard input in, one JSON document out, the only exit code."""

from __future__ import annotations

import sys
from posix import O_PATH, close, environ, open, read, write  # type: ignore[attr-defined,unused-ignore]

from mycelium_cni.cni.errors import (
    DECODING_FAILURE,
    INTERNAL,
    INVALID_ENVIRONMENT,
    IO_FAILURE,
    KERNEL_REFUSED,
    CniError,
    __version__,
    describe,
)
from mycelium_cni.cni.jsontext import dump, parse
from mycelium_cni.cni.request import VERSIONS, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mycelium_cni.cni.config import Document
    from mycelium_cni.cni.log import Log

_STDIN_LIMIT = 16 << 20  # bytes
_VERSION_PATIENCE_MS = 500


def main() -> int:
    """Serve one CNI call; the exit status is 1 exactly when the document is an error."""
    _occupy_standard_streams()
    try:
        request = Request(environ)
        if request.command == "VERSION":
            _say({"cniVersion": _asked_version(), "supportedVersions": [*VERSIONS]})
            return 0
    except CniError as error:
        return _fail(VERSIONS[-1], None, error)
    except OSError:
        return 1  # VERSION, and nobody listens
    return _serve(request) if request.command else _about()


def _serve(request: Request) -> int:
    # Here, because CRI-O asks for the VERSION of every plugin whenever it reads its configuration,
    # and the answer needs none of these.
    from mycelium_cni.cni.config import Network  # noqa: PLC0415
    from mycelium_cni.cni.log import Log  # noqa: PLC0415
    from mycelium_cni.verbs import VERBS  # noqa: PLC0415

    version = VERSIONS[-1]
    log = None
    try:
        network = Network(_read_stdin())
        if network.cni_version in VERSIONS:
            version = network.cni_version
        if request.command not in VERBS:
            raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {request.command}")
        log = Log(f"{request.command} {request.container}".rstrip(), *network.log())
        network.require_version(request.command)
        if request.command == "ADD":
            for warning in network.warnings():
                log.write("warning", warning.msg)
        log.write("info", VERBS[request.command](request, network, _say))
    except CniError as error:
        return _fail(version, log, error)
    except OSError as error:
        refused = CniError(KERNEL_REFUSED, describe(error))
        return _fail(version, log, refused.with_notes_of(error))
    except Exception as error:  # a runtime must be answered whatever happens
        bug = CniError(INTERNAL, f"bug in mycelium-cni: {type(error).__name__}: {error}")
        return _fail(version, log, bug.with_notes_of(error))
    return 0


def _occupy_standard_streams() -> None:
    """Whoever closes our standard streams must not have the next socket take their place."""
    while (fd := open("/", O_PATH)) < 3:
        pass
    close(fd)


def _read_stdin() -> bytes:
    """All of standard input. Raises CniError (IO_FAILURE, DECODING_FAILURE)."""
    chunks = []
    size = 0
    try:
        while chunk := read(0, 1 << 16):
            chunks.append(chunk)
            size += len(chunk)
            if size > _STDIN_LIMIT:
                raise CniError(
                    DECODING_FAILURE,
                    "error unmarshall network config: it is larger than 16 MiB",
                )
    except OSError as error:
        raise CniError(IO_FAILURE, f"error reading from stdin: {error.strerror}") from None
    return b"".join(chunks)


def _asked_version() -> str:
    """The version that standard input asks for, if it does and it is ours, else the newest.

    Runtimes may leave standard input closed, empty or open for ever: wait for half a second, and
    for no more than one document.
    """
    from select import POLLIN, poll  # noqa: PLC0415 - only VERSION is called with an open stdin

    poller = poll()
    poller.register(0, POLLIN)
    text = b""
    try:
        while poller.poll(_VERSION_PATIENCE_MS) and (chunk := read(0, 1 << 16)):
            text += chunk
            asked = parse(text)
            version = asked.get("cniVersion") if isinstance(asked, dict) else None
            return version if isinstance(version, str) and version in VERSIONS else VERSIONS[-1]
    except (OSError, ValueError):
        pass
    return VERSIONS[-1]


def _say(document: Document) -> None:
    """Write the one document that standard output gets. Raises OSError: closed, or full."""
    text = dump(document).encode() + b"\n"
    while text:
        text = text[write(1, text) :]


def _fail(version: str, log: Log | None, error: CniError) -> int:
    document: Document = {"cniVersion": version, "code": error.code, "msg": _one_line(error.msg)}
    details = [error.details, *getattr(error, "__notes__", ())]
    if any(details):
        document["details"] = _one_line("; ".join([each for each in details if each]))
    if log:
        log.write("error", f"code {error.code}: {error.msg}")
    try:
        _say(document)
    except OSError:
        return 1  # nobody listens; the exit status speaks
    return 1


def _one_line(text: str) -> str:
    """A stranger's names may hold anything; an event in Kubernetes is one line of plain text."""
    return "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])


def _about() -> int:
    text = (
        f"mycelium-cni {__version__}: pods on the Mycelium overlay network\n"
        f"CNI protocol versions supported: {', '.join(VERSIONS)}\n"
        "Operator's commands: mycelium-cni --help\n"
    )
    sys.stderr.write(text)
    return 0
