# SPDX-License-Identifier: Apache-2.0
"""In place of rich's: the names of 3,600 emoji, which rich looks for in the text of a spinner."""

EMOJI: dict[str, str] = {}
