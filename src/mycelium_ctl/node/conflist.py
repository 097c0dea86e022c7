# SPDX-License-Identifier: Apache-2.0
"""A network configuration file as libcni and the plugin take it: what it says, and what is wrong.

The rules of lists are libcni's (libcni/conf.go, `NetworkConfFromBytes` and
`NetworkConfFromFile` of v1.3) and containerd's (go-cni, opts.go, `loadFromConfDir`); those of our
own entries are the plugin's code itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mycelium_cni.cni.config import KEYS, OTHERS_CAPABILITIES, Config, Network
from mycelium_cni.cni.errors import CniError
from mycelium_cni.cni.request import VERSIONS, is_identifier
from mycelium_cni.cni.spelling import meant
from mycelium_cni.kernel.shell import quoted

TYPE: Final = "mycelium-cni"
SUFFIXES: Final = (".conf", ".conflist", ".json")
SIZE_LIMIT: Final = 1 << 20  # bytes; a configuration has hundreds
_WHITE: Final = re.compile(r"[ \t\n\r]*")

# Beside `plugins`: libcni's (libcni/conf.go), and podman's labels.
_LIST_KEYS: Final = (
    *("cniVersion", "cniVersions", "name", "plugins", "args"),
    *("disableCheck", "disableGC", "loadOnlyInlinedPlugins"),
)
_COMMENTS: Final = ("_", "#", "//")

Place = tuple[str | int, ...]  # where in the document: ("plugins", 1, "mtu")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `fatal`: libcni or the plugin refuses the file for it."""

    line: int
    what: str
    mend: str
    fatal: bool = True


@dataclass(frozen=True, slots=True)
class ConfFile:
    """A file of a CNI configuration directory.

    `entries` are our own plugin's configurations in it, each as the runtime would send it on
    standard input: with `name` and `cniVersion`, wherever in the file they stand (Multus'
    delegates included). `better` is the file as it should be, where that can be said.
    """

    path: Path
    network: str = ""
    types: list[str] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    better: str = ""

    @property
    def valid(self) -> bool:
        return not any(fault.fatal for fault in self.faults)


def list_files(directory: Path) -> list[Path]:
    """The files that a runtime reads there, in its order: the first one wins."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.suffix in SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names]


def read(path: Path) -> ConfFile:
    """Read and check a file. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return check(file.read(SIZE_LIMIT + 1), path)


def check(octets: bytes, path: Path) -> ConfFile:
    """Check the bytes of a file; `path` says by its suffix which kind it claims to be."""
    conf = ConfFile(path)
    if len(octets) > SIZE_LIMIT:
        conf.faults.append(Fault(1, "it is larger than 1 MiB", "is this the right file?"))
        return conf
    try:
        text = octets.decode()
        document = json.loads(text, object_pairs_hook=_Object, parse_constant=_refuse)
        lines = _lines(text)
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        conf.faults.append(Fault(line, "it is not UTF-8", "save it as UTF-8"))
    except json.JSONDecodeError as error:
        conf.faults.append(_syntax(error))
    except ValueError as error:  # NaN, or a number of thousands of digits
        conf.faults.append(Fault(1, str(error), "write a number that JSON has"))
    except RecursionError:
        conf.faults.append(Fault(1, "it is nested too deeply", "is this the right file?"))
    else:
        found = _Checker(conf, lines).check(document)
        conf = ConfFile(path, found, conf.types, conf.entries, conf.faults, _better(conf, document))
        conf.faults.sort(key=lambda fault: fault.line)
    return conf


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys were given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.twice: Final = sorted({key for key in keys if keys.count(key) > 1})


