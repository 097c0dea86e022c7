# SPDX-License-Identifier: Apache-2.0
"""A network configuration file as libcni and the plugin read it, and what is wrong with it.

The rules of lists are libcni's (libcni/conf.go, `NetworkConfFromBytes` and
`NetworkConfFromFile` of v1.3) and containerd's (go-cni, opts.go, `loadFromConfDir`); our own
entries are checked by the plugin's own code.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from errno import EACCES, EISDIR, ELOOP, ENOENT, EPERM
from itertools import islice
from pathlib import Path
from typing import Any, Final

from mycelium_cni.cni.config import KEYS, OTHERS_CAPABILITIES, Config, Network
from mycelium_cni.cni.errors import CniError
from mycelium_cni.cni.request import VERSIONS, is_identifier
from mycelium_cni.cni.spelling import meant
from mycelium_cni.kernel.shell import quoted
from mycelium_ctl import files
from mycelium_ctl.node import lenient
from mycelium_ctl.node.lenient import Fault, Object, Place

TYPE: Final = "mycelium-cni"
MOST_FAULTS: Final = 100  # of one file
SUFFIXES: Final = (".conf", ".conflist", ".json")

# Beside `plugins`: libcni's (libcni/conf.go), and podman's labels.
_LIST_KEYS: Final = (
    *("cniVersion", "cniVersions", "name", "plugins", "args"),
    *("disableCheck", "disableGC", "loadOnlyInlinedPlugins"),
)
# They work on what a plugin before them made (prevResult).
_NOT_FIRST: Final = ("portmap", "bandwidth", "firewall", "sbr", "tuning", "vrf")
_NEARLY: Final = ("mycelium", "myceliumcni", "mycellium", "mycelliumcni", "myceliumcniplugin")
_COMMENTS: Final = ("_", "#", "//")


class ConfFile:
    """A file of a CNI configuration directory.

    `entries` are our own plugin's configurations in it, each as the runtime would send it on
    standard input: with `name` and `cniVersion`, wherever in the file they stand (Multus' delegates
    included). `better` is the corrected file, where it can be derived. `hidden`: this user cannot
    read it; `skipped`: runtimes do not read it.
    """

    def __init__(
        self,
        path: Path,
        faults: list[Fault],
        *,
        hidden: bool = False,
        skipped: bool = False,
    ) -> None:
        self.path: Final = path
        self.network = ""
        self.types: Final[list[str]] = []
        self.needs: Final[list[str]] = []  # executables: of these types, and of their ipam
        self.entries: Final[list[dict[str, Any]]] = []
        self.faults: Final = faults
        self.better = ""
        self.hidden: Final = hidden
        self.skipped: Final = skipped

    @property
    def valid(self) -> bool:
        return not any(fault.fatal for fault in self.faults)


def list_files(directory: Path) -> list[Path]:
    """The files that a runtime reads there, in its order: the first one wins. Raises OSError."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.suffix in SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names]


def read(path: Path) -> ConfFile:
    """Read and check a file. An unreadable file is a fault like others: nothing foreign may
    stop a command. Raises FileNotFoundError if it does not exist."""
    try:
        return check(files.read(path), path)
    except OSError as error:
        return _unreadable(path, error)


def _unreadable(path: Path, error: OSError) -> ConfFile:
    link = f"it is a symbolic link to {path.readlink()}" if path.is_symlink() else ""
    remove = f"remove it: rm {quoted(str(path))}"
    if error.errno in (EACCES, EPERM):
        fault = Fault(0, f"it cannot be read: {error.strerror}", "look at it as root", fatal=False)
        return ConfFile(path, [fault], hidden=True)
    if error.errno == EISDIR and not link:
        fault = Fault(0, "it is a directory, and runtimes skip it", "remove it", fatal=False)
        return ConfFile(path, [fault], skipped=True)
    if error.errno == ENOENT and not link:
        raise error
    if error.errno == ENOENT:
        return ConfFile(path, [Fault(0, f"{link}, which is not there", remove)])
    if error.errno == ELOOP:
        return ConfFile(path, [Fault(0, f"{link}, a loop", remove)])
    what = f"{link}: {error.strerror}" if link else error.strerror or str(error)
    return ConfFile(path, [Fault(0, what, remove)])


def check(octets: bytes, path: Path) -> ConfFile:
    """Check the bytes of a file; the suffix of `path` tells its kind."""
    if len(octets) > files.SIZE_LIMIT:
        fault = Fault(0, "it is larger than 1 MiB", "is this the right file?")
        return ConfFile(path, [fault])
    parsed = lenient.parse(octets)
    conf = ConfFile(path, parsed.faults)
    if not parsed.readable:
        return conf
    conf.network = _Checker(conf, parsed.lines).check(parsed.document)
    conf.faults.sort(key=lambda fault: fault.line)
    conf.better = _better(conf, parsed.document)
    return conf


