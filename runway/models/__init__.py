# SPDX-License-Identifier: Apache-2.0
"""Data models of a generation: requests, replies, idempotency keys, model limits and prices."""
