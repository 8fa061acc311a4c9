# SPDX-License-Identifier: Apache-2.0
"""Nightly DAG: make a video for each product without one, and record its location in a table.

Only missing videos are bought: a product whose video is in the table is skipped, and a product
whose row was lost finds its video by its idempotency key.
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
    """Return requests with the SKU as their id, which is part of the idempotency key."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(CLIPS)
        rows = connection.execute(MISSING).fetchall()
    return [
        {"id": sku, "promptImage": photo, "promptText": f"{name}, slow turn", "duration": 5}
        for sku, photo, name in rows
    ]


@task(retries=3, retry_delay_seconds=5)
def load(database: str, clips: list[dict[str, Any]]) -> int:
    """Write the new videos into the table; a repeated call changes nothing."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany(
            "INSERT OR REPLACE INTO clips VALUES (:id, :uri, :sha256, :duration)", clips
        )
    return len(clips)


@flow(log_prints=True)
def nightly_clips(database: str, max_seconds: float = 5000) -> int:
    """Ingest, generate, load. The limit is for all nights together, because they share a key."""
    requests = products_without_a_clip(database)
    if not requests:
        return 0
    result = generate_batch(requests, idempotency_key="clips", max_seconds=max_seconds)
    print(f"{result.succeeded} stored, {result.failed} failed, {result.uncertain} uncertain")
    stored = [item for item in result.results if item.uri]
    return load(database, [item.model_dump() for item in stored])


if __name__ == "__main__":
    nightly_clips("shop.db")
