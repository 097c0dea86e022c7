# SPDX-License-Identifier: Apache-2.0
"""The figures for people and programs: a table, JSON, docs/performance.md, and which targets of
the project they reach."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.candidates import Executables
from bench.measure import (
    BRIDGE,
    BRIDGE_MODE,
    FLOOR,
    FLOOR_BRIDGE,
    KERNEL,
    LOOPBACK,
    PARALLEL,
    PTP,
    STATIC,
    Figures,
    Size,
)
from bench.traffic import GUARDED, UNGUARDED


@dataclass(frozen=True)
class Target:
    """What was promised, and what this run measured."""

    promise: str
    value: float
    limit: float
    unit: str = ""

    @property
    def reached(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "MISSED"
        return f"{self.promise}: {_number(self.value)}{self.unit} ({verdict})"


@dataclass(frozen=True)
class Imported:
    """A module that ADD loads into a Python without `site`, with its own milliseconds."""

    name: str
    ms: float
    origin: str


@dataclass(frozen=True)
class Report:
    """One run of the bench."""

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    size: Size
    figures: Figures
    imports: Sequence[Imported]

    @property
    def targets(self) -> list[Target]:
        """The promises, each against what this same run has measured."""

        def at(measure: str, candidate: str = STATIC) -> float:
            return self.figures[measure][candidate].median

        last = self.size.levels[-1]
        add, delete, peak = at("ADD"), at("DEL"), "peak memory of ADD"
        stale = f"GC of {self.size.stale} stale"
        burst = f"{self.size.burst} ADDs, {PARALLEL[-1]} at a time"
        alone = at(stale, KERNEL)
        packet = self.figures["first packet"][STATIC].p90
        first_add = max(
            at("the node's first ADD", mode) / at("ADD", mode) for mode in (STATIC, BRIDGE_MODE)
        )
        start = at("VERSION") / at("VERSION", LOOPBACK)
        few, many = self.size.tool_levels
        slowest = {
            pods: max(at(f"{command} with {pods} pods") for command in ("list", "status", "doctor"))
            for pods in (few, many)
        }
        lost = max(
            1 - median(map(truediv, by_rules[GUARDED].values, by_rules[UNGUARDED].values))
            for measure, by_rules in self.figures.items()
            if GUARDED in by_rules and measure.startswith("TCP")
        )
        return [
            Target("ADD at most 0.33 x bridge + host-local", add / at("ADD", BRIDGE), 0.33),
            Target("ADD at most 0.01 x ptp + host-local", add / at("ADD", PTP), 0.01),
            Target("ADD at most 1.5 x the C floor", add / at("ADD", FLOOR), 1.5),
            Target("a node's first ADD at most 2.5 x a later one", first_add, 2.5),
            Target("DEL at most 0.5 x bridge + host-local", delete / at("DEL", BRIDGE), 0.5),
            Target("first packet after ADD answered within 5 ms (nine of ten)", packet, 5, " ms"),
            # A wait for each link would be dozens of times what one request for all of them takes.
            Target(f"{stale} in one kernel wait (1.5 x one request)", at(stale) / alone, 1.5),
            *(
                Target(
                    f"ADD of pod {last} at most 1.3 x of one where there are few{mode}",
                    self._last(plugin) / self._few(plugin),
                    1.3,
                )
                for mode, plugin in (("", STATIC), (", bridge mode", BRIDGE_MODE))
            ),
            Target(f"{burst} at most 1.3 x the C floor", at(burst) / at(burst, FLOOR), 1.3),
            Target("peak memory at most 1.5 x the Go plugin's", at(peak) / at(peak, BRIDGE), 1.5),
            Target("the file at most 10 MB", at("size"), 10, " MB"),
            Target(
                f"list, status and doctor with {few} pods within 150 ms", slowest[few], 150, " ms"
            ),
            Target(
                f"list, status and doctor with {many} pods within 500 ms", slowest[many], 500, " ms"
            ),
            Target("VERSION no slower than the Go loopback plugin", start, 1),
            Target("TCP between pods loses at most 5 % to the guard", max(lost, 0) * 100, 5, " %"),
        ]

    def _few(self, candidate: str) -> float:
        """The time of an ADD where there are few pods, in milliseconds. Not that of pod 1 in turns
        with the last: part of what grows is the machine's, not the node's."""
        return self.figures["ADD"][candidate].median

    def _last(self, candidate: str) -> float:
        """The time of an ADD of the last pod, in milliseconds."""
        return self.figures[f"ADD of pod {self.size.levels[-1]}"][candidate].median

    @property
    def _growth(self) -> str:
        """What grows with the pods, and how much of it the floor has too."""
        ours, floors, bridged, beneath_bridged = (
            f"{_number(self._last(name) - self._few(name))} ms"
            for name in (STATIC, FLOOR, BRIDGE_MODE, FLOOR_BRIDGE)
        )
        return (
            f"- An ADD of pod {self.size.levels[-1]:,} takes {ours} more than where there are few"
            f" pods, and the floor {floors} more; in bridge mode {bridged}, and the floor"
            f" {beneath_bridged}. What the floor has more is the kernel's."
        )

    @property
    def reached(self) -> bool:
        return all(target.reached for target in self.targets)

    def json(self) -> str:
        document = {
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "size": asdict(self.size),
            "figures": {
                measure: {
                    name: {
                        "unit": _unit(measure),
                        "median": sample.median,
                        "p10": sample.p10,
                        "p90": sample.p90,
                        "values": list(sample.values),
                    }
                    for name, sample in by_candidate.items()
                }
                for measure, by_candidate in self.figures.items()
            },
            "imports": [asdict(each) for each in self.imports],
            "targets": [{**asdict(target), "reached": target.reached} for target in self.targets],
        }
        return json.dumps(document, indent=1) + "\n"

    def show(self, console: Console) -> None:
        table = Table(title=f"{self.machine['cpu']}, Linux {self.machine['kernel']}, {self.date}")
        for heading in ("measure", "candidate"):
            table.add_column(heading, no_wrap=True)
        for heading in ("median", "p10..p90", "n", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows():
            table.add_row(*row, end_section=row is self._rows()[-1])
        console.print(table)
        for target in self.targets:
            console.print(str(target), style="green" if target.reached else "bold red")

    def _rows(self) -> list[tuple[str, str, str, str, str, str]]:
        rows = []
        for measure, by_candidate in self.figures.items():
            base = next(iter(by_candidate.values()))
            shown = measure
            for name, sample in by_candidate.items():
                ratio = _number(sample.median / base.median)
                unit = _unit(measure)
                spread = f"{_number(sample.p10)}..{_number(sample.p90)}"
                median = f"{_number(sample.median)} {unit}"
                rows.append((shown, name, median, spread, str(len(sample.values)), ratio))
                shown = ""
        return rows

    def markdown(self, chart: str) -> str:
        """docs/performance.md, whole."""
        lines = [
            "# Performance",
            "",
            "Written by `make bench ARGS=--write`; not to be edited by hand.",
            f"Run of {self.date}: {self.machine['cpu']}, {self.machine['cores']} cores,"
            f" {self.machine['memory']} of memory, Linux {self.machine['kernel']}; load average"
            f" before the run {self.machine['load']}.",
            "",
            f"![ADD, DEL and bursts, side by side]({chart})",
            "",
            "## Targets",
            "",
            "| promised | measured | |",
            "| --- | ---: | --- |",
            *(
                f"| {target.promise} | {_number(target.value)}{target.unit} |"
                f" {'reached' if target.reached else '**missed**'} |"
                for target in self.targets
            ),
            "",
            "## What is between an ADD and the targets",
            "",
            *_LIMITS,
            self._growth,
            "",
            "## Figures",
            "",
            "Whole processes, from `posix_spawn` to `wait4`, and ratios to the first of each group."
            " Compare within a table, not with other machines.",
            "",
            "| measure | candidate | median | p10..p90 | n | ratio |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *(f"| {' | '.join(row)} |" for row in self._rows()),
            "",
            "## How it was measured",
            "",
            *_METHOD,
            "",
            "## Versions",
            "",
            *(f"- {name}: {version}" for name, version in self.versions.items()),
            "",
            "## What ADD imports",
            "",
            "In the pip-installed command the start of the interpreter is most of a call; these are"
            " all the modules that ADD loads, and each one's own time (`python -X importtime`). The"
            " static executable loads none: they were imported when it was built.",
            "",
            "| module | from | ms |",
            "| --- | --- | ---: |",
            *(f"| `{each.name}` | {each.origin} | {each.ms:.2f} |" for each in self.imports),
            "",
        ]
        return "\n".join(lines)


_LIMITS: Final = (
    "- Both an ADD and the floor make the pair, its addresses, routes and settings, which is"
    " the kernel's work and most of either. The settings take three system calls each, because no"
    " netlink request has them (`accept_ra`, `proxy_ndp`, `keep_addr_on_down`, `ndisc_notify`).",
    "- The floor follows the plugin. It takes 10 % less than the floor of the executable that took"
    " 0.39 of bridge + host-local, and 42 % less with 1,000 pods: first 9 % (170 calls of each in"
    " turns, 1.42 ms and 1.56, processor time 1.24 and 1.36), then another 1.5 % (160 calls). Of"
    " either 0.6 ms is a process that asks for nothing; of the rest it is a sixth: links have one"
    " queue, the directory of the settings is looked up once for each namespace, settings that the"
    " kernel has shown to be right are not looked up, no worker of the kernel is awaited with"
    " poll(2), and four requests are gone. Making the pair is a fifth of it.",
    "- Above the floor an ADD has CPython: a million instructions, a file of which 2 MB are mapped"
    " and read, and some 100 pages that the kernel copies or makes. In a process that lives for two"
    " milliseconds nothing is in the processor's caches: these instructions take 0.5 ms.",
    "- In a burst every processor is busy all the time, for the floor too, so its ratio is that"
    " of the CPU time of one ADD, and no waiting hides it.",
    "- `status` and `doctor` ask the kernel some 15 questions and judge 22 facts for each pod:"
    " half a millisecond of processor time, 0.2 of it in the kernel. Two processes share the"
    " looks at pods, one does the rest. The kernel finds the number of a pod's namespace by going"
    " through those of all: of listing a thousand host links that is most, as often as it is done."
    " Where a file configures the pods' network, their routes are followed and they send test"
    " packets, which takes a third more.",
    "- With 1,000 pods the kernel walks all IPv6 routes of the node, three for each pod, when the"
    " host link gets its carrier, and goes through lists of all pods for its alternative name, its"
    " address and the gateway's proxy entry; in bridge mode through all ports, several times. In a"
    " process that has nothing in its caches that is 1.3 to 1.7 ms, 1.1 of it for the routes"
    " alone ([what grows](internals.md#what-an-add-spends)).",
    "- It also keeps the directory `net/ipv6` of all namespaces in one hash chain, where a look-up"
    " takes 0.17 ms with a thousand of them. From 128 on ADD looks in a procfs of its own. The rows"
    " of pods 1 and 10 are of nodes beside which others have a thousand: their ADDs look in that"
    " chain, and take longer than on a machine with one node, which the row ADD shows.",
)

_METHOD: Final = (
    "- Everything is in one run and takes turns: in each round every candidate attaches and"
    " detaches a pod of its own, in an order that changes. What else the machine did fell on all.",
    "- Every pod is a new, empty network namespace. Every candidate has a node of its own: a"
    " namespace with `lo` and the Mycelium interface. Its first pod, which makes a bridge, switches"
    " on forwarding and loads the guard, is measured apart.",
    "- Executables are copied at the start of the run, each written in one go: how the page cache"
    " holds a file makes a tenth and more of a short process's time, and of ours, which is three"
    " times as large as a Go plugin, more.",
    "- A small C program starts the processes, with nothing but the CNI variables in their"
    " environment. Peak memory is what the kernel counted for the process and those that it waited"
    " for (`ru_maxrss`).",
    "- The reference plugins are the current release, built from source, with host-local and an"
    " IPv6 /64. `ptp` waits for duplicate address detection, one to two seconds; `bridge` switches"
    " it off.",
    "- The C floor is a program without an interpreter that makes the same system calls for netlink"
    " and sysctls, in the same order. They are recorded with `strace` from the static executable"
    " in every run: at its start, and again on the nodes where pods 1 and 1,000 are measured.",
    "- The first packet is an echo request sent as soon as ADD has ended, by turns from the node to"
    " the pod and from the pod to the node; the time is that of the answer.",
    "- Pod 1,000 is measured on a node with 999 live pods, in turns with nodes that have 0, 9 and"
    " 249.",
    "- Traffic goes between two pods of one node, by turns with our tables and after they have been"
    " deleted, on nodes that differ in nothing else. A packet is a UDP datagram of 64 bytes, its"
    " time what it takes the sender, who carries it to the other pod; so with ICMPv6 errors, which"
    " the guard compares with what they quote, and counts for each pod. The loss is the median of"
    " the pairs, of the worst setup. `cluster`, `closed` and `ipMasq` need the kernel's connection"
    " tracking and translation, which cost what the rows without any other rule show, and which"
    " rules of others on the node, such as kube-proxy's, usually have switched on already.",
    "- `list`, `status` and `doctor` run on a node with as many live pods and without a daemon; in"
    " a pipe, so without colours.",
    "- The ThreeFold Grid's plugin is measured where MYCELIUM_GRID_CNI names a build of it and"
    " there is a daemon (MYCELIUM_BIN, PATH), whose program it starts for every ADD. Its DEL does"
    " nothing. TCP over the overlay is between two nodes that the daemon connects.",
    "- GC deletes attachments of live namespaces; `the kernel alone` is one request that deletes"
    " as many bare pairs of links.",
)


def describe(
    figures: Figures,
    size: Size,
    programs: Executables,
    imports: Sequence[Imported],
    load: float,
) -> Report:
    """The report of a run that has just ended; `load` is the machine's load before it."""
    memory_kib = int(_field("/proc/meminfo", "MemTotal").split()[0])
    machine = {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory_kib / 2**20:.1f} GiB",
        "kernel": platform.release(),
        "load": f"{load:.2f}",
    }
    about = _said([str(programs.static), "version", "--json"])
    try:
        embedded = json.loads(about)
    except ValueError:
        embedded = {}
    venv_python = programs.pip.with_name("python")
    versions = {
        "mycelium-cni": _said([str(programs.pip)]).partition(":")[0].removeprefix("mycelium-cni "),
        "CPython in the static executable": str(embedded.get("python", "unknown")),
        "CPython beneath pip": _said([str(venv_python), "-V"]).removeprefix("Python "),
        "reference plugins": _release(programs.reference / "bridge"),
        "Mycelium daemon": _said([str(programs.daemon), "--version"])
        if programs.daemon
        else "none",
        "C compiler": _said(["gcc", "--version"]).splitlines()[0],
    }
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Report(date, machine, versions, size, figures, imports)


