# SPDX-License-Identifier: Apache-2.0
"""Texts without secrets: known ones in every usual encoding, and whatever resembles one.

No list of spellings is complete. So a configuration, in which a person may have written anything,
keeps only the strings of keys that are known to hold no secret, and those whose form is that of an
address, a path or a number. In other texts, such as logs, what resembles a secret is masked, in
doubt too much of it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from mycelium_cni.cni.config import KEYS

MASKED: Final = "(masked)"

_WORDS: Final = (
    r"token|secret|passw|pass[- ]?(?:phrase|code)|pwd|credential|creds|bearer|cookie|psk"
    r"|authorization|community|signature|[-_]pass|[-_.]auth(?![\w.-])|(?<!public)[-_.]key(?![\w.-])"
    r"|(?:private|preshared|pre-shared|api|access|shared|account"
    r"|encryption|authentication|signing|client|session|auth|network)[-_. ]?key"
)
# Whole names that are secrets; "auth" inside "author" is none.
_NAMES: Final = (
    r"auth|pass|pw|passin|passout|key|key[-_.]?data|client[-_.]?key[-_.]?data|pin|otp|sig|seed"
)
_KEY: Final = re.compile(rf"{_WORDS}|^(?:{_NAMES})$", re.IGNORECASE)
_OPTION: Final = re.compile(
    rf"-(?-i:[pPwWakt])|--?[\w-]*(?:{_WORDS}|pass|auth)[\w-]*", re.IGNORECASE
)
# In quotes, also escaped ones; without its last quote it ends with the line.
_VALUE: Final = (
    r"(?:\\{0,15}\"(?:[^\"\\\n]|\\[^\n])*(?:\"|(?=\n)|\Z)|'[^'\n]*(?:'|(?=\n)|\Z)"
    r"|[^\s\"',;{}\[\]()<>]+)"
)
# What follows an option such as -p where it is not a password.
_PROTOCOL: Final = r"(?:tcp|udp|sctp|icmp|icmpv6|ipv6-icmp|esp|gre|all|\d{1,5})\b"
# A name with such a word in it. It is read once and not again (possessive), so that no text takes
# time that grows with its square.
_NAME: Final = rf"(?=[\w.-]*(?:{_WORDS}))[\w.-]++(?: (?:key|phrase)\b)?"
_LABEL: Final = r"[A-Z0-9 ]{0,40}(?:PRIVATE|SECRET) KEY[A-Z ]{0,9}"
_PATTERNS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        # PEM (RFC 7468), also without its end or its beginning; PuTTY's, and PEM's in base64.
        rf"(?P<keep>-{{2,6}} ?BEGIN {_LABEL}-{{2,6}}).*?(?:(?=--END )|\Z)",
        rf"(?P<keep>)(?<![\w+/=])(?:[\w+/=]{{16,}}(?:\\n|\s)+){{1,200}}(?=-{{2,6}} ?END {_LABEL}-)",
        r"(?P<keep>Private-Lines:\s*\d+)(?:\s+[\w+/=]{16,})+",
        r"(?P<keep>)\b(?:LS0tLS1CRUdJTi|b3BlbnNzaC1rZXk)[\w+/=]*",
        r"(?P<keep>)\beyJ[\w-]{5,}(?:\.[\w-]*){1,4}",  # a JSON web token (RFC 7515, 7516)
        # A header to the end of its line (RFC 9110, 6265).
        r"(?P<keep>\b(?:authorization|cookie)(?:\s*:\s*|\s+))[^\r\n]+",
        r"(?P<keep>\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}",
        # User and password, or a token (RFC 3986), in which a person may not have escaped @ and /.
        r"(?P<keep>\w://)[^\s\"'<>]{1,1000}(?=@)",
        r"(?P<keep>(?<![\w.+-])[\w.+-]++:)[^\s\"'<>@:/][^\s\"'<>@]{0,1000}(?=@)",
        r"(?P<keep>%3A%2F%2F)[^\s\"'<>]{1,1000}(?=%40)",
        r"(?P<keep>[?&][\w.-]++=)[^&\s\"'<>]+",  # every value of a query
        # Tokens that begin so, and kubeadm's and k3s's; hashes of passwords (crypt(5)).
        r"(?P<keep>)\b(?:A[KS]IA[A-Z0-9]{16}|gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
        r"|xox[a-z]-[\w-]{10,}|(?:npm|dckr_pat|[sr]k_live|[sr]k_test)_[\w-]{16,}|sk-[\w-]{20,}"
        r"|pypi-[\w-]{16,}|hv[sbr]\.[\w-]{20,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}"
        r"|dop_v1_\w{16,}|AGE-SECRET-KEY-\w+|K10[0-9a-f]{64}::\S+)",
        r"(?P<keep>)(?<![\w.])(?=[a-z0-9.]{0,22}\d)[a-z0-9]{6}\.[a-z0-9]{16}(?![\w.])",
        r"(?P<keep>)\$(?:\d\w?|y|gy)\$[\w./$=,+-]{20,}",
        # 32 bytes in base64, as WireGuard's keys; what else is as long and as random; `ip xfrm`.
        r"(?P<keep>)(?<![\w+/=-])[\w+/-]{43}=(?![\w=])",
        r"(?P<keep>)(?<![\w+/=.-])(?-i:(?=[\w+/]*[a-z])(?=[\w+/]*[A-Z])(?=[\w+/]*\d))"
        r"[\w+/]{40,}={0,2}",
        r"(?P<keep>)(?-i:(?<![\w+=])(?=\w*[a-z])(?=\w*[A-Z])(?=\w*\d[a-zA-Z_]*\d)\w{24,}={0,2})",
        r"(?P<keep>\b0x)[0-9a-f]{32,}",
        r"(?P<keep>\bkeys?:?\s+)(?:[0-9a-f]{32}\s+)?[\w+/=-]{16,}",
        # Elements of XML; blocks of YAML.
        rf"(?P<keep><(?=[\w:.-]*(?:{_WORDS}))[\w:.-]++>)[^<]+",
        rf"(?P<keep>(?<![^\n])(?P<indent>[ \t]*+){_NAME}:[ \t]*+[|>][-+]?\n)"
        r"(?:(?P=indent)[ \t]+[^\n]*\n?)+",
        # As in JSON, YAML, TOML, an environment and a command line.
        # A password may have spaces.
        r"(?P<keep>(?<![\w.-])(?=[\w.-]*(?:passw|pass[- ]?phrase))[\w.-]++(?: phrase\b)?\s*[:=]\s*)"
        r"[^\s\"',;{}\[\]()<>\\][^\n\"',;{}\[\]()<>]*",
        rf"(?P<keep>(?<![\w.-]){_NAME}(?: for [\w ]{{1,40}})?\\{{0,15}}[\"']?\s*"
        rf"(?:[:=]?=>?|->|:|%3[ad])\s*[<(\[]?){_VALUE}",
        rf"(?P<keep>(?<![\w-])(?:{_NAMES})\\{{0,15}}[\"']?\s*[:=]\s*){_VALUE}",
        rf"(?P<keep>(?<![\w-])pass\w*:){_VALUE}",
        rf"(?P<keep>--from-literal[\s=]+[\w.-]++=){_VALUE}",
        rf"(?P<keep>(?<![\w-])--?(?=[\w-]*(?:{_WORDS}|pass|auth))[\w-]++[\"']?[\s,]+)(?!-){_VALUE}",
        rf"(?P<keep>(?<![^\s\"'])-(?-i:[pPwWa])[\"']?[\s,]+)(?!-|{_PROTOCOL}){_VALUE}",
        r"(?P<keep>(?<!\S)(?:-u\s*|-U\s*|--?(?:\w+-)?(?:user|login)[\s=]+)[\w.@\\-]++[:%])[^\s\"']+",
        r"(?P<keep>\b(?:mysql|mariadb|mysqldump|sshpass)\b[^\n]{0,500}?\s-p)[^\s\"']+",
        r"(?P<keep>\b(?:snmp\w+|k3s|openssl)\b[^\n]{0,500}?\s-[ctkK]\s+)[^\s\"']+",
        r"(?P<keep>\b(?:com2sec6?|createUser|htpasswd)\s)[^\r\n]+",
        rf"(?P<keep>\"name\":\s*\"[^\"]{{0,200}}(?:{_WORDS})[^\"]{{0,200}}\",\s*\"value\":\s*){_VALUE}",
        # Words of a sentence, or of a file such as snmpd.conf, ipsec.secrets and frr.conf.
        r"(?P<keep>\b(?:\w*community6?|\w*passw(?:or)?d|requirepass|auth_pass|pass[- ]?phrase|psk"
        r"|xauth|eap|md5|(?:authentication|private|preshared|pre-shared)[- ]key)"
        rf"\s+(?:(?:is|was|of|for|from)\s+)*)(?!\W*\(masked\)){_VALUE}",
        rf"(?P<keep>\b(?:{_WORDS})\w*\s+(?:(?:is|was)\s+)?[<(\[]?)"
        r"(?:\"[^\"]*\"|'[^']*'|[\w.~+/=-]{14,}|(?=[\w.~+/=-]*\d)[\w.~+/=-]{6,})",
    )
)
# Keys of network configurations whose strings are never secret: the specification's, those of the
# reference plugins, of the usual primary plugins, and ours.
_PLAIN_KEYS: Final = frozenset(KEYS) | {
    *("cniVersion", "cniVersions", "name", "type", "bridge", "master", "mode", "device", "devices"),
    *("ifname", "ifName", "ifNames", "interface", "interfaces", "linkName", "vlan", "vlanId"),
    *("vrfname", "backend", "markMasqBit", "conditionsV4", "conditionsV6", "iptablesBackend"),
    *("ingressPolicy", "firewalldZone", "log_level", "datastore_type", "nodename"),
    *("clusterNetwork", "defaultNetworks", "resourceName", "deviceID", "domain", "search"),
}
_PLAIN_FORM: Final = re.compile(
    r"[0-9a-fA-F]*(?::[0-9a-fA-F]*){2,}(?:/\d{1,3})?|\d{1,3}(?:\.\d{1,3}){3}(?:/\d{1,2})?"
    r"|\d{1,10}|\d+\.\d+\.\d+|(?:/[a-z0-9._-]*)+|true|false"
)


class Masker:
    """Masks secrets, and counts in `masked` how many it has met. `known` are secrets by their
    bytes; shorter ones than 8 would mask half of every text."""

    def __init__(self, known: Collection[bytes]) -> None:
        self.masked = 0
        self._harmless: Final[set[str]] = set()
        self._known: Final = [
            re.compile(pattern)
            for secret in known
            if len(secret) >= 8
            for pattern in _encodings(secret)
        ]

    def text(self, octets: bytes) -> str:
        """A text without secrets. What is not UTF-8 is escaped."""
        return self._resembling(self._without_known(octets))

    def json(self, octets: bytes) -> str:
        """A JSON document without secrets: every value whose key looks like the name of one is
        masked, whatever it is. Raises ValueError if it is not JSON."""
        return self._dumped(self._value(json.loads(octets)))

    def configuration(self, document: Any) -> str:
        """A network configuration without secrets: only plain strings stay."""
        return self._dumped(self._value(self._plain(document, "")))

    def _dumped(self, value: Any) -> str:
        return self._without_known(json.dumps(value, indent=2).encode())

    def _without_known(self, octets: bytes) -> str:
        for pattern in self._known:
            octets, count = pattern.subn(MASKED.encode(), octets)
            self.masked += count
        return octets.decode(errors="backslashreplace")

    def _plain(self, value: Any, key: str) -> Any:
        """The value of a key of a configuration, without strings that might be secret."""
        if isinstance(value, list):
            return [self._plain(item, key) for item in value]
        if isinstance(value, dict):
            return {name: self._plain(item, name) for name, item in value.items()}
        if not isinstance(value, str) or key in _PLAIN_KEYS or not value:
            return value
        return value if _PLAIN_FORM.fullmatch(value) else self._mask()

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return list(self._items(value))
        if isinstance(value, dict):
            # {"name": "DB_PASSWORD", "value": …}, as Kubernetes has it
            named = isinstance(value.get("name"), str) and _KEY.search(value["name"])
            return {
                self._word(key): self._mask()
                if (_KEY.search(key) or (named and key == "value")) and item not in (None, "")
                else self._value(item)
                for key, item in value.items()
            }
        return self._word(value) if isinstance(value, str) else value

    def _items(self, items: list[Any]) -> Iterator[Any]:
        """A list, which may be a command line."""
        before: Any = None
        for item in items:
            secret = isinstance(before, str) and _OPTION.fullmatch(before)
            yield self._mask() if secret and isinstance(item, str) else self._value(item)
            before = item

    def _mask(self) -> str:
        self.masked += 1
        return MASKED

    def _word(self, text: str) -> str:
        """A key or a value of JSON. Most come again with each link, route or rule."""
        if text not in self._harmless:
            masked = self._resembling(text)
            if masked != text:
                return masked
            self._harmless.add(text)
        return text

    def _resembling(self, text: str) -> str:
        for pattern in _PATTERNS:
            text = pattern.sub(self._replaced, text)
        return text

    def _replaced(self, found: re.Match[str]) -> str:
        secret = found[0][len(found["keep"]) :]
        if secret.strip("\"'\\") == MASKED:
            return found[0]
        self.masked += 1
        quote = '"' if secret.startswith('"') and secret.endswith('"') else ""
        return f"{found['keep']}{quote}{MASKED}{quote}"


def _encodings(secret: bytes) -> list[bytes]:
    """Patterns of a secret as it is, in hex with any separator, in decimal, and in both kinds of
    base64."""
    separated = rb"[\s:,_-]{0,2}(?:0x|\\{1,4}x)?".join(b"%02x" % octet for octet in secret)
    decimal = rb"[\s,;:]{1,3}".join(b"%d" % octet for octet in secret)
    found = [re.escape(secret), rb"(?i:" + separated + rb")", rb"(?<!\d)" + decimal + rb"(?!\d)"]
    # The last character of each base64 text also encodes what follows, or nothing.
    whole = len(secret) * 8 // 6
    for encoded in (base64.b64encode(secret), base64.urlsafe_b64encode(secret)):
        found.append(re.escape(encoded[:whole]) + rb"[\w+/=-]*")
    return found
