# SPDX-License-Identifier: Apache-2.0
"""HTTP client of CometAPI: calls, reply parsing, error mapping and polling."""
