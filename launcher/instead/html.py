# SPDX-License-Identifier: Apache-2.0
"""In place of CPython's, which brings the names of 2,200 characters along, to read HTML."""


def escape(text: str, quote: bool = True) -> str:
    """The text as HTML has it."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&quot;").replace("'", "&#x27;") if quote else text
