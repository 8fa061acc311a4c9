# SPDX-License-Identifier: Apache-2.0
"""Values of a generation: requests, replies, idempotency keys, limits and prices of models."""