def imports_of_add(programs: Executables) -> list[Imported]:
    """What the plugin loads, in the order of loading, with each module's own time."""
    packages = next(programs.pip.parent.parent.glob("lib/python*/*-packages"))
    python = str(programs.pip.with_name("python"))
    argv = [python, "-IS", "-X", "importtime", "-c", _LOAD, str(packages)]
    own_us: dict[str, int] = {}
    for _ in range(_IMPORT_ROUNDS):
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env={})
        for line in done.stderr.splitlines():
            own, _, rest = line.removeprefix("import time:").partition("|")
            name = rest.rpartition("|")[2].strip()
            if own.strip().isdigit():
                own_us[name] = min(int(own), own_us.get(name, int(own)))
    found = []
    for line in done.stdout.splitlines():
        name, _, origin = line.partition(" ")
        if name in own_us:  # os.path is another name of posixpath
            found.append(Imported(name, own_us[name] / 1000, origin))
    return found


_IMPORT_ROUNDS: Final = 7  # the best of so many


_LOAD: Final = """
import sys
before = set(sys.modules)
sys.path.append(sys.argv[1])
import mycelium_cni.main, mycelium_cni.verbs
for name, module in sys.modules.items():
    if name not in before:
        origin = module.__spec__.origin
        if name.startswith("mycelium_cni"):
            origin = "ours"
        elif origin not in ("built-in", "frozen"):
            origin = "extension module" if origin.endswith(".so") else "standard library"
        print(name, origin)
"""


def _release(plugin: Path) -> str:
    """The release of a Go plugin, which its linker has written into it."""
    found = re.search(rb"containernetworking/plugins\t(v[0-9.]+)\t", plugin.read_bytes())
    return found[1].decode() if found else "unknown"


def _said(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={})
    return (done.stdout or done.stderr).strip()


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _unit(measure: str) -> str:
    units = {
        "peak memory": "MiB",
        "size": "MB",
        "TCP": "Gbit/s",
        "packet": "µs",
        "ICMPv6 error": "µs",
    }
    return next((unit for words, unit in units.items() if measure.startswith(words)), "ms")


def _number(value: float) -> str:
    """Three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
