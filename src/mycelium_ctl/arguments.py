# SPDX-License-Identifier: Apache-2.0
"""What a person may write behind an option, where argparse takes more than makes sense."""

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
