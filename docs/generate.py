# SPDX-License-Identifier: Apache-2.0
"""Parts of pages that are written from the program itself, so that no page can lag behind it.

A page says `<!-- generated: keys -->`, and gets the table there when the site is built. MkDocs
loads this module as a hook (with PYTHONPATH=src); the tests of the documentation call `filled`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelium_cni.cni import errors
from mycelium_ctl import checks, parsers
from mycelium_ctl.node import schema

ROOT: Final = Path(__file__).resolve().parent.parent
MARKER: Final = re.compile(r"<!-- generated: (\w+) -->")
ANY: Final = "…"  # what a message says about this node, this pod, this value


def filled(text: str) -> str:
    """A page with its generated parts. Raises KeyError for a part that does not exist."""
    return MARKER.sub(lambda found: PARTS[found[1]](), text)


# What MkDocs calls (https://www.mkdocs.org/dev-guide/plugins/#events)


def on_config(config: Any) -> None:
    """Add the decisions to the navigation."""
    pages = sorted((ROOT / "docs/adr").glob("0*.md"))
    config["nav"].append({"Decisions": [f"adr/{page.name}" for page in pages]})


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts."""
    return filled(markdown)


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
        _, parser = parsers.load(name)
        parts.append(f"## {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
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
    return "\n".join(parts)


def _findings(look: Any) -> Iterator[Message]:
    """The findings of a check, with those of the functions of its module that it calls."""
    tree = ast.parse(Path(inspect.getfile(look)).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    waiting, seen = [look.__name__], set()
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Name):
                waiting.append(node.id)
            if not isinstance(node, ast.Call) or _name(node.func) != "Finding":
                continue
            given = _arguments(node, ("mark", "found", "advice", "run", "fix"))
            marks = {
                each.value for each in ast.walk(given["mark"]) if isinstance(each, ast.Constant)
            }
            text = _text(given.get("found"))
            if marks & {"fail", "warn"} and text.strip(ANY):
                yield Message(text, _remedy(given))


def messages() -> str:
    """What the plugin may answer a runtime, by code."""
    by_code: dict[str, list[Message]] = {}
    for path in sorted((ROOT / "src/mycelium_cni").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node.func) == "CniError":
                given = _arguments(node, ("code", "text", "advice", "run"))
                text = _text(given["text"])
                if text.strip(ANY):
                    message = Message(text, _remedy(given))
                    by_code.setdefault(_name(given["code"]), []).append(message)
            elif isinstance(node, ast.Call) and _name(node.func) == "_invalid":
                given = _arguments(node, ("key", "value", "advice"))
                message = Message(f"invalid {_text(given['key'])} {ANY}", _remedy(given))
                by_code.setdefault("INVALID_CONFIG", []).append(message)
    rows = []
    for name, found in sorted(by_code.items(), key=lambda each: getattr(errors, each[0], 0)):
        code = getattr(errors, name, "")
        rows += [(str(code), _shown(each.text), each.remedy) for each in dict.fromkeys(found)]
    return _table(("code", "message", "what to do"), rows)


def _arguments(call: ast.Call, names: tuple[str, ...]) -> dict[str, ast.expr]:
    given = dict(zip(names, call.args, strict=False))
    return given | {each.arg: each.value for each in call.keywords if each.arg in names}


def _remedy(given: dict[str, ast.expr]) -> str:
    advice, run = _text(given.get("advice")), _text(given.get("run"))
    commands = [f"`{run}`"] if run.strip(f"{ANY} ") else []
    if "fix" in given and run != "mycelium-cni setup":
        commands.append("`mycelium-cni doctor --fix`")
    parts = [" or ".join(commands), _shown(advice) if advice.strip(ANY) else ""]
    return "; ".join(filter(None, parts))


def _shown(text: str) -> str:
    return escape(text, quote=False)


def _text(node: ast.expr | None) -> str:
    """A string of the source, with … for what is only known when it is said."""
    match node:
        case None:
            return ""
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(_text, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.IfExp(body=body, orelse=orelse):
            return _text(body) or _text(orelse)
        case ast.Tuple(elts=[first, *_]) | ast.List(elts=[first, *_]):
            return _text(first)
        case ast.Tuple() | ast.List():
            return ""
        case ast.Call(func=ast.Name(id="own"), args=words):
            return " ".join(["mycelium-cni", *map(_text, words)])
        case ast.Constant():
            return ""
    return ANY


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


# Changes


def changes() -> str:
    """CHANGELOG.md, without its title."""
    return (ROOT / "CHANGELOG.md").read_text().partition("\n")[2].strip()


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


PARTS: Final = {
    "keys": keys,
    "commands": commands,
    "findings": findings,
    "messages": messages,
    "changes": changes,
}
