# SPDX-License-Identifier: Apache-2.0
"""A nightly DAG: products without a clip get one, and a table says where each clip is.

Only what is missing is bought: a product whose clip is in the table is not asked for, and one whose
row was lost finds its video by its key.
"""

import sqlite3
from contextlib import closing
from typing import Any

from prefect import flow, task

from prefect_cometapi.flows import generate_batch

CLIPS = (
    "CREATE TABLE IF NOT EXISTS clips (sku TEXT PRIMARY KEY, uri TEXT, sha256 TEXT, seconds REAL)"
)
MISSING = "SELECT sku, photo, name FROM products WHERE sku NOT IN (SELECT sku FROM clips)"


@task
def products_without_a_clip(database: str) -> list[dict[str, Any]]:
    """Return requests, with the SKU as the part of the key that stays."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(CLIPS)
        rows = connection.execute(MISSING).fetchall()
    return [
        {"id": sku, "promptImage": photo, "promptText": f"{name}, slow turn", "duration": 5}
        for sku, photo, name in rows
    ]


@task(retries=3, retry_delay_seconds=5)
def load(database: str, clips: list[dict[str, Any]]) -> int:
    """Put the new clips into the table; again is the same."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany(
            "INSERT OR REPLACE INTO clips VALUES (:id, :uri, :sha256, :duration)", clips
        )
    return len(clips)


@flow(log_prints=True)
def nightly_clips(database: str, max_seconds: float = 5000) -> int:
    """Ingest, generate, load; the limit is for all nights together, since they share a key."""
    requests = products_without_a_clip(database)
    if not requests:
        return 0
    result = generate_batch(requests, idempotency_key="clips", max_seconds=max_seconds)
    print(f"{result.succeeded} stored, {result.failed} failed, {result.uncertain} uncertain")
    stored = [item for item in result.results if item.uri]
    return load(database, [item.model_dump() for item in stored])


if __name__ == "__main__":
    nightly_clips("shop.db")
