# SPDX-License-Identifier: Apache-2.0
"""Pods attached by the thousand while calls are killed, and a look at what is left: make soak."""
