# SPDX-License-Identifier: Apache-2.0
"""Collect what a bug report needs into one archive, without secrets.

The archive holds what `version`, `status`, `doctor`, `list` and `setup --dry-run` say, links,
addresses, routes, the packet filter, the kernel's settings, network configurations, the answers of
the daemon's API, and the last lines of the logs that concern Mycelium. It does not hold the node's
key or environment variables. What resembles a secret is masked, and so is each string of a network
configuration whose key is not known to be harmless. Pod names and addresses are in it: look through
it before you send it.

    mycelium-cni sysdump
    mycelium-cni sysdump --output /tmp/node-7.tar.gz
    tar -xOzf mycelium-cni-sysdump-*.tar.gz --wildcards '*/README.txt'
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from mycelium_cni.cni.errors import CniError
from mycelium_cni.node import subnet
from mycelium_ctl import files, programs
from mycelium_ctl.errors import refused
from mycelium_ctl.masking import Masker
from mycelium_ctl.node import conflist, lenient, options
from mycelium_ctl.node.options import Options
from mycelium_ctl.node.state import State
from mycelium_ctl.view import Page, count
from mycelium_lab.own import own_executable

OWN_S: Final = 120.0  # `doctor` on a node with a thousand pods
PROGRAM_S: Final = 20.0
MOST_BYTES: Final = 8 << 20  # of one file of the archive
LOG_LINES: Final = 500

OWN: Final = {
    "version.json": ("version", "--json"),
    "status.json": ("status", "--json"),
    "doctor.json": ("doctor", "--json"),
    "list.json": ("list", "--json"),
    "setup.txt": ("setup", "--dry-run"),
}
PROGRAMS: Final = {
    "ip/links.json": ("ip", "-j", "-d", "-s", "link"),
    "ip/addresses.json": ("ip", "-j", "address"),
    "ip/routes6.json": ("ip", "-j", "-6", "route", "show", "table", "all"),
    "ip/routes4.json": ("ip", "-j", "-4", "route", "show", "table", "all"),
    "ip/rules6.json": ("ip", "-j", "-6", "rule"),
    "ip/neighbours.json": ("ip", "-j", "-d", "neighbour"),
    "ip/proxies.json": ("ip", "-j", "-6", "neighbour", "show", "proxy"),
    "ip/bridge-ports.json": ("bridge", "-j", "-d", "link"),
    "ip/bridge-fdb.json": ("bridge", "-j", "fdb"),
    "nft/ruleset.txt": ("nft", "list", "ruleset"),
    "nft/ruleset.json": ("nft", "-j", "list", "ruleset"),
}
UNITS: Final = (
    "mycelium mycelium-cni-setup mycelium-cni-agent containerd crio k3s k3s-agent kubelet"
)
# Below /proc/sys. A link's stable_secret is one (net/ipv6/addrconf.c), as is the TCP fast open key.
SYSCTLS: Final = (
    *("net/ipv6/*", "net/ipv6/route/*", "net/ipv6/neigh/default/*", "net/core/*mem_max"),
    *("net/ipv4/ip_forward", "net/ipv4/conf/all/*", "net/netfilter/nf_conntrack_[bcm]*"),
    "kernel/osrelease",
)
_LOG_LINE: Final = re.compile(rb"[\dTZ:-]+ (?:error|warning|info|debug) mycelium-cni ")
_SECRET_SYSCTL: Final = re.compile("secret|key")


class Piece(NamedTuple):
    """A file of the archive, before it is masked."""

    name: str
    octets: bytes
    source: str  # where it comes from, and what went wrong


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of one in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Collect, mask, write; 0 if the archive was written, whatever it says of the node."""
    where = options.read(arguments)
    state = State(where)
    stem = f"mycelium-cni-sysdump-{_host()}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    output: Path = arguments.output or Path(f"{stem}.tar.gz")
    masker = Masker(known_secrets(state))
    page = Page()
    buffer, sources = io.BytesIO(), []
    with page.busy("collecting …"), tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for piece in _pieces(where, state):
            before = masker.masked
            text = _masked(masker, piece)
            said = f"{count(masker.masked - before, 'value')} masked"
            sources.append(f"{piece.name:28}  {piece.source}; {said}")
            _add(archive, f"{stem}/{piece.name}", text)
        intro = f"{__doc__.splitlines()[0]}\n\n"
        contents = masker.text(os.fsencode("\n".join(sources)))  # names of files may hold any byte
        _add(archive, f"{stem}/README.txt", f"{intro}{contents}\n")
    files.write(output, buffer.getvalue(), mode=0o600)
    if arguments.json:
        document = {"file": str(output), "files": len(sources), "masked": masker.masked}
        print(json.dumps(document, indent=2))
    else:
        page.say(
            f"{output}: {count(len(sources), 'file')}, {count(masker.masked, 'value')} masked; "
            "it contains pod names and addresses, so look through it before you send it"
        )
    return 0


