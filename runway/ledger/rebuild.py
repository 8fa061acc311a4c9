# SPDX-License-Identifier: Apache-2.0
"""Rebuilding of a ledger from the sidecars of stored videos.

The JSON file beside each stored video (its sidecar) contains the ledger's data of the purchase. So
a ledger that was restored from an older copy, or is new, can be filled again with all delivered
purchases. A purchase that is not delivered yet has no sidecar; it is recorded only in the service's
own list of tasks.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from ..errors import IdempotencyKeyConflict, StorageError
from ..models.generation import StoredVideo
from ..storage.base import Storage
from .entry import Entry, State
from .purchase import attach
from .store import Ledger

SUFFIX = ".json"

READERS = 8
"""Number of sidecars that are read at a time, since an object store answers each with a delay."""


@dataclass
class Rebuilt:
    """Outcome of a rebuild.

    Attributes:
        restored: Keys of the purchases that the ledger lacked and has again.
        known: Number of purchases that the ledger already had.
        renamed: For each key that now belongs to another purchase, the new key of its own one.
        unreadable: Names of sidecars, or keys of purchases, that cannot be read.
        videos: Number of stored videos with a readable sidecar.
        serials: Serials of the claims in the sidecars, by ledger.
    """

    restored: list[str]
    known: int
    renamed: dict[str, str]
    unreadable: list[str]
    videos: int
    serials: dict[str, set[int]]


def read_sidecars(storage: Storage) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the sidecars in a storage, and the names of JSON files that cannot be read.

    Raises:
        StorageError: The storage cannot be listed.
    """
    names = storage.names()
    if names is None:
        raise StorageError("this storage cannot list its files; name it by its URL instead")
    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    wanted = [name for name in names if name.endswith(SUFFIX)]
    with ThreadPoolExecutor(READERS, thread_name_prefix="cometapi-rebuild") as readers:
        for name, content in zip(wanted, readers.map(partial(_read, storage), wanted), strict=True):
            if content is None:
                unreadable.append(name)
            elif (
                isinstance(content, dict)
                and {"idempotency_key", "task_id", "video"} <= content.keys()
            ):
                found.append(content)
    return found, unreadable


def _read(storage: Storage, name: str) -> Any:
    """Return the JSON content of a file, or None if it cannot be read."""
    try:
        return json.loads(storage.read(name))
    except (StorageError, ValueError):
        return None


def entries_of(
    sidecars: Iterable[dict[str, Any]], *, location: str, base_url: str, identity: str
) -> tuple[list[Entry], list[str]]:
    """Return the entries in sidecars, and the keys of those that cannot be read; pure.

    Args:
        sidecars: Contents of the sidecars.
        location: Location of the storage, as the ledger records it.
        base_url: Root of the service, for sidecars that do not record it.
        identity: Identity of the ledger; serials of another ledger are dropped.
    """
    by_purchase: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for sidecar in sidecars:
        by_purchase[str(sidecar["idempotency_key"]), str(sidecar["task_id"])].append(sidecar)
    entries: list[Entry] = []
    unreadable: list[str] = []
    for (key, _), parts in sorted(by_purchase.items()):
        try:
            entries.append(_entry_of(parts, location, base_url, identity))
        except (ValidationError, KeyError, TypeError, ValueError):
            unreadable.append(key)
    return entries, unreadable


