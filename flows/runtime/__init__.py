# SPDX-License-Identifier: Apache-2.0
"""Support code for runs: settings, ledger, storage, identity, hooks and suspension."""
