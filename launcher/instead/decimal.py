# SPDX-License-Identifier: Apache-2.0
"""In place of CPython's: 6,000 lines, of which `fractions` imports one name.

rich divides the width of a table with fractions; nobody in the executable makes a Decimal.
"""


class Decimal:
    """What no number is an instance of."""
