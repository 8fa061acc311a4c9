# SPDX-License-Identifier: Apache-2.0
"""HTTP client of CometAPI: calls, replies, errors, and when to poll."""
