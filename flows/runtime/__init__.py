# SPDX-License-Identifier: Apache-2.0
"""What a run shares: settings, ledger, storage, identity, hooks and suspension."""
