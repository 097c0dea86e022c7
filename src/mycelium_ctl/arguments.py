# SPDX-License-Identifier: Apache-2.0
"""Types of command-line arguments, stricter than Python's own."""

from __future__ import annotations

import argparse
import math


def seconds(text: str) -> float:
    """A length of time; raises ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of seconds")
    return number
