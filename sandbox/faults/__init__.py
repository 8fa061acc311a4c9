# SPDX-License-Identifier: Apache-2.0
"""Faults of the sandbox: which happen when, and how each is sent."""
