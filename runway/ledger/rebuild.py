# SPDX-License-Identifier: Apache-2.0
"""Reading stored videos back into a ledger that has forgotten them.

The JSON beside each stored video (its sidecar) holds what the ledger knew of the purchase. So a
ledger that was put back from an older copy, or begun anew, learns again what was bought and
delivered. A purchase that is not delivered yet has no sidecar; the service's own list of tasks is
the only place that knows it.
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

from ..errors import KeyConflict, StorageError
from ..models.generation import StoredVideo
from ..storage.base import Storage
from .entry import Entry, State
from .purchase import attach
from .store import Ledger

SUFFIX = ".json"

READERS = 8
"""Sidecars that are read at a time; an object store answers each after a while."""


@dataclass
class Rebuilt:
    """Outcome of a rebuilding.

    Attributes:
        restored: Keys that the ledger had forgotten and knows again.
        known: How many purchases it knew already.
        renamed: Keys that stand for another purchase now, and under which names theirs are.
        unreadable: Names of sidecars that cannot be read.
        videos: How many stored videos have a sidecar.
        serials: By ledger, the serials of the claims that the sidecars tell of.
    """

    restored: list[str]
    known: int
    renamed: dict[str, str]
    unreadable: list[str]
    videos: int
    serials: dict[str, set[int]]


def read_sidecars(storage: Storage) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the sidecars in a storage, and the names of files that look like one and are none.

    Raises:
        StorageError: The storage cannot be listed.
    """
    names = storage.names()
    if names is None:
        raise StorageError("this storage cannot list its files; name it by its address instead")
    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    wanted = [name for name in names if name.endswith(SUFFIX)]
    with ThreadPoolExecutor(READERS, thread_name_prefix="cometapi-rebuild") as readers:
        for name, content in zip(wanted, readers.map(partial(_read, storage), wanted), strict=True):
            if content is None:
                unreadable.append(name)
            elif isinstance(content, dict) and {"key", "task_id", "video"} <= content.keys():
                found.append(content)
    return found, unreadable


def _read(storage: Storage, name: str) -> Any:
    """Return the JSON in a file, or None where it cannot be read."""
    try:
        return json.loads(storage.read(name))
    except (StorageError, ValueError):
        return None


def entries_of(
    sidecars: Iterable[dict[str, Any]], *, location: str, base_url: str, identity: str
) -> tuple[list[Entry], list[str]]:
    """Return the entries that sidecars tell of, and the keys of those that cannot be read; pure.

    Args:
        sidecars: What lies beside the videos.
        location: The storage that they are in, as the ledger names it.
        base_url: The service that was used where a sidecar does not say.
        identity: The ledger; the serials of another one mean nothing in it.
    """
    by_purchase: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for sidecar in sidecars:
        by_purchase[str(sidecar["key"]), str(sidecar["task_id"])].append(sidecar)
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
    optional = {"route", "model", "fingerprint", "request", "credentials", "flow_run_id", "cost"}
    billed = first.get("billed_seconds") or round(sum(video.duration for video in videos), 3)
    known: dict[str, Any] = {name: first.get(name) for name in optional}
    return Entry(
        **known,
        key=first["key"],
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
    """Return how many claims nobody knows after a rebuilding, at most; pure.

    A key that was claimed more than once keeps the serial of its last claim only, so some of the
    missing ones may be earlier attempts of keys that are known.

    Args:
        last_known: The newest claim that the ledger knew before.
        highest: The newest claim that there was.
        in_ledger: Serials that the ledger knows now.
        in_sidecars: Serials that stored videos tell of.
    """
    return len(set(range(last_known + 1, highest + 1)) - in_ledger - in_sidecars)


async def rebuild(ledger: Ledger, storage: Storage, *, location: str, base_url: str) -> Rebuilt:
    """Write the purchases whose videos are in a storage into a ledger that does not know them.

    Args:
        ledger: The ledger.
        storage: Where the videos are.
        location: The storage as the ledger names it.
        base_url: The service that was used where a sidecar does not say.

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
    written = {(entry.key, entry.task_id) for entry in await ledger.insert(lost)}
    for entry in lost:
        is_written = (entry.key, entry.task_id) in written
        name = entry.key if is_written else await _written_beside(ledger, entry, location)
        result.restored.append(name)
        if name != entry.key:
            result.renamed[entry.key] = name
    return result


async def _written_beside(ledger: Ledger, entry: Entry, location: str) -> str:
    """Write a purchase whose key the ledger has: into that entry if it is the same purchase.

    Returns:
        The key that it has now.
    """
    task_id = entry.task_id or ""
    try:
        there = await attach(ledger, entry, task_id)
    except KeyConflict:
        other = entry.model_copy(update={"key": f"{entry.key}+{task_id}"})
        await ledger.insert([other])
        return other.key
    await ledger.stored(there, task_id, location, entry.videos[location])
    return entry.key
