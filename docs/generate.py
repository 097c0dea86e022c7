# SPDX-License-Identifier: Apache-2.0
"""Parts of pages that are written from the program itself, so that no page can lag behind it.

`make generate` replaces what stands between `<!-- generated: keys -->` and `<!-- end -->` in a page
of docs/; a test compares. MkDocs loads this module as a hook, with PYTHONPATH=src.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from errno import EAGAIN, EMFILE, ENODEV, ENOMEM, EOPNOTSUPP, EPERM, EROFS
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelium_cni.cni import errors
from mycelium_ctl import checks, parsers
from mycelium_ctl.checks import onepod
from mycelium_ctl.node import schema

ROOT: Final = Path(__file__).resolve().parent.parent
PART: Final = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ANY: Final = "…"  # what a message says about this node, this pod, this value


def filled(text: str) -> str:
    """A page with its generated parts anew. Raises KeyError for a part that does not exist."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n{found[3]}", text)


def write() -> None:
    """Bring all pages up to date."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))


# What MkDocs calls (https://www.mkdocs.org/dev-guide/plugins/#events)


def on_config(config: Any) -> None:
    """Add the decisions to the navigation."""
    pages = sorted((ROOT / "docs/adr").glob("0*.md"))
    config["nav"].append({"Decisions": [f"adr/{page.name}" for page in pages]})


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put CHANGELOG.md on its page: MkDocs knows no files outside docs/."""
    if page.file.src_uri != "changes.md":
        return markdown
    return (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")


# Configuration


def keys() -> str:
    rows = []
    for key, meaning in schema.MEANINGS.items():
        default = schema.default(key)
        shown = f"`{_json(default)}`" if default is not None else ""
        rows.append((f"`{key}`", _values(key), shown, meaning))
    return _table(("key", "values", "default", "meaning"), rows)


def _values(key: str) -> str:
    allowed = schema.values(key)
    if "enum" in allowed:
        return ", ".join(f"`{value}`" for value in allowed["enum"])
    if allowed["type"] == "integer":
        return f"{allowed['minimum']} to {allowed['maximum']}"
    if allowed["type"] == "array":
        return f"list, at most {allowed['maxItems']}"
    patterns = {schema.LINK_NAME: "name of a link", "^/": "absolute path"}
    return patterns.get(allowed.get("pattern", ""), str(allowed["type"]))


def _json(value: Any) -> str:
    return json.dumps(value)


# Commands


def commands() -> str:
    rows = [(f"[`{name}`](#{name})", summary) for name, (_, summary) in parsers.COMMANDS.items()]
    parts = [_table(("command", "does"), rows)]
    for name in parsers.COMMANDS:
        for words, text in parsers.texts(name, 90).items():
            level = "#" * (words.count(" ") + 2)
            parts.append(f"{level} {words}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


# Messages, read off the source


class Message(NamedTuple):
    """What the program says, and what to do about it."""

    text: str
    remedy: str


def findings() -> str:
    """What `doctor` may find, a section for each of its checks."""
    parts = []
    for check in checks.CHECKS:
        rows = [(_shown(each.text), each.remedy) for each in dict.fromkeys(_findings(check.look))]
        parts.append(f"### {check.name}\n\nWhy it matters: {check.why}.\n")
        if rows:
            parts.append(_table(("`doctor` says", "what to do"), rows))
    return "\n".join(parts).rstrip()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def path_of_one_pod() -> str:
    """What `doctor POD` may find on the way of its packets."""
    rows = [
        (_shown(each.text), each.remedy) for each in dict.fromkeys(_findings(onepod.examine_pod))
    ]
    return _table(("`doctor POD` says", "what to do"), rows)


def _findings(look: Any) -> Iterator[Message]:
    """The findings of a check, with those of what it calls of the checks."""
    waiting = [(Path(inspect.getfile(look)), str(look.__name__))]
    seen: set[tuple[Path, str]] = set()
    while waiting:
        here = path, name = waiting.pop(0)
        tree = _tree(path)
        callables = (ast.FunctionDef, ast.ClassDef)
        functions = {node.name: node for node in tree.body if isinstance(node, callables)}
        if here in seen or name not in functions:
            continue
        seen.add(here)
        beside = {
            alias.name: path.with_name(f"{(node.module or '').rpartition('.')[2]}.py")
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and "mycelium_ctl.checks." in (node.module or "")
            for alias in node.names
        }
        called = [node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)]
        waiting += [(beside.get(each, path), each) for each in called]
        for call in _calls(functions[name], "Finding"):
            given = _arguments(call, ("mark", "found", "advice", "run", "fix"))
            marks = {
                each.value for each in ast.walk(given["mark"]) if isinstance(each, ast.Constant)
            }
            if marks not in ({"ok"}, {"skip"}):
                yield from _messages(functions[name], given, "found")
        for call in _calls(functions[name], "Fault"):
            yield from _messages(functions[name], _arguments(call, ("what", "advice")), "what")


def messages() -> str:
    """What the plugin may answer a runtime, by code."""
    by_code: dict[int, list[Message]] = {}
    for function, given in _built("mycelium_cni", "CniError", ("code", "problem", "advice", "run")):
        code = getattr(errors, _name(given["code"]), 0)
        by_code.setdefault(code, []).extend(_messages(function, given, "problem"))
    for number in (EPERM, EROFS, EOPNOTSUPP, EMFILE, ENOMEM, ENODEV, EAGAIN):
        error = errors.refusal(OSError(number, os.strerror(number)), ANY)
        by_code.setdefault(error.code, []).append(Message(error.problem, error.advice))
    rows = [
        (str(code), _shown(each.text), each.remedy)
        for code, found in sorted(by_code.items())
        for each in dict.fromkeys(found)
        if code
    ]
    return _table(("code", "message", "what to do"), rows)


def refusals() -> str:
    """What a command says when it cannot go on."""
    found = [
        message.text
        for package in ("mycelium_ctl", "mycelium_agent", "mycelium_lab")
        for error in ("ToolError", "LabError")
        for function, given in _built(package, error, ("message",))
        for message in _messages(function, given, "message")
    ]
    return "\n".join(f"- {_shown(text)}" for text in sorted(set(found))) + "\n"


def faults() -> str:
    """What `config check` may find in a file, apart from what ADD refuses."""
    found = [
        (_shown(message.text), message.remedy)
        for function, given in _built("mycelium_ctl/node", "Fault", ("line", "what", "advice"))
        for message in _messages(function, given, "what")
    ]
    return _table(("`config check` says", "what to do"), sorted(set(found)))


def _built(
    package: str, name: str, parameters: tuple[str, ...]
) -> Iterator[tuple[ast.FunctionDef, dict[str, ast.expr]]]:
    """Every place that makes such an object, and its arguments. Where a private function makes it
    of its own parameters, the places are the calls of that function."""
    for path in sorted((ROOT / "src" / package).rglob("*.py")):
        tree = _tree(path)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for maker in functions:
            own = [each.arg for each in (*maker.args.args, *maker.args.kwonlyargs)]
            for made in _calls(maker, name):
                given = _arguments(made, parameters)
                used = {
                    node.id
                    for each in given.values()
                    for node in ast.walk(each)
                    if isinstance(node, ast.Name)
                }
                if maker.name[:1] != "_" or maker.name[:2] == "__" or not used & set(own):
                    yield maker, given
                    continue
                for caller in functions:
                    for call in _calls(caller, maker.name):
                        bound = _Bound(_arguments(call, tuple(own[own[:1] == ["self"] :])))
                        yield caller, {k: bound.visit(deepcopy(v)) for k, v in given.items()}


class _Bound(ast.NodeTransformer):
    """Puts a call's arguments in the place of the parameters."""

    def __init__(self, arguments: dict[str, ast.expr]) -> None:
        self.arguments = arguments

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.arguments.get(node.id, node)


def _calls(function: ast.FunctionDef, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and _name(node.func) == name:
            yield node


def _messages(function: ast.stmt, given: dict[str, ast.expr], said: str) -> Iterator[Message]:
    texts = _texts(given[said], function)
    for place, text in enumerate(texts):
        if re.search(r"[a-z]{2}", text):  # else it is another function's message
            yield Message(text, _remedy(given, function, place, len(texts)))


def _arguments(call: ast.Call, names: tuple[str, ...]) -> dict[str, ast.expr]:
    given = dict(zip(names, call.args, strict=False))
    return given | {each.arg: each.value for each in call.keywords if each.arg in names}


def _remedy(given: dict[str, ast.expr], function: ast.stmt, place: int = 0, of: int = 1) -> str:
    """The remedy of a message that is one `of` several: remedies of as many go with them."""

    def chosen(key: str) -> str:
        texts = _texts(given[key], function) if key in given else [""]
        if len(texts) == of:
            return texts[place]
        return next(filter(None, texts), "") if 1 in (of, len(texts)) else ""

    advice, run = chosen("advice"), chosen("run")
    commands = [f"`{run}`"] if run.strip(f"{ANY} ") else []
    if "fix" in given and run != "mycelium-cni setup":
        commands.append("`mycelium-cni doctor --fix`")
    parts = [" or ".join(commands), _shown(advice) if advice.strip(ANY) else ""]
    return "; ".join(filter(None, parts))


def _shown(text: str) -> str:
    return escape(text, quote=False)


def _texts(node: ast.expr, function: ast.stmt) -> list[str]:
    """The strings that an argument may be: also each that the function gives a variable."""
    if isinstance(node, ast.Name):
        values = [
            each.value
            for each in ast.walk(function)
            if isinstance(each, ast.Assign)
            and [_name(target) for target in each.targets] == [node.id]
        ]
        return [text for value in values for text in _texts(value, function)] or [ANY]
    if isinstance(node, ast.IfExp):
        return _texts(node.body, function) + _texts(node.orelse, function)
    return [_text(node)]


def _text(node: ast.expr) -> str:
    """A string of the source, with … for what is only known when it is said."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant() | ast.Tuple(elts=[]) | ast.List(elts=[]):
            return ""
        case ast.JoinedStr(values=values):
            return "".join(map(_text, values))
        case ast.FormattedValue(value=ast.Constant() | ast.JoinedStr() as text):
            return _text(text)
        case ast.FormattedValue(value=ast.IfExp(body=body, orelse=orelse)):
            return _text(body) or _text(orelse)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.IfExp(body=body, orelse=orelse):
            return _text(body) or _text(orelse)
        case ast.Tuple(elts=[first, *_]) | ast.List(elts=[first, *_]):
            return _text(first)
        case ast.Call(func=ast.Name(id="own"), args=words):
            return " ".join(["mycelium-cni", *map(_text, words)])
    return ANY


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


PARTS: Final = {
    "keys": keys,
    "commands": commands,
    "findings": findings,
    "onepod": path_of_one_pod,
    "messages": messages,
    "refusals": refusals,
    "faults": faults,
}

if __name__ == "__main__":
    write()
