# SPDX-License-Identifier: Apache-2.0
"""JSON in and out, through the C halves of the standard library's json.

`import json` costs 5 ms per pod: its Python half compiles regular expressions to skip white space.
"""

from __future__ import annotations

import sys
from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


_INFINITY = 1e400


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > 64:  # CPython refuses above 4,300 digits, with a message about Python
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _decimal(digits: str) -> float:
    number = float(digits)
    if number in (_INFINITY, -_INFINITY):  # written again it would be `inf`, which is not JSON
        raise ValueError(f"the number {digits[:64]} is too large")
    return number


# What the C scanner asks of a json.JSONDecoder: a types.SimpleNamespace, found as types.py does it.
_context = type(sys.implementation)(  # type: ignore[call-arg] # typeshed gives it another class
    strict=True,
    object_hook=None,
    object_pairs_hook=None,
    parse_float=_decimal,
    parse_int=_integer,
    parse_constant=_refuse,
)
_scan = make_scanner(_context)  # type: ignore[arg-type] # typeshed wants json's own class
_WHITE = " \t\n\r"


def parse(document: bytes) -> Json:
    """The value of one JSON document (RFC 8259), UTF-8 without a byte order mark.

    Raises ValueError that says what is wrong. No input makes it raise anything else.
    """
    text = document.decode().strip(_WHITE)
    if not text:
        raise ValueError("unexpected end of JSON input")
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"unexpected character at {stop.value}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (ImportError, SystemError):  # it needs an error class of the json package, not loaded
        raise ValueError("broken object, array or string") from None
    if end != len(text):
        raise ValueError(f"more after the end of the document, at {end}")
    return value  # type: ignore[no-any-return]


def _unwritable(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} is not JSON")


# What json.JSONEncoder asks of the C encoder: no spaces, keys in their own order.
_write = make_encoder(
    None, _unwritable, encode_basestring_ascii, None, ":", ",", False, False, True
)


def dump(value: Json) -> str:
    """One line of JSON, ASCII only, so that untrusted bytes are printed escaped."""
    return "".join(_write(value, 0))