class _Checker:
    """The checks, in the order in which a runtime makes them."""

    def __init__(self, conf: ConfFile, lines: dict[Place, int]) -> None:
        self._conf: Final = conf
        self._lines: Final = lines
        self._is_list: Final = conf.path.suffix == ".conflist"

    def _fault(self, at: Place, what: str, remedy: str, *, fatal: bool = True) -> None:
        while at not in self._lines:  # the nearest that exists
            at = at[:-1]
        faults = self._conf.faults
        if len(faults) < MOST_FAULTS:
            faults.append(Fault(self._lines[at], what, remedy, fatal))
        elif fatal and self._conf.valid:
            faults[-1] = Fault(self._lines[at], what, remedy)

    def check(self, document: Any) -> str:
        """Check the whole document; the network's name."""
        if isinstance(document, str) and document.lstrip()[:1] in ("{", "["):
            remedy = "remove the quotes around it, and every \\ before those inside"
            self._fault((), "all of it is in quotes, as one string", remedy)
            return ""
        if not isinstance(document, dict):
            self._fault((), "it has no object", "put everything between { and }")
            return ""
        if "apiVersion" in document and "kind" in document:
            remedy = "give it to kubectl apply, and check the text of its spec.config"
            self._fault((), "it is a Kubernetes manifest", remedy)
            return ""
        for at, value in _objects(document):
            for key in value.twice:
                self._fault(
                    (*at, key),
                    f"{key[:60]} is given twice, and the last one counts",
                    "remove one",
                    fatal=False,
                )
            for key, item in value.items():
                if isinstance(item, str) and re.match(r"\s*[{\[]\s*[\"{\[]", item):
                    self._fault(
                        (*at, key),
                        f"{key[:60]} is a string that holds JSON",
                        "remove the quotes around it, and every \\ before those inside",
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
        rule = "letters, digits and, after the first character, _ . -"
        # A single configuration inside a NetworkAttachmentDefinition gets its name from Multus.
        if "name" not in document:
            self._fault((), "the network has no name", f'add "name": {rule}')
        else:
            fit = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII) if isinstance(name, str) else ""
            fit = fit[:60].lstrip("_.-")
            remedy = f"write {json.dumps(fit)}; it takes {rule}" if fit else f"it takes {rule}"
            self._fault(("name",), f"the network's name is {_shown(name)}", remedy)
        return ""

    def _version(self, document: dict[str, Any]) -> str:
        known = f"write one of {', '.join(VERSIONS)}"
        several = document.get("cniVersions", [])
        if not isinstance(several, list) or not all(isinstance(v, str) for v in several):
            self._fault(("cniVersions",), "cniVersions is not a list of strings", known)
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
            shown = _shown(several or version)
            # As 1.0, or "v1.0.0".
            digits = re.search(r"\d+(\.\d+)*", str(version))
            near = [v for v in VERSIONS if digits and f"{digits[0]}.0".startswith(v)]
            near += [v for v in VERSIONS if digits and v == digits[0]]
            remedy = f'write "{near[-1]}"' if near and not several else known
            self._fault(("cniVersion",), f"cniVersion {shown} is not one the plugin speaks", remedy)
        return ours[-1] if ours else VERSIONS[0]

    def _list(self, document: dict[str, Any]) -> None:
        plugins = document.get("plugins")
        if "plugins" not in document:
            if document.get("loadOnlyInlinedPlugins") is not True:
                name = document.get("name")
                inlined = isinstance(name, str) and is_identifier(name)
                if inlined and any((self._conf.path.parent / str(name)).glob("*.conf")):
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
            self._fault(("plugins",), "plugins is not a list", "put it between [ and ]")
        elif not plugins:
            self._fault(("plugins",), "the plugins list is empty", f'add {{"type": "{TYPE}"}}')
        for number, plugin in enumerate(plugins if isinstance(plugins, list) else ()):
            self._type(plugin, ("plugins", number))
        self._order()
        for key in ("disableCheck", "disableGC", "loadOnlyInlinedPlugins"):
            if not isinstance(document.get(key, False), bool):
                self._fault((key,), f"{key} must be true or false", "remove the quotes")
        if TYPE in self._conf.types:
            self._unread(document)

    def _unread(self, document: dict[str, Any]) -> None:
        """Keys beside `plugins` that neither libcni nor our plugin reads."""
        for key in islice(document, MOST_FAULTS):
            if key in _LIST_KEYS or key.startswith(_COMMENTS):
                continue
            wanted = meant(key, KEYS)
            if wanted:
                remedy = f"move it, as {json.dumps(wanted)}, into the entry of type {TYPE}"
            else:
                near = meant(key, _LIST_KEYS)
                remedy = f"did you mean {json.dumps(near)}?" if near else "remove it"
            what = f"{_shown(key)} beside plugins is ignored"
            self._fault((key,), what, remedy, fatal=False)

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
        if isinstance(plugin, list):
            self._fault(at, "a list is in the list of plugins", "remove the inner [ and ]")
            return
        if not isinstance(kind, str) or not kind:
            self._fault(at, "a plugin has no type", f'add "type", such as "{TYPE}"')
            return
        self._conf.types.append(kind)
        self._conf.needs.append(kind)
        ipam = plugin.get("ipam")
        if kind != TYPE and isinstance(ipam, dict) and isinstance(ipam.get("type"), str):
            self._conf.needs.append(ipam["type"])
        if "/" in kind:
            name = kind.rstrip("/").rpartition("/")[2]
            what = f"type {_shown(kind)} is a path, which libcni refuses"
            self._fault((*at, "type"), what, f"write {json.dumps(name[:60])}")
        elif kind != TYPE and re.sub(r"[\W_]", "", kind.lower()) in _NEARLY:
            what = f"type {_shown(kind)} is not this plugin"
            self._fault((*at, "type"), what, f'did you mean "{TYPE}"?', fatal=False)

    def _order(self) -> None:
        """Plugins that cannot work in this order."""
        types = self._conf.types
        if types and types[0] in _NOT_FIRST and TYPE in types:
            self._fault(
                ("plugins", 0),
                f"{types[0]} comes first, and needs the addresses of a plugin before it",
                f"move it after {TYPE}",
                fatal=False,
            )
        if types.count(TYPE) > 1:
            second = types.index(TYPE, types.index(TYPE) + 1)
            self._fault(
                ("plugins", second),
                f"{TYPE} is in the list twice: a network has one policy, that of the last",
                "make two networks of it, the second one through Multus",
                fatal=False,
            )

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
        # `_name` has reported an invalid name.
        name = entry.get("name") or name or "unnamed"
        sent = {**entry, "name": name, "cniVersion": version}
        network = self._refusals(at, sent)
        if network:
            self._conf.entries.append(sent)
            self._without_effect(at, entry, network.log()[1])

    def _refusals(self, at: Place, sent: dict[str, Any]) -> Network | None:
        """Note all that the plugin refuses. It names one fault at a time: take that member out
        and ask again. Returns the network if there is no fault."""
        trial, network, warned = copy.deepcopy(sent), None, False
        told: set[Place] = set()
        while len(told) < MOST_FAULTS:
            try:
                network = Network(json.dumps(trial).encode())
                network.require_version("ADD")
                for warning in network.warnings() if not warned else ():
                    place = _place(warning.about, trial)
                    self._fault((*at, *place), warning.problem, warning.remedy, fatal=False)
                warned = True
                Config(network)
            except CniError as error:
                place = _place(error.about, trial)
                if place not in told:
                    remedy = error.remedy or error.details or "correct the value"
                    self._fault((*at, *place), error.problem, remedy)
                key = place[0] if place else ""
                if key not in trial or key in ("name", "cniVersion", "type"):
                    return None
                if place in told or not _amend(trial, place):
                    del trial[key]
                told.add(place)
            else:
                return None if told else network
        return None

    def _without_effect(self, at: Place, entry: dict[str, Any], log: str) -> None:
        """What ADD accepts and will not do."""
        for capability, plugin in OTHERS_CAPABILITIES.items():
            if (entry.get("capabilities") or {}).get(capability):
                self._fault(
                    (*at, "capabilities", capability),
                    f"the plugin does not have {capability}: pods that ask for it are refused",
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


def _place(about: str, document: dict[str, Any]) -> Place:
    """Where what an error is about stands: a key, or `routes[0].dst`."""
    if about in document:
        return (about,)
    return tuple([int(word) if word.isdecimal() else word for word in re.findall(r"\w+", about)])


def _amend(document: Any, place: Place) -> bool:
    """Remove the member that the plugin refuses; in a list put a valid one in its place, so that
    later entries keep their numbers. False: there is no such place."""
    *above, last = place
    try:
        for step in above:
            document = document[step]
        if last == "dst":
            document |= _good_route(int(above[-1]))
        elif isinstance(last, int):
            document[last] = _good_route(last) if above == ["routes"] else "400::/7"
        else:
            del document[last]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _good_route(number: int) -> dict[str, Any]:
    """A valid route, different from all others of its list."""
    return {"dst": "400::/7", "priority": 2**32 - 1 - number}


def _shown(value: Any) -> str:
    """A value for a message: untrusted names have no limit."""
    text = json.dumps(value)
    return text if len(text) < 100 else f"{text[:96]}..."


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


def _objects(value: Any, at: Place = ()) -> Iterator[tuple[Place, Object]]:
    """Every object of a document, with its place."""
    if isinstance(value, Object):
        yield at, value
        for key, item in value.items():
            yield from _objects(item, (*at, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _objects(item, (*at, number))
