# SPDX-License-Identifier: Apache-2.0
"""In place of CPython's: a megabyte of tables about characters, of which the executable needs none.

The standard library imports it to check host names that are not ASCII.
"""


def normalize(_form: str, text: str) -> str:
    """The text, which must be ASCII. Raises ValueError."""
    if not text.isascii():
        raise ValueError(f"{text!a} is not ASCII")
    return text
