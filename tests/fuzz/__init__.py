# SPDX-License-Identifier: Apache-2.0
"""Malformed bytes for every parser: make fuzz."""