def _entry_of(
    parts: Sequence[dict[str, Any]], location: str, base_url: str, identity: str
) -> Entry:
    first = parts[0]
    videos = [StoredVideo.model_validate(part["video"]) for part in parts]
    submitted = datetime.fromisoformat(first["submitted_at"])
    stored = max(datetime.fromisoformat(part["stored_at"]) for part in parts)
    optional = {
        "route",
        "model",
        "fingerprint",
        "request",
        "credentials",
        "flow_run_id",
        "deployment_id",
        "deployment",
        "tags",
        "list_cost",
        "list_currency",
        "cost",
        "currency",
        "cost_source",
    }
    billed = first.get("billed_seconds") or round(sum(video.duration for video in videos), 3)
    known: dict[str, Any] = {name: first.get(name) for name in optional}
    return Entry(
        **known,
        idempotency_key=first["idempotency_key"],
        task_id=first["task_id"],
        base_url=first.get("base_url") or base_url,
        claim=first.get("claim") or uuid4().hex,
        storage=location,
        state=State.STORED,
        attempts=1,
        charges=first.get("charges") or 1,
        polls=first.get("polls") or 0,
        billed_seconds=billed,
        serial=first.get("serial") if first.get("ledger") == identity else None,
        created_at=submitted,
        changed_at=stored,
        submitted_at=submitted,
        finished_at=submitted + timedelta(seconds=float(first.get("waited") or 0.0)),
        stored_at=stored,
        videos={location: tuple(sorted(videos, key=lambda video: video.uri))},
    )


def missing_claims(
    last_known: int, highest: int, *, in_ledger: set[int], in_sidecars: set[int]
) -> int:
    """Return the maximum number of claims that are still missing after a rebuild; pure.

    A key that was claimed more than once keeps only the serial of its last claim. So some of the
    missing claims may be earlier attempts of known keys.

    Args:
        last_known: Serial of the newest claim in the ledger before the rebuild.
        highest: Highest serial that was ever seen.
        in_ledger: Serials in the ledger now.
        in_sidecars: Serials in the sidecars of stored videos.
    """
    return len(set(range(last_known + 1, highest + 1)) - in_ledger - in_sidecars)


async def rebuild(ledger: Ledger, storage: Storage, *, location: str, base_url: str) -> Rebuilt:
    """Add the purchases whose videos are in a storage to a ledger that lacks them.

    Args:
        ledger: Ledger to fill.
        storage: Storage with the videos.
        location: Location of the storage, as the ledger records it.
        base_url: Root of the service, for sidecars that do not record it.

    Raises:
        StorageError: The storage cannot be listed.
        LedgerUnavailable: The ledger cannot be used.
    """
    sidecars, unreadable = await asyncio.to_thread(read_sidecars, storage)
    identity = (await ledger.history.mark()).identity
    entries, bad = entries_of(sidecars, location=location, base_url=base_url, identity=identity)
    serials: defaultdict[str, set[int]] = defaultdict(set)
    for sidecar in sidecars:
        if isinstance(sidecar.get("serial"), int) and isinstance(sidecar.get("ledger"), str):
            serials[sidecar["ledger"]].add(sidecar["serial"])
    result = Rebuilt([], 0, {}, [*unreadable, *bad], len(sidecars), serials)
    known = await ledger.known_ids([entry.task_id or "" for entry in entries])
    lost = [entry for entry in entries if (entry.task_id, entry.base_url) not in known]
    result.known = len(entries) - len(lost)
    written = {(entry.idempotency_key, entry.task_id) for entry in await ledger.table.insert(lost)}
    for entry in lost:
        is_written = (entry.idempotency_key, entry.task_id) in written
        name = (
            entry.idempotency_key if is_written else await _written_beside(ledger, entry, location)
        )
        result.restored.append(name)
        if name != entry.idempotency_key:
            result.renamed[entry.idempotency_key] = name
    return result


async def _written_beside(ledger: Ledger, entry: Entry, location: str) -> str:
    """Record a purchase whose key is already in the ledger.

    If the existing entry is the same purchase, it is completed. Otherwise the purchase gets a new
    entry under another key.

    Returns:
        The key under which the purchase is recorded.
    """
    task_id = entry.task_id or ""
    try:
        there = await attach(ledger, entry, task_id)
    except IdempotencyKeyConflict:
        other = entry.model_copy(update={"idempotency_key": f"{entry.idempotency_key}+{task_id}"})
        await ledger.table.insert([other])
        return other.idempotency_key
    await ledger.mark_stored(there, task_id, location, entry.videos[location])
    return entry.idempotency_key
