# SPDX-License-Identifier: Apache-2.0
"""JSON as people write it: read as far as its meaning is clear, with every fault in it.

A runtime stops at the first fault and names a column. This reader guesses what was meant and goes
on, so that all faults are reported at once, each with its remedy.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

DEEPEST: Final = 100  # nested brackets; a configuration has five
MOST_FAULTS: Final = 20

Place = tuple[str | int, ...]  # where in the document: ("plugins", 1, "mtu")

_WHITE: Final = re.compile(r"[ \t\n\r]*")
_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.:/+-])", re.ASCII)
_BARE_KEY: Final = re.compile(r"[\w.$/-]+")
_BARE_VALUE: Final = re.compile(
    r'[^\s,;{}()\[\]"\u201c\u201d\uff02\uff0c\u3001\uff1b\uff3b\uff3d\uff5b\uff5d]+'
)
_WORDS: Final = {"true": True, "false": False, "null": None}
_ELSEWHERE: Final = {  # in Python, YAML and others
    **dict.fromkeys(("True", "TRUE", "yes", "Yes", "on", "On"), True),
    **dict.fromkeys(("False", "FALSE", "no", "No", "off", "Off"), False),
    **dict.fromkeys(("None", "Null", "NULL", "nil", "undefined"), None),
}
_NO_NUMBERS: Final = frozenset(("nan", "inf", "infinity"))  # Python, JavaScript and YAML have them
# Thousands, as people write them: 1,400 and 1 400. These are compiled when one is met too.
_GROUPED: Final = r"-?[1-9]\d{0,2}(?:[ ,'\u00a0\u202f]\d{3})+(?![\w.])"
_PREFIX: Final = r"""[rbufRBUF]{1,2}(?=["'])"""  # of Python's strings
_TRIPLE: Final = r"(\"{3}|'{3})((?s:.*?))\1"
_THREE: Final = (3 * '"', 3 * "'")
_COLON: Final = r":=|=>|->|="
_COMMENTS: Final = {"//": "\n", "#": "\n", "/*": "*/", "<!--": "-->"}
# Punctuation of Chinese and Japanese keyboards, brackets of Python's tuples, and what JSON has
# instead.
_WIDE: Final = {
    "\u3001": ",",
    "(": "[",
    ")": "]",
    **dict(zip("\uff0c\uff1a\uff1b\uff3b\uff3d\uff5b\uff5d", ",:,[]{}", strict=True)),
}
# Quotes as some keyboards and word processors write them, and the ones that close them.
_QUOTES: Final = {
    "'": "'",
    "`": "`",
    "\u2018": "\u2019",  # single quotes, high
    "\u2019": "\u2019",
    "\u201c": "\u201d",  # double quotes, high
    "\u201d": "\u201d",
    "\u201e": "\u201c\u201d",  # and low
    "\u00ab": "\u00bb",  # guillemets
    "\uff02": "\uff02",  # full-width
}
# What editors, word processors and web pages put between words. The tables of unicodedata, with the
# names of all characters, would be a megabyte of the static executable.
_INVISIBLE: Final = {
    "\u00a0": "no-break space",
    "\u00ad": "soft hyphen",
    "\u2003": "em space",
    "\u2009": "thin space",
    "\u200b": "zero width space",
    "\u200c": "zero width non-joiner",
    "\u200d": "zero width joiner",
    "\u200e": "left-to-right mark",
    "\u2028": "line separator",
    "\u202f": "narrow no-break space",
    "\u2060": "word joiner",
    "\u3000": "ideographic space",
    "\ufeff": "zero width no-break space",
}
# Of a text that is not JSON. They are compiled when one is met, which is rare.
_TEMPLATE: Final = (
    r"\{\{.{0,200}?\}\}|\{%.{0,200}?%\}|<%.{0,200}?%>|\$\{\w[^}\n]{0,99}\}|\b__[A-Z][A-Z0-9_]*__\b"
)
_YAML: Final = r"(?:[ \t\r]*(?:#[^\n]*)?\n)*[ \t]*(?:---\s|[\w.-]+:(?:\s|$)|- )"
_AGAIN: Final = "fetch it again: a server sends such a page instead of a file that it does not have"
# What never was JSON, by its beginning.
_FORMS: Final = (
    (r"<(!doctype|html|\?xml|head|body)\b", "it is a web page (HTML)", _AGAIN),
    (r"\d{3}:? [a-z]+( [a-z]+)?\s*\Z", "it is what a web server says of an error", _AGAIN),
    (r"HTTP/\d", "it is a web server's answer with its headers", "fetch it without them"),
    (r"-----BEGIN ", "it is a key or a certificate", "is this the right file?"),
    (r"```", "it is a piece of Markdown", "remove the lines with ```"),
    (
        r"#!|(\$ |# )?(cat|tee|echo|curl|sudo|kubectl) ",
        "it holds commands of a shell",
        "run them, or leave only what they write into the file",
    ),
    (
        r"diff --git |--- \S+.*\n\+\+\+ |\+ *[{\"]",
        "it is a diff",
        "apply it: patch, or git apply",
    ),
    (
        r"\[[a-z][\w.\"/-]*\]\s*(\n|\Z)|[a-z][\w.-]*[ \t]*=[ \t]*[\w\"'\[{]",
        "it is TOML",
        "write it as JSON, as `mycelium-cni config new` prints it",
    ),
    (r"[a-z0-9+/\s]{40,}+={0,2}\s*\Z", "it is encoded (base64)", "decode it: base64 -d"),
    (r"1[:|.\t ]+\{.*\n\s*2\b", "its lines have numbers", "copy it without them"),
    (r"\{\s*\\\"", "its quotes are escaped, as within another string", 'write " for each \\"'),
)
_CONFLICT: Final = r"^<<<<<<< "
_MOST_WRAPPED: Final = 500  # characters of a string behind the line in which it begins
_MAGIC: Final = (
    (b"\x1f\x8b", "it is compressed (gzip)", "unpack it: gunzip"),
    (b"PK\x03\x04", "it is a zip archive", "unpack it"),
    (b"\xfd7zXZ", "it is compressed (xz)", "unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "it is compressed (zstd)", "unpack it: unzstd"),
    (b"\x7fELF", "it is a program", "executables belong in /opt/cni/bin"),
    (b"BZh", "it is compressed (bzip2)", "unpack it: bunzip2"),
    (b"\xff\xfe\0\0", "it is UTF-32", "save it as UTF-8"),
    (b"\xff\xfe", "it is UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16", "save it as UTF-8"),
)


class Fault(NamedTuple):
    """One thing that is wrong; line 0 is the whole file. `fatal`: libcni or the plugin refuses the
    file for it."""

    line: int
    what: str
    remedy: str
    fatal: bool = True


class Object(dict[str, Any]):
    """A JSON object that remembers which keys were given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.twice: Final = sorted({k for k, _ in pairs if k in seen or seen.add(k)})  # type: ignore[func-returns-value]  # set.add is None


class Parsed(NamedTuple):
    """What a text says. `lines`: the line of each member, which is its key's. `readable`: whether
    there is a document."""

    document: Any
    lines: dict[Place, int]
    faults: list[Fault]
    readable: bool = True


def parse(octets: bytes) -> Parsed:
    """Read a file's bytes."""
    for magic, what, remedy in _MAGIC:
        if octets.startswith(magic):
            return _unreadable(Fault(0, what, remedy))
    nuls = [octets[start::2].count(0) for start in (0, 1)]
    if min(nuls) == 0 and 4 * max(nuls) > len(octets):  # a NUL for every letter, and no mark
        return _unreadable(Fault(0, "it is UTF-16", "save it as UTF-8"))
    if 20 * sum(nuls) > len(octets) > 20:
        return _unreadable(Fault(0, "it is not text", "is this the right file?"))
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        return _unreadable(Fault(line, "it is not UTF-8", "save it as UTF-8"))
    if not text.strip("\0 \t\r\n\ufeff"):
        return _unreadable(Fault(0, "it is empty", "write one with `mycelium-cni config new`"))
    try:
        document = json.loads(text, object_pairs_hook=Object, parse_constant=_refuse)
    except RecursionError:
        return _unreadable(_too_deep(0))
    except ValueError as error:
        other = _something_else(text)
        if other:
            return _unreadable(*other)
        reader = _Reader(text)
        reader.read()
        if not reader.faults:
            reader.faults.append(_as_python_says(error))
        return Parsed(reader.document, reader.lines, reader.faults, reader.complete)
    reader = _Reader(text)
    reader.read()
    if not reader.complete:
        return _unreadable(_too_deep(0))
    return Parsed(document, reader.lines, [])


def _unreadable(*faults: Fault) -> Parsed:
    return Parsed(None, {(): 0}, list(faults), readable=False)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _too_deep(line: int) -> Fault:
    return Fault(line, "it is nested too deeply", "is this the right file?")


def _as_python_says(error: ValueError) -> Fault:
    if isinstance(error, json.JSONDecodeError):
        what = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
        return Fault(error.lineno, f"this is not JSON: {what}", "compare it with `config new`")
    return Fault(0, str(error), "write a number that JSON has")


def _something_else(text: str) -> list[Fault]:
    """What the text is, if it was never JSON."""
    start = text.lstrip("\ufeff \t\r\n")
    for form, what, remedy in _FORMS:
        if re.match(form, start, re.IGNORECASE):
            return [Fault(0, what, remedy)]
    conflict = re.search(_CONFLICT, text, re.MULTILINE)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        return [Fault(line, "a merge left both versions here", "keep one, and remove its markers")]
    if re.match(_YAML, start):
        if re.search(r"^apiVersion:", text, re.MULTILINE) and re.search(
            r"^kind:", text, re.MULTILINE
        ):
            what = "it is a Kubernetes manifest (YAML)"
            remedy = (
                "give it to kubectl apply; runtimes read JSON: of a NetworkAttachmentDefinition "
                "check the text of spec.config (`mycelium-cni config check -`)"
            )
        else:
            what = "it is YAML"
            remedy = "write it as JSON, as `mycelium-cni config new` prints it"
        return [Fault(0, what, remedy)]
    found: dict[int, str] = {}
    for match in islice(re.finditer(_TEMPLATE, text), 100):
        found.setdefault(text.count("\n", 0, match.start()) + 1, match[0][:60])
    what = "it is a template: {} is not filled in"
    remedy = "put the value there, or let what made the file do it (helm template, envsubst, sed)"
    return [Fault(line, what.format(shown), remedy) for line, shown in list(found.items())[:5]]


def _as_number(word: str) -> int | float | None:
    """The number that another language would read."""
    if len(word) >= 20 or not word.strip("+-.")[:1].isdigit():
        return None
    for read in (partial(int, base=0), int, float):
        try:
            number = read(word)
            return int(number) if number == int(number) else number
        except (ValueError, OverflowError):
            continue
    return None


class _StopError(Exception):
    """The rest cannot be understood."""


class _Reader:
    """Reads one text from left to right; what is wrong becomes a fault, and reading goes on."""

    def __init__(self, text: str) -> None:
        self._text: Final = text
        self._ends: Final = [match.start() for match in re.finditer("\n", text)]
        self._last: Final = len(text.rstrip("\0 \t\r\n"))  # nothing follows it
        self._at = 0
        self._open: Final[list[str]] = []  # brackets around the place that is read
        self._unclosed = ""
        self.faults: Final[list[Fault]] = []
        self.lines: Final[dict[Place, int]] = {(): 1}
        self.document: Any = None
        self.complete = False  # whether all of the document could be read

    def read(self) -> None:
        try:
            self._white()
            if self._peek() == '"' and self._text.rstrip().endswith("}") and self._begins_inside():
                self._fault("a { is missing at the beginning", "add it")
                self.document = self._object((), opened=False)
            else:
                self.document = self._value(())
            self.complete = True
            self._end()
        except _StopError:
            return

    def _begins_inside(self) -> bool:
        return bool(re.compile(r'"[^"\n]*"\s*:').match(self._text, self._at))

    # Places

    def _line(self, at: int) -> int:
        return bisect_left(self._ends, at) + 1

    def _peek(self) -> str:
        """The next character, of punctuation the one that JSON has; '' at the end."""
        here = self._text[self._at : self._at + 1]
        return _WIDE.get(here, here)

    def _match(self, pattern: str) -> re.Match[str] | None:
        return re.compile(pattern).match(self._text, self._at)

    def _shown(self) -> str:
        """The next few characters, for a message."""
        return ascii(self._text[self._at : self._at + 12].split("\n")[0])

    def _fault(self, what: str, remedy: str, at: int | None = None) -> None:
        line = self._line(self._at if at is None else at)
        if any(fault.what == what and fault.remedy == remedy for fault in self.faults):
            return  # once for all such places
        self.faults.append(Fault(line, what, remedy))
        if len(self.faults) >= MOST_FAULTS:
            raise _StopError

    def _white(self) -> None:
        """Skip white space, and what people mistake for it."""
        while True:
            match = _WHITE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            here = self._text[self._at : self._at + 1]
            if here in _WIDE:
                plain = _WIDE[here]
                self._fault(
                    f"JSON needs {plain} here, not {here} (U+{ord(here):04X})",
                    f"write {plain} everywhere",
                )
            if not here or here in _WIDE:
                return
            if here == "\ufeff" and self._at == 0:
                what, remedy = "it begins with a byte order mark", "save it as UTF-8 without BOM"
            elif here == "\0" and self._at >= self._last:
                what, remedy = "there is a NUL byte at the end", "remove it: tr -d '\\000'"
            elif here == "\0":
                what, remedy = "there is a NUL byte", "remove it: tr -d '\\000'"
            elif not here.isprintable():
                name = _INVISIBLE.get(here, "")
                what = f"there is an invisible character (U+{ord(here):04X}{name and f', {name}'})"
                remedy = "write a space instead, everywhere"
            elif self._text.startswith((*_COMMENTS,), self._at):
                self._fault("JSON has no comments", "remove them")
                marks = (mark for mark in _COMMENTS if self._text.startswith(mark, self._at))
                end = _COMMENTS[next(marks)]
                found = self._text.find(end, self._at)
                self._at = len(self._text) if found < 0 else found + len(end)
                continue
            else:
                return
            self._fault(what, remedy)
            self._at += 1

    # Values

    def _value(self, place: Place) -> Any:
        self._white()
        self.lines.setdefault(place, self._line(self._at))
        here = self._peek()
        if here == "{":
            return self._object(place)
        if here == "[":
            return self._array(place)
        if self._begins_string():
            return self._string()
        number = _NUMBER.match(self._text, self._at)
        if number:
            grouped = None
            if self._text[number.end() + 1 : number.end() + 2].isdigit():
                grouped = self._match(_GROUPED)
            if grouped and (self._open[-1:] == ["}"] or "," not in grouped[0]):
                digits = re.sub(r"[^\d-]", "", grouped[0])
                self._fault(f"{grouped[0]} is not a JSON number", f"write {digits}")
                self._at = grouped.end()
                return self._number(digits)
            self._at = number.end()
            return self._number(number[0])
        if here in ("", ",", ";", "}", "]"):
            self._fault(f"a value is missing before {here or 'the end'}", "add it")
            return None
        return self._bare_value()

    def _number(self, digits: str) -> Any:
        try:
            return json.loads(digits)
        except ValueError:  # thousands of digits
            self._fault("a number of thousands of digits", "write a number that JSON has")
            return 0

    def _bare_value(self) -> Any:
        match = _BARE_VALUE.match(self._text, self._at)
        if not match:
            self._fault(f"{self._shown()} does not belong here", "remove it")
            self._at += 1
            return None
        word, start = match[0], self._at
        self._at = match.end()
        if word in _WORDS:
            return _WORDS[word]
        if self._peek() == '"':
            self._fault(f'a " is missing before {word[:60]}', f'write "{word[:60]}"', start)
            self._at += 1
            return word
        if word in _ELSEWHERE:
            meant = json.dumps(_ELSEWHERE[word])
            self._fault(f"{word} is not JSON", f"write {meant}", start)
            return _ELSEWHERE[word]
        if word.lstrip("+-.").casefold() in _NO_NUMBERS:
            self._fault(
                f"{word} is not a number in JSON", "write a number, or leave out the key", start
            )
            return None
        number = _as_number(word)
        remedy = f"write {number}" if number is not None else f"write {json.dumps(word[:60])}"
        what = "is not a JSON number" if number is not None else "is not in quotes"
        self._fault(f"{word[:60]} {what}", remedy, start)
        return word if number is None else number

    def _begins_string(self) -> bool:
        """Whether a string begins here, after a letter that Python may have there."""
        here = self._peek()
        prefix = self._match(_PREFIX) if here and here in "rbufRBUF" else None
        if prefix:
            what = f"a string with {prefix[0]} before its quote is Python's"
            self._fault(what, f"remove the {prefix[0]}")
            self._at = prefix.end()
            here = self._peek()
        return here == '"' or here in _QUOTES

    def _string(self, follows: str = ",}]") -> str:
        """A string that one of these characters should follow."""
        triple = None
        if self._text.startswith(_THREE, self._at):
            triple = self._match(_TRIPLE)
        if triple:
            self._fault(
                "a string between three quotes is Python's", 'write it on one line, between "'
            )
            self._at = triple.end()
            return triple[2]
        match = _STRING.match(self._text, self._at)
        if match:
            text: str = json.loads(match[0])
            self._at = match.end()
            # The quote that seems to end the value begins the next key: "routed, "ingress": ….
            if re.search(r",\s*$", text) and re.match(r"\w", self._peek()):
                self._at = match.start() + match[0].rindex(",")
                text = text[: text.rindex(",")]
                remedy = f"write {json.dumps(text[:60])}"
                self._fault(f'a " is missing after {text[:60]}', remedy, match.start())
            elif self._peek() == '"' and follows != ":" and self._match(r'"\s*[,}\]]'):
                self._fault(f'there is a " too many after {text[:60]}', "remove it")
                self._at += 1
            return text
        opening, start = self._peek(), self._at
        closing = _QUOTES.get(opening, '"')
        if opening != '"':
            what = f"JSON needs double quotes, and here is {opening}"
            self._fault(what, 'write " for each of them')
        held = ""
        self._at += 1
        while True:
            here = self._text[self._at : self._at + 1]
            if here in ("", "\n"):
                whole = self._wrapped(held, closing, follows)
                return self._unended(held, start) if whole is None else whole
            self._at += 1
            if here in closing:
                return held
            if here == "\\":
                here = self._escape()
            elif here < " " and not (here == "\r" and self._peek() == "\n"):
                self._fault(
                    f"there is a control character in a string (U+{ord(here):04X})",
                    f"write {json.dumps(here)[1:-1]}",
                )
            held += here

    def _escape(self) -> str:
        found = re.compile(r'["\\/bfnrt]|u[0-9a-fA-F]{4}').match(self._text, self._at)
        if found:
            self._at = found.end()
            character: str = json.loads(f'"\\{found[0]}"')
            return character
        shown = self._peek()
        self._fault(f"\\{shown} is not an escape in JSON", "write \\\\ for a backslash")
        return "\\"

    def _wrapped(self, held: str, closing: str, follows: str) -> str | None:
        """The whole of a string that goes on in the next lines; None if its quote is missing."""
        rest = self._text[self._at : self._at + _MOST_WRAPPED]
        end = min((at for at in map(rest.find, closing) if at >= 0), default=-1)
        after = rest[end + 1 :].lstrip()[:1]
        if end < 0 or _WIDE.get(after, after) not in follows or held.rstrip()[-1:] in (*",;}]",):
            return None
        self._fault("a string continues on the next line", "write it on one line")
        self._at += end + 1
        return held.rstrip() + "".join(line.strip() for line in rest[:end].split("\n"))

    def _unended(self, held: str, start: int) -> str:
        """A string that the line ends: its quote is missing before what closes there."""
        closing = " \t\r\n,;}]"
        self._at = start + len(self._text[start : self._at].rstrip(closing))
        kept = held.rstrip(closing)
        self._fault(f'a " is missing after {kept[:60]}', f"write {json.dumps(kept[:60])}", start)
        return kept

    # Objects and arrays

    def _object(self, place: Place, *, opened: bool = True) -> Object:
        pairs: list[tuple[str, Any]] = []

        def member() -> None:
            here = self._peek()
            if here == "{":
                self._fault(
                    "an object is among the keys of another",
                    'plugins belong in "plugins": [ {…}, {…} ]',
                )
                self._value((*place, ""))
                return
            if here == "[":
                self._fault("a list is where a key belongs", 'write its key: "…": […]')
                self._value((*place, ""))
                return
            start = self._at
            key = self._key()
            if key is None:
                return
            self.lines.setdefault((*place, key), self._line(start))
            pairs.append((key, self._value((*place, key))))

        self._members("{", "}", member, opened=opened)
        return Object(pairs)

    def _array(self, place: Place) -> list[Any]:
        items: list[Any] = []

        def item() -> None:
            items.append(self._value((*place, len(items))))
            self._white()
            if self._peek() == ":":
                self._fault(
                    "a key is in a list", "put it and its value between { and }, or close ["
                )
                self._at += 1
                self._value((*place, len(items)))

        self._members("[", "]", item)
        return items

    def _members(
        self, bracket: str, closing: str, one: Callable[[], None], *, opened: bool = True
    ) -> None:
        """The members between two brackets, with commas."""
        other = {"}": "]", "]": "}"}[closing]
        line = self._line(self._at)
        self._at += opened
        self._open.append(closing)
        if len(self._open) > DEEPEST:
            self.faults.append(_too_deep(line))
            raise _StopError
        comma = True  # whether a member may come
        while True:
            self._white()
            here = self._peek()
            if here == "":
                self._unclosed += closing
                break
            if here == closing:
                self._at += 1
                break
            if here == other:
                if other in self._open[:-1]:
                    way = f"add it: it closes the {bracket} of line {line}"
                    self._fault(f"a {closing} is missing before {other}", way)
                else:
                    self._fault(f"a {other} where a {closing} belongs", f"write {closing}")
                    self._at += 1
                break
            if here in ",;":
                self._fault("a comma with nothing before it", "remove the comma")
                self._at += 1
                continue
            if not comma:
                self._fault(f"a comma is missing before {self._shown()}", "add the comma")
            before = self._at
            one()
            comma = self._comma(closing)
            if self._at == before:  # never happens; but untrusted text must not loop
                raise _StopError
        self._open.pop()

    def _comma(self, closing: str) -> bool:
        """Whether a comma follows, that another member follows."""
        self._white()
        at, here = self._at, self._peek()
        if here not in (",", ";"):
            return False
        if here == ";":
            self._fault("a semicolon where a comma belongs", "write a comma")
        self._at += 1
        self._white()
        if self._peek() in ("", "}", "]"):
            what = f"a comma before {self._peek() or 'the end'}"
            self._fault(what, "remove the comma", at)
        return True

    def _key(self) -> str | None:
        """A key, and the colon after it."""
        start = self._at
        if self._begins_string():
            key = self._string(":")
        else:
            match = _BARE_KEY.match(self._text, self._at)
            if not match:
                self._fault(f"{self._shown()} does not belong here", "remove it")
                self._at += 1
                return None
            key = match[0]
            self._at = match.end()
            if self._peek() == '"':
                self._fault(f'a " is missing before {key[:60]}', f'write "{key[:60]}"', start)
                self._at += 1
            else:
                self._fault(f"the key {key[:60]} is not in quotes", f'write "{key[:60]}"', start)
        self._white()
        if self._peek() == ":" and self._text[self._at + 1 : self._at + 2] != "=":
            self._at += 1
            return key
        other = self._match(_COLON)
        if other:
            self._fault(f"a {other[0]} where a colon belongs", "write a colon")
            self._at = other.end()
            return key
        # The quote that seemed to end the key begins its value: "ingress: "closed".
        name, colon, rest = key.partition(":")
        if colon and not rest.strip() and self._text[self._at - 1] == '"':
            self._at -= 1
            self._fault(f'a " is missing after {name[:60]}', f'write "{name[:60]}":', start)
            return name
        self._fault(f"a colon is missing after {json.dumps(key[:60])}", "add the colon")
        return key

    def _end(self) -> None:
        """What follows the document."""
        if self._unclosed:
            remedy = f"add {self._unclosed} at the end; or is the file cut off?"
            self._fault(f"this is not JSON: the file ends before {self._unclosed}", remedy)
            return
        while True:
            self._white()
            here = self._peek()
            if not here:
                return
            if here in "}]":
                self._fault(f"there is one {here} too many", "remove it")
            elif here == ",":
                self._fault("a comma follows the end of the document", "remove it")
            elif here in "{[" or self._text.startswith("---", self._at):
                remedy = "one file holds one network: put it into a file of its own"
                self._fault("a second document begins", remedy)
                return
            else:
                word = self._text[self._at :].split(None, 1)[0][:30]
                remedy = "remove it" + (
                    ": it is left over from a here-document" if word == "EOF" else ""
                )
                self._fault(f"{word!a} follows the end of the document", remedy)
                return
            self._at += 1
