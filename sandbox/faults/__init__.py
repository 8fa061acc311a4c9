# SPDX-License-Identifier: Apache-2.0
"""Faults of the sandbox: their plan, and the code that applies them to requests."""
