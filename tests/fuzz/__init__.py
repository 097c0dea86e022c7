# SPDX-License-Identifier: Apache-2.0
"""Bytes that nobody should send, read by what reads them: make fuzz."""
