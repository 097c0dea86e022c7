# SPDX-License-Identifier: Apache-2.0
"""Thousands of pods attached while calls are killed, then a check for leftovers: make soak."""