def _host() -> str:
    return re.sub(r"[^\w.-]", "-", socket.gethostname(), flags=re.ASCII)[:64] or "node"


def _masked(masker: Masker, piece: Piece) -> str:
    if piece.name.startswith("cni/"):
        parsed = lenient.parse(piece.octets)
        if not parsed.readable:
            return "(left out: doctor.json says what is wrong with it)\n"
        note = "// as config check understands it: the file is not JSON\n" if parsed.faults else ""
        return note + masker.configuration(parsed.document)
    if piece.name.endswith(".json") and piece.octets:
        try:
            return masker.json(piece.octets)
        except (ValueError, RecursionError):
            pass  # a program that fails may print anything
    return masker.text(piece.octets)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    octets = text.encode(errors="backslashreplace")
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(octets), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(octets))


def known_secrets(state: State) -> set[bytes]:
    """The known secrets of this node: its keys, and environment variables named like secrets, the
    daemon's too."""
    known = {
        value
        for process in ("self", state.process)
        for name, _, value in _environment(process)
        if re.search(b"token|secret|pass|key|credential", name, re.IGNORECASE)
    }
    paths = {"/etc/netseed", state.config.netseed, *_key_files(state.process)}
    for directory in state.confs:
        for conf in directory.files:
            paths |= {str(entry.get("netseed") or "") for entry in conf.entries}
    for path in filter(None, paths):
        for place in {path, str(state.where.root / path.lstrip("/"))}:
            try:
                known.add(subnet.read_key(place) or b"")
            except CniError:
                continue  # then nothing that is collected can hold it
    return known


def _environment(process: int | str | None) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The variables with which a process was started: name, "=", value."""
    with suppress(OSError):
        for variable in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            yield variable.partition(b"=")


def _key_files(process: int | None) -> Iterator[str]:
    """The daemon's key file, as its command line names it (-k, --key-file)."""
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return
    words = line.split("\0")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("-k", "--key-file"):
            yield following
        elif word.startswith("--key-file="):
            yield word.partition("=")[2]


def _pieces(where: Options, state: State) -> Iterator[Piece]:
    for name, words in OWN.items():
        looks = [] if words[0] == "version" else options.as_arguments(where)
        yield _said(name, [own_executable(), *words, *looks], OWN_S)
    for name, argv in PROGRAMS.items():
        yield _said(name, argv, PROGRAM_S)
    yield Piece("sysctl.txt", _sysctls(state), "/proc/sys")
    for name in ("etc/os-release", "proc/version", "proc/net/snmp6"):
        yield _file(f"system/{Path(name).name}", Path("/", name))
    modules = _file("system/modules", Path("/proc/modules"))
    # Without the addresses: they would tell where the kernel is (KASLR).
    yield modules._replace(octets=re.sub(rb"0x[0-9a-f]{8,}", b"-", modules.octets))
    yield from _configurations(state)
    answers = json.dumps(state.daemon._asdict(), indent=2).encode()
    yield Piece("daemon.json", answers, f"http://{where.api}/api/v1")
    yield from _logs(state)


