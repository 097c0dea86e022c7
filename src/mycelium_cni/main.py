# SPDX-License-Identifier: Apache-2.0
"""Environment and standard input in, one JSON document and the exit status out."""

from __future__ import annotations

from errno import EMFILE
from posix import O_PATH, close, environ, open, read, write  # type: ignore[attr-defined,unused-ignore]
from select import POLLIN, poll
from time import monotonic

from mycelium_cni.cni.errors import (
    DECODING_FAILURE,
    INTERNAL,
    INVALID_ENVIRONMENT,
    IO_FAILURE,
    CniError,
    __version__,
    refusal,
)
from mycelium_cni.cni.jsontext import dump, parse
from mycelium_cni.cni.request import VERSIONS, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mycelium_cni.cni.config import Document
    from mycelium_cni.cni.log import Log

_STDIN_LIMIT = 16 << 20  # bytes
_VERSION_PATIENCE_MS = 500
# The first line is that of the reference plugins: Nomad reads the version there.
_ABOUT = f"""\
CNI mycelium-cni plugin v{__version__}
CNI protocol versions supported: {", ".join(VERSIONS)}
Pods on the Mycelium overlay network. Operator's commands: mycelium-cni --help
"""


def main() -> int:
    """Serve one CNI call, and answer whatever happens. The exit status is 1 exactly when the
    document is an error."""
    started = monotonic()
    version = VERSIONS[-1]
    verb = ""
    log: Log | None = None
    failure: CniError | None = None
    try:
        _reserve_standard_streams()
        request = Request(environ)
        if not request.command:
            write(2, _ABOUT.encode())
            return 0
        if request.command == "VERSION":
            _say({"cniVersion": _asked_version(), "supportedVersions": [*VERSIONS]})
            return 0
        # Imported here: CRI-O asks every plugin for its VERSION whenever it reads its
        # configuration, and the answer needs none of these, a third of a pip-installed call.
        from mycelium_cni.cni.config import Network  # noqa: PLC0415
        from mycelium_cni.cni.log import Log  # noqa: PLC0415
        from mycelium_cni.cni.report import report  # noqa: PLC0415
        from mycelium_cni.kernel.patience import Patience  # noqa: PLC0415
        from mycelium_cni.verbs import VERBS  # noqa: PLC0415

        Patience.call_end = started + Patience.LIMIT_S
        verb = request.command if request.command in VERBS else ""
        network = Network(_read_stdin(Patience.call_end))
        if network.cni_version in VERSIONS:
            version = network.cni_version
        if not verb:
            raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {request.command}")
        log = Log(f"{verb} {request.container}".rstrip(), *network.log())
        network.require_version(verb)
        if verb == "ADD":
            for warning in network.warnings():
                log.write("warning", warning.msg)
        log.write("info", VERBS[verb](request, network, _say))
    except CniError as error:
        failure = error
    except OSError as error:
        failure = refusal(error)
    except RecursionError as error:  # it could be parsed, but is too deep to be written
        deep = CniError(DECODING_FAILURE, "error unmarshall network config: nested too deeply")
        failure = deep.with_notes_of(error)
    except Exception as error:
        bug = CniError(INTERNAL, f"bug in mycelium-cni: {type(error).__name__}: {error}")
        failure = bug.with_notes_of(error)
    if failure:
        _fail(version, log, failure)
    # A kubelet asks for the STATUS every five seconds.
    if verb not in ("", "STATUS"):
        report(verb, failure.code if failure else 0, started)
    return 1 if failure else 0


def _reserve_standard_streams() -> None:
    """Reserve descriptors 0 to 2 if the runtime has closed them: no socket may get these."""
    try:
        while (fd := open("/", O_PATH)) < 3:
            pass
        close(fd)
    except OSError as error:
        if error.errno != EMFILE:  # all descriptors are taken, these three too
            raise


def _read_stdin(end: float) -> bytes:
    """All of standard input. Raises CniError (DECODING_FAILURE; IO_FAILURE, also at time `end`)."""
    chunks = []
    size = 0
    poller = poll()
    poller.register(0, POLLIN)
    try:
        while True:
            if not poller.poll(max(end - monotonic(), 0) * 1000):
                raise CniError(
                    IO_FAILURE,
                    "error reading from stdin: it does not end",
                    "the runtime must close it after the network configuration",
                )
            chunk = read(0, 1 << 16)
            if not chunk:
                break
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
    """The version that standard input asks for, if we support it, else the newest.

    Runtimes may leave standard input closed, empty or open: wait half a second, for one document.
    """
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
    """Write a document to standard output. Raises OSError: it is closed, or full."""
    text = dump(document).encode() + b"\n"
    while text:
        text = text[write(1, text) :]


def _fail(version: str, log: Log | None, error: CniError) -> None:
    document: Document = {"cniVersion": version, "code": error.code, "msg": _one_line(error.msg)}
    details = [error.details, *getattr(error, "__notes__", ())]
    if any(details):
        document["details"] = _one_line("; ".join([each for each in details if each]))
    if log:
        log.write("error", f"code {error.code}: {error.msg}")
    try:
        _say(document)
    except OSError:
        pass  # standard output is closed or full; the exit status still tells


def _one_line(text: str) -> str:
    """Escape what cannot be printed: names are untrusted, and a Kubernetes event is one line."""
    return "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])
