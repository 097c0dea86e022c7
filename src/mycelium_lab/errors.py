# SPDX-License-Identifier: Apache-2.0
"""What the lab raises when it cannot go on."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot be made, or something in it did not happen: one line for a person."""