class _Checker:
    """The rules, in the order in which a runtime meets them."""

    def __init__(self, conf: ConfFile, lines: dict[Place, int]) -> None:
        self._conf: Final = conf
        self._lines: Final = lines
        self._is_list: Final = conf.path.suffix == ".conflist"

    def _fault(self, at: Place, what: str, mend: str, *, fatal: bool = True) -> None:
        while at not in self._lines:  # the nearest that is there
            at = at[:-1]
        self._conf.faults.append(Fault(self._lines[at], what, mend, fatal))

    def check(self, document: Any) -> str:
        """Check the whole document; the network's name."""
        if not isinstance(document, dict):
            self._fault((), "it holds no object", "put everything between { and }")
            return ""
        for at, value in _objects(document):
            for key in value.twice:
                self._fault(
                    (*at, key),
                    f"{key} is given twice, and the last one counts",
                    "remove one",
                    fatal=False,
                )
        name = self._name(document)
        version = self._version(document)
        if self._is_list:
            self._list(document)
        else:
            self._single(document)
        for at, value in _objects(document):
            if value.get("type") == TYPE:
                self._ours(at, value, document, name, version)
        return name

    def _name(self, document: dict[str, Any]) -> str:
        name = document.get("name")
        if isinstance(name, str) and is_identifier(name):
            return name
        if "name" not in document:
            what = "the network has no name"
        else:
            what = f"the network's name is {json.dumps(name)}"
        # A single configuration inside a NetworkAttachmentDefinition gets its name from Multus.
        self._fault(
            ("name",),
            what,
            'add "name": letters, digits, and _ . - behind the first character',
        )
        return ""

    def _version(self, document: dict[str, Any]) -> str:
        known = f"write one of {', '.join(VERSIONS)}"
        several = document.get("cniVersions", [])
        if not isinstance(several, list) or not all(isinstance(v, str) for v in several):
            self._fault(("cniVersions",), "cniVersions is no list of strings", known)
            several = []
        version = document.get("cniVersion")
        if version is None and not several:
            self._fault(
                ("cniVersion",),
                "there is no cniVersion: runtimes then assume 0.1.0",
                'add "cniVersion": "1.0.0"',
                fatal=False,
            )
            return VERSIONS[0]
        ours = [v for v in VERSIONS if v in (version, *several)]
        if not ours:
            shown = json.dumps(several or version)
            self._fault(("cniVersion",), f"cniVersion {shown} is not one the plugin speaks", known)
        return ours[-1] if ours else VERSIONS[0]

    def _list(self, document: dict[str, Any]) -> None:
        plugins = document.get("plugins")
        if "plugins" not in document:
            if document.get("loadOnlyInlinedPlugins") is not True:
                folder = self._conf.path.parent / str(document.get("name") or "")
                if document.get("name") and any(folder.glob("*.conf")):
                    return  # libcni 1.3 takes the plugins from there
            if "type" in document:
                what = (
                    "a .conflist holds a list, and this file has no plugins: it is a single "
                    "configuration, as .conf files hold it. libcni refuses it (\"no 'plugins' "
                    'key", from 1.3 on "no plugin configs found"), and containerd then loads no '
                    "network at all"
                )
                self._fault((), what, "write it as the list shown below, or rename it to .conf")
            else:
                self._fault((), "there is no plugins list", 'add "plugins": [ {"type": …} ]')
        elif not isinstance(plugins, list):
            self._fault(("plugins",), "plugins is no list", "put it between [ and ]")
        elif not plugins:
            self._fault(("plugins",), "the plugins list is empty", f'add {{"type": "{TYPE}"}}')
        for number, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
            self._type(plugin, ("plugins", number))
        for key in ("disableCheck", "disableGC", "loadOnlyInlinedPlugins"):
            if not isinstance(document.get(key, False), bool):
                self._fault((key,), f"{key} must be true or false", "remove the quotes")
        if TYPE in self._conf.types:
            self._unread(document)

    def _unread(self, document: dict[str, Any]) -> None:
        """Keys beside `plugins` that nobody reads, least of all our plugin."""
        for key in document:
            if key in _LIST_KEYS or key.startswith(_COMMENTS):
                continue
            wanted = meant(key, KEYS)
            if wanted:
                mend = f"move it, as {json.dumps(wanted)}, into the entry of type {TYPE}"
            else:
                near = meant(key, _LIST_KEYS)
                mend = f"did you mean {json.dumps(near)}?" if near else "remove it"
            what = f"nobody reads {json.dumps(key)} beside plugins"
            self._fault((key,), what, mend, fatal=False)

    def _single(self, document: dict[str, Any]) -> None:
        if "plugins" in document:
            self._fault(
                ("plugins",),
                f"a {self._conf.path.suffix} file holds one plugin, and this is a list",
                "rename it to .conflist",
            )
        else:
            self._type(document, ())

    def _type(self, plugin: Any, at: Place) -> None:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if isinstance(kind, str) and kind:
            self._conf.types.append(kind)
        else:
            self._fault(at, "a plugin has no type", f'add "type", such as "{TYPE}"')

    def _ours(
        self, at: Place, entry: dict[str, Any], document: dict[str, Any], name: str, version: str
    ) -> None:
        """Let the plugin itself look at the configuration it would get."""
        # Delegates of Multus are configurations, or lists, with a name and version of their own.
        above: Any = document
        for step in at[:-1]:
            above = above[step]
            if isinstance(above, dict):
                name, version = above.get("name", name), above.get("cniVersion", version)
        sent = {**entry, "name": entry.get("name", name) or name, "cniVersion": version}
        try:
            network = Network(json.dumps(sent).encode())
            network.require_version("ADD")
            for warning in network.warnings():
                self._fault((*at, warning.about), warning.problem, warning.remedy, fatal=False)
            Config(network)
        except CniError as error:
            if error.about == "name" and not name:
                return  # the list's own check has spoken of it
            path = [int(w) if w.isdecimal() else w for w in re.findall(r"\w+", error.about)]
            if error.about in entry:
                path = [error.about]
            mend = error.remedy or error.details or "correct the value"
            self._fault((*at, *path), error.problem, mend)
        else:
            self._conf.entries.append(sent)
            self._unsaid(at, entry, network.log()[1])

    def _unsaid(self, at: Place, entry: dict[str, Any], log: str) -> None:
        """What ADD takes, and will not do."""
        for capability, plugin in OTHERS_CAPABILITIES.items():
            if entry.get("capabilities", {}).get(capability):
                self._fault(
                    (*at, "capabilities", capability),
                    f"the plugin lacks {capability}: pods that ask for it are refused",
                    f"declare it for the plugin that has it ({plugin}) instead",
                    fatal=False,
                )
        folder = Path(log).parent
        if log and (not folder.is_dir() or (Path(log).exists() and not Path(log).is_file())):
            self._fault(
                (*at, "logFile"),
                f"{log} cannot be written: the log goes to standard error",
                f"name a file, and make its folder: mkdir -p {quoted(str(folder))}",
                fatal=False,
            )


