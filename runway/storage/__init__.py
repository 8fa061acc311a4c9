# SPDX-License-Identifier: Apache-2.0
"""Storages for finished videos, and the staged files that are published in them."""
