# SPDX-License-Identifier: Apache-2.0
"""Texts without secrets: known ones in every usual encoding, and whatever resembles one.

Strangers' configurations may hold anything, so this errs on the side of masking too much.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection
from typing import Any, Final

MASKED: Final = "(masked)"

_WORDS: Final = (
    r"token|secret|passw|passphrase|passwd|pwd|credential|bearer|cookie|psk|authorization|[-_]pass"
    r"|(?:private|api|access|shared|encryption|signing|client|session|auth|network)[-_.]?key"
)
# Whole names that are secrets; "auth" inside "author" is none.
_NAMES: Final = r"auth|pass|key|key[-_.]?data|client[-_.]?key[-_.]?data|pin|seed"
_KEY: Final = re.compile(rf"{_WORDS}|^(?:{_NAMES})$", re.IGNORECASE)
_PATTERNS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"(?P<keep>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----).*?(?:(?=-----END )|\Z)",
        r"(?P<keep>)\bLS0tLS1CRUdJTi[\w+/=]*",  # "-----BEGIN " in base64
        r"(?P<keep>)\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?",  # a JSON web token (RFC 7519)
        r"(?P<keep>\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}",
        r"(?P<keep>\w://)[^/\s@\"']+(?=@)",  # user and password, or a token (RFC 3986)
        r"(?P<keep>)\b(?:AKIA[A-Z0-9]{16}|gh[oprsu]_\w{20,}|glpat-[\w-]{20,}|xox[a-z]-[\w-]{10,})",
        # A header to its end: "Authorization: Token ...", "Cookie: a=...; b=..." (RFC 9110, 6265).
        r"(?P<keep>\b(?:authorization|cookie)\s*:\s*)[^\r\n\"']+",
        r"(?P<keep>\b(?:token|secret|password|passphrase)\s+(?:is\s+|was\s+)?)[\w.~+/=-]{14,}",
        # As in JSON, YAML, TOML, an environment and a command line.
        rf"(?P<keep>[\w.-]*(?:{_WORDS})[\w.-]*\\?[\"']?\s*[:=]\s*)"
        r"(?:\\?\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s\"',;{}\[\]]+)",
        rf"(?P<keep>--?[\w-]*(?:{_WORDS})[\w-]*\s+)(?:\"[^\"]*\"|'[^']*'|[^\s\"'-][^\s\"']*)",
        rf"(?P<keep>[\"'](?:{_NAMES})[\"']\s*:\s*)\"(?:[^\"\\]|\\.)*\"",
    )
)


class Masker:
    """Masks secrets, and counts in `masked` how many it has met. `known` are secrets by their
    bytes; shorter ones than 8 would mask half of every text."""

    def __init__(self, known: Collection[bytes]) -> None:
        self.masked = 0
        self._known: Final = [
            re.compile(pattern)
            for secret in known
            if len(secret) >= 8
            for pattern in _encodings(secret)
        ]

    def text(self, octets: bytes) -> str:
        """A text without secrets. What is not UTF-8 is escaped."""
        for pattern in self._known:
            octets, count = pattern.subn(MASKED.encode(), octets)
            self.masked += count
        return self._resembling(octets.decode(errors="backslashreplace"))

    def json(self, octets: bytes) -> str:
        """A JSON document without secrets: every value whose key looks like the name of one is
        masked, whatever it is. Raises ValueError if it is not JSON."""
        value = json.loads(octets)
        return self.text(json.dumps(self._value(value), indent=2).encode())

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if isinstance(value, dict):
            return {
                key: self._mask()
                if _KEY.search(key) and item not in (None, "")
                else self._value(item)
                for key, item in value.items()
            }
        return self._resembling(value) if isinstance(value, str) else value

    def _mask(self) -> str:
        self.masked += 1
        return MASKED

    def _resembling(self, text: str) -> str:
        for pattern in _PATTERNS:
            text = pattern.sub(self._replaced, text)
        return text

    def _replaced(self, found: re.Match[str]) -> str:
        if MASKED in found[0]:
            return found[0]
        self.masked += 1
        quote = '"' if found[0].endswith('"') else ""
        return f"{found['keep']}{quote}{MASKED}{quote}"


def _encodings(secret: bytes) -> list[bytes]:
    """Patterns of a secret as it is, in hex with any separator, and in both kinds of base64."""
    separated = rb"[\s:,_-]{0,2}(?:0x)?".join(b"%02x" % octet for octet in secret)
    found = [re.escape(secret), rb"(?i:" + separated + rb")"]
    # The last character of each base64 text also encodes what follows, or nothing.
    whole = len(secret) * 8 // 6
    for encoded in (base64.b64encode(secret), base64.urlsafe_b64encode(secret)):
        found.append(re.escape(encoded[:whole]) + rb"[\w+/=-]*")
    return found
