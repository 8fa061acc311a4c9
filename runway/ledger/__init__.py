# SPDX-License-Identifier: Apache-2.0
"""Ledger of paid generations: entries, leases, purchases, and the databases that keep them."""
