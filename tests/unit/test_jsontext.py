# SPDX-License-Identifier: Apache-2.0
"""jsontext reads and writes what the standard json module does, and refuses what JSON is not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mycelium_cni.cni import jsontext

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)


def as_text(value: Any) -> Any:
    """A value in which 1, 1.0 and True differ."""
    return repr(value)


@given(documents)
def test_every_document_is_read_as_json_reads_it(document: Any) -> None:
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False, indent=1)):
        encoded = text.encode("utf-8", "surrogatepass")
        try:
            expected = json.loads(encoded.decode())
        except UnicodeDecodeError:
            continue
        assert as_text(jsontext.parse(encoded)) == as_text(expected)


@given(documents)
@example({"a": "\ud800", "b\n": [True, None, 1.5, -0.0, 2]})
def test_every_document_is_written_so_that_json_reads_it(document: Any) -> None:
    text = jsontext.dump(document)
    assert text.isascii()
    assert "\n" not in text
    assert as_text(json.loads(text)) == as_text(document)


@settings(max_examples=500)
@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\u', max_size=40)
)
def test_no_text_is_read_unless_json_reads_it(text: bytes | str) -> None:
    """For any text: the same value, or ValueError from both."""
    encoded = text if isinstance(text, bytes) else text.encode()
    try:
        ours = jsontext.parse(encoded)
    except ValueError:
        with pytest.raises((ValueError, RecursionError)):
            document = json.loads(encoded.decode(), parse_constant=_refuse)
            # Python's own reading is wider here: it makes `inf` of 1e999, which nobody can write.
            json.dumps(document, allow_nan=False)
    else:
        assert as_text(ours) == as_text(json.loads(encoded.decode(), parse_constant=_refuse))


def _refuse(constant: str) -> None:
    raise ValueError(constant)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" \n",
        b"{",
        b"[1,",
        b'{"a"}',
        b'{"a":}',
        b"[1,]",
        b'{"a":1,}',
        b"{} x",
        b"{}{}",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"01",
        b"1.",
        b".5",
        b"'a'",
        b'"\n"',
        b'"\\x"',
        b'"\\u12"',
        b"// no\n{}",
        b"\xef\xbb\xbf{}",
        b"\xff",
        b"\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 65,
        b"1e400",
        b'{"prevResult": [-1e999]}',
        b"9" * 100_000,
    ],
    ids=lambda text: text[:12].decode("latin-1").encode("unicode_escape").decode() or "nothing",
)
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError) as raised:
        jsontext.parse(text)
    assert str(raised.value)


@pytest.mark.parametrize("text", ["[1.5]", "1e3", "-0", "-0.0", "1E-2", "9" * 64, "1e308"])
def test_numbers_are_those_of_json(text: str) -> None:
    ours, theirs = jsontext.parse(text.encode()), json.loads(text)
    assert as_text(ours) == as_text(theirs)


def test_it_works_where_json_was_never_imported() -> None:
    """In the plugin nothing has loaded json; the C scanner then has no error class to raise."""
    program = (
        "import sys\n"
        "from mycelium_cni.cni import jsontext\n"
        "assert jsontext.parse(b'{\"a\": [1, 2.5, null]}') == {'a': [1, 2.5, None]}\n"
        "for text in (b'{', b'[1', b'\"x', b'{\"a\" 1}', b'tru', b'[1 2]', b'\"\\\\u00'):\n"
        "    try: jsontext.parse(text)\n"
        "    except ValueError: pass\n"
        "    else: raise SystemExit(f'{text!r} was read')\n"
        "raise SystemExit('json was loaded' if 'json' in sys.modules else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