def _better(conf: ConfFile, document: Any) -> str:
    """A single configuration in a .conflist, as the list it should be."""
    if conf.path.suffix != ".conflist" or not isinstance(document, dict):
        return ""
    if "plugins" in document or "type" not in document:
        return ""
    inner = {key: v for key, v in document.items() if key not in ("cniVersion", "name")}
    whole = {
        "cniVersion": document.get("cniVersion", "1.0.0"),
        "name": document.get("name", "mycelium"),
        "plugins": [inner],
    }
    return json.dumps(whole, indent=2)


def _objects(value: Any, at: Place = ()) -> Iterator[tuple[Place, _Object]]:
    """Every object of a document, with its place."""
    if isinstance(value, _Object):
        yield at, value
        for key, item in value.items():
            yield from _objects(item, (*at, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _objects(item, (*at, number))


def _lines(text: str) -> dict[Place, int]:
    """The line of every member of a valid document; a member stands where its key stands."""
    lines: dict[Place, int] = {}
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        match = _WHITE.match(text, at)
        return match.end() if match else at

    def mark(path: Place, at: int) -> None:
        lines.setdefault(path, text.count("\n", 0, at) + 1)

    def walk(at: int, path: Place) -> int:
        """Note the value at `at`; where it ends."""
        at = skip(at)
        mark(path, at)
        if text[at] not in "{[":
            return decode(text, at)[1]
        closing, number = "}" if text[at] == "{" else "]", 0
        at = skip(at + 1)
        while text[at] != closing:
            key: str | int = number
            if closing == "}":
                start = at
                key, at = decode(text, at)
                mark((*path, key), start)
                at = skip(at) + 1  # the colon
            at = skip(walk(at, (*path, key)))
            number += 1
            if text[at] == ",":
                at = skip(at + 1)
        return at + 1

    walk(0, ())
    return lines


def _syntax(error: json.JSONDecodeError) -> Fault:
    """Where JSON ends to be JSON, and the usual reasons for it."""
    rest, before = error.doc[error.pos :], error.doc[: error.pos].rstrip()
    if not error.doc.strip():
        return Fault(1, "it is empty", "write one with `mycelium-cni config new`")
    if rest.startswith(("//", "#", "/*")):
        return Fault(error.lineno, "JSON has no comments", "remove the comment")
    if before.endswith(",") and rest[:1] in ("}", "]", ""):
        line = error.doc.count("\n", 0, len(before)) + 1
        return Fault(line, f"a comma before {rest[:1] or 'the end'}", "remove the comma")
    if before.endswith(",") and error.msg.startswith(("Expecting property", "Illegal trailing")):
        return Fault(error.lineno, "a comma with nothing behind it", "remove the comma")
    if rest.startswith("'"):
        return Fault(error.lineno, "JSON takes double quotes only", "write \"…\" for '…'")
    if error.msg.startswith("Expecting ',' delimiter"):
        if not rest:
            return Fault(error.lineno, "the file ends too early", "is it complete? add what lacks")
        return Fault(error.lineno, f"a comma is missing before {rest[:12]!a}", "add the comma")
    what = f"this is no JSON: {error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
    return Fault(error.lineno, what, f"look at {rest[:20]!a}" if rest else "the file ends there")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
