# SPDX-License-Identifier: Apache-2.0
"""The lenient parser agrees with json about what is JSON, and always ends."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from mycelium_ctl.node import lenient

SEED = 20261125
DOCUMENTS: list[Any] = [
    {
        "cniVersion": "1.0.0",
        "name": "n",
        "plugins": [
            {"type": "bridge", "ipam": {"ranges": [[{"subnet": "10.1.0.0/16"}]]}},
            {"type": "mycelium-cni", "mtu": 1400, "routes": [{"dst": "400::/7"}], "ipMasq": True},
        ],
    },
    {"name": 'a "quote", a \\ and a \u00fc', "empty": {}, "none": None, "list": [], "f": -1.5e3},
]
PIECES = [
    *("{", "}", "[", "]", '"', "'", ",", ":", "\n", " ", "true", "True", "\\", "//", "/*", "#"),
    *("\u00a0", "\u201c", "\u2019", "\0", "=", ";", "1", "-", "\\u", "0x1", "NaN", '""', "\t", "`"),
    *("\uff0c", "\uff1a", "\uff02", "\uff5d", "+1e999", "1."),
]


def mutated(rng: random.Random, text: str) -> str:
    for _ in range(rng.randint(0, 5)):
        at = rng.randrange(len(text) + 1)
        kind = rng.random()
        if kind < 0.5:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind < 0.8:
            text = text[:at] + text[at + rng.randint(1, 4) :]
        elif kind < 0.9:
            text = text[:at]
        else:
            text = text[:at] + text[max(0, at - 20) : at] + text[at:]
    return text


def refuse(constant: str) -> Any:
    raise ValueError(constant)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_text_has_a_fault_exactly_if_it_is_no_json(indent: int | None) -> None:
    rng = random.Random(SEED)
    texts = [json.dumps(document, indent=indent) for document in DOCUMENTS]
    for _ in range(2000):
        text = mutated(rng, rng.choice(texts))
        try:
            expected = json.loads(text, parse_constant=refuse)
        except ValueError:
            assert lenient.parse(text.encode()).faults, text
        else:
            parsed = lenient.parse(text.encode())
            assert (parsed.document, parsed.faults) == (expected, []), text
            # Valid JSON is valid also for the parser that continues after faults.
            reader = lenient._Reader(text)
            reader.read()
            assert (reader.document, reader.faults) == (expected, []), text


def test_every_member_has_its_line() -> None:
    lines = lenient.parse(b'{\n"a": 1,\n"b": [\n{"c":\n2},\n3]}').lines
    assert lines == {
        (): 1,
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 0, "c"): 4,
        ("b", 1): 6,
    }
