# SPDX-License-Identifier: Apache-2.0
"""Copies of the ledger by another process are compared only where they must be complete."""

import sqlite3
from contextlib import closing

from .disturbances import change_of


def test_a_change_is_noticed_while_and_after_it_is_written(tmp_path):
    """A copy counts only if no change was written during it."""
    ledger = tmp_path / "ledger.db"
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE purchases (key TEXT)")
        before = change_of(ledger)
        assert before is not None
        assert change_of(ledger) == before
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO purchases VALUES ('sku-17')")
        assert change_of(ledger) is None
        connection.execute("COMMIT")
        assert change_of(ledger) not in {before, None}