def _said(name: str, argv: list[str] | tuple[str, ...], within_s: float) -> Piece:
    """What a program says. Its exit code is part of the answer."""
    shown = " ".join(argv)
    try:
        done = programs.run(argv, within_s=within_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = refused(error) if isinstance(error, OSError) else f"no answer in {within_s:g} s"
        return Piece(name, b"", f"`{shown}`: {why}")
    octets = done.stdout.encode()[:MOST_BYTES]
    trouble = f": {done.stderr.strip()[:500]}" if done.stderr.strip() else ""
    return Piece(name, octets, f"`{shown}`, exit code {done.returncode}{trouble}")


def _file(name: str, path: Path) -> Piece:
    try:
        with path.open("rb") as file:
            return Piece(name, file.read(MOST_BYTES), str(path))
    except OSError as error:
        return Piece(name, b"", f"{path}: {error.strerror}")


def _sysctls(state: State) -> bytes:
    """One `name = value` per line, as sysctl(8) prints them, without those of pods' links."""
    root = Path("/proc/sys")
    own_links = [link.name for link in state.links if not link.ours][:64]
    patterns = [*SYSCTLS, *(f"net/ipv6/conf/{name}/*" for name in ("all", "default"))]
    paths = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    for name in own_links:
        folder = root / "net/ipv6/conf" / name
        paths += sorted(folder.iterdir()) if folder.is_dir() else []
    lines = []
    for path in dict.fromkeys(paths):
        if path.is_file() and not _SECRET_SYSCTL.search(path.name):
            name = str(path.relative_to(root)).replace(".", "%").replace("/", ".")
            try:
                lines.append(f"{name.replace('%', '/')} = {path.read_text().strip()}")
            except OSError:
                continue  # some are for writing only
    return os.fsencode("\n".join(lines))  # names of links may hold any byte


def _configurations(state: State) -> Iterator[Piece]:
    """Every network configuration that a runtime could read, and the executables beside them."""
    for number, directory in enumerate(state.confs):
        folder = directory.dirs.conf
        try:
            paths = conflist.list_files(folder)
        except OSError as error:
            yield Piece(f"cni/{number}.txt", b"", f"{folder}: {refused(error)}")
            continue
        for path in paths:
            try:
                yield Piece(f"cni/{number}/{path.name}", files.read(path), str(path))
            except OSError as error:
                yield Piece(f"cni/{number}/{path.name}", b"", f"{path}: {refused(error)}")
        for bins in directory.dirs.bins:
            name = f"plugins/{number}{str(bins).replace('/', '_')}.txt"
            yield _said(name, ["ls", "-l", "--", str(bins)], PROGRAM_S)


def _logs(state: State) -> Iterator[Piece]:
    """The plugin's own log, and of the units around it the lines that are about Mycelium or CNI."""
    name = str(state.entry.get("logFile") or "")
    if name.startswith("/"):
        try:
            octets = files.read(Path(name), end=True)
        except OSError as error:
            yield Piece("log/plugin.txt", b"", f"{name}: {refused(error)}")
        else:
            # Only the plugin's own lines: `logFile` may name any file.
            ours = [line for line in octets.splitlines() if _LOG_LINE.match(line)]
            yield Piece("log/plugin.txt", b"\n".join(ours[-LOG_LINES:]), name)
    units = [f"--unit={unit}" for unit in UNITS.split()]
    argv = ["journalctl", "--no-pager", "--output=short-iso", f"--lines={LOG_LINES * 10}", *units]
    piece = _said("log/units.txt", argv, PROGRAM_S)
    about = [line for line in piece.octets.splitlines() if re.search(b"(?i)mycelium|cni", line)]
    yield piece._replace(octets=b"\n".join(about[-LOG_LINES:]))
