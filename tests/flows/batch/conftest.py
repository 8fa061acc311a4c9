# SPDX-License-Identifier: Apache-2.0
"""Fixture of the tests of shards."""

import pytest

from ..conftest import LedgerProbe


@pytest.fixture
def book(ledger_probe: LedgerProbe) -> LedgerProbe:
    """Return the ledger probe under the name that the tests of shards use."""
    return ledger_probe
