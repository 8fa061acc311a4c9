# SPDX-License-Identifier: Apache-2.0
"""Files of the shards of a batch in its storage: orders and results.

They may contain signed URLs, so they are deleted once nothing needs them.
"""

import asyncio
from collections.abc import Collection, Iterable

from ...runway.batch.models import ItemResult
from ...runway.batch.sharding import FOLDER, order_name, read_rows, results_name
from ...runway.errors import StorageError
from ...runway.storage.base import Storage
from .shard_runs import Shard


async def read_results(storage: Storage, shard: Shard) -> list[ItemResult]:
    """Return the results that the run of a shard has written.

    Raises:
        StorageError: The file cannot be read, or is not there.
        ValueError: Its content is not valid.
    """
    name = results_name(shard.digest, str(shard.run.id))
    return read_rows(await asyncio.to_thread(storage.read, name))


async def listed_files(storage: Storage) -> set[str] | None:
    """Return the names of the files of all shards, or None if the storage does not list them."""
    try:
        names = await asyncio.to_thread(storage.names, FOLDER)
    except StorageError:
        return None
    return None if names is None else {f"{FOLDER}/{name}" for name in names}


def removable(listed: Iterable[str], digests: Collection[str], kept: Collection[str]) -> list[str]:
    """Return the files of some orders that may be deleted; pure.

    Args:
        listed: Names of the files of all shards.
        digests: Digests of the orders whose files are not needed any more.
        kept: Names of files to keep.
    """
    return sorted(
        name
        for name in listed
        if name not in kept and name.removeprefix(f"{FOLDER}/").partition(".")[0] in digests
    )


async def remove_files(
    storage: Storage, shards: Iterable[Shard], digests: Collection[str]
) -> list[str]:
    """Delete the files of orders, except for results that were not read.

    Args:
        storage: Storage of the batch.
        shards: Shards that this run has followed.
        digests: Digests of the orders whose files are not needed any more.

    Returns:
        The names of the files that could not be deleted.
    """
    known: set[str] = set()
    kept: set[str] = set()
    for shard in shards:
        results = results_name(shard.digest, str(shard.run.id))
        known |= {order_name(shard.digest), results}
        kept |= set() if shard.is_read else {results}
    listed = await listed_files(storage)
    left: list[str] = []
    for name in removable(known if listed is None else listed, digests, kept):
        try:
            await asyncio.to_thread(storage.delete, name)
        except StorageError:
            left.append(name)
    return left
