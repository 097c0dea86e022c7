# SPDX-License-Identifier: Apache-2.0
"""The CNI protocol from outside: the executable, its environment, its streams, the kernel."""
