# SPDX-License-Identifier: Apache-2.0
"""Clips that the sandbox renders, caches and serves."""
