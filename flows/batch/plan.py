# SPDX-License-Identifier: Apache-2.0
"""What a batch is asked for: its rows, their keys, what they cost, and what is stored already."""

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from ...runway.batch.errors import InvalidManifest
from ...runway.batch.manifest import read_rows
from ...runway.batch.models import BatchItem, BatchResult, ItemResult
from ...runway.batch.outcomes import invalid, stored, waiting
from ...runway.batch.rows import BadRow, Row, batch_keys, batch_prefix, check_rows, rows_of
from ...runway.errors import InvalidRequest, StorageUnavailable
from ...runway.ledger.budget import Budget, Spent, estimate, seconds_of
from ...runway.ledger.entry import Entry
from ...runway.ledger.figures import Spending
from ...runway.redact import hide_secrets, shown_url
from ..runtime import log
from ..runtime.block_storage import full_name
from ..runtime.ledger_access import open_ledger
from ..runtime.run_context import settings_now
from ..runtime.sync import lasting_run_id
from ..steps.delivery import is_gone

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


_TEMPORARY = {re.escape(place) for place in (gettempdir(), os.path.realpath(gettempdir()))}
_PASSING = re.compile(rf"({'|'.join(_TEMPORARY)})/(tmp\w+prefect|runner_storage)/")
"""Where Prefect's process worker runs what has no working directory, and where its runner puts what
it pulled; tests/flows/batch/test_plan.py holds both."""


@dataclass(frozen=True)
class Plan:
    """What is asked for, checked."""

    key: str
    items: list[BatchItem]
    bad: list[BadRow]


def planned(requests: str | list[Any], key: str | None) -> Plan:
    """What is asked for, every row of it checked.

    Raises:
        InvalidManifest: The manifest cannot be read.
        InvalidRequest: There is no key, and where the manifest lies makes none that lasts.
    """
    key = key or _batch_key(requests)
    rows: Sequence[Row] = read_rows(requests) if isinstance(requests, str) else rows_of(requests)
    items, bad = check_rows(rows, batch_keys(key))
    return Plan(key, items, bad)


def _batch_key(requests: str | list[Any]) -> str:
    if not isinstance(requests, str):
        return f"run-{lasting_run_id() or uuid4()}"
    address = _real_name(requests)
    if _PASSING.match(address) or _PASSING.match(full_name(requests)):
        raise InvalidRequest(
            f"{requests} lies in a folder that Prefect makes for this run alone, so the next run "
            "would buy all of it again: give the batch a key, or the deployment a working_dir"
        )
    if address.lower().startswith(("http://", "https://")):  # a fresh signature is no other file
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2].lower()
        address = f"{parts.scheme}://{host}{parts.path}"
    stem = PurePosixPath(address).name.partition(".")[0][:60]
    stem = stem if hide_secrets(stem) == stem else "batch"  # no key may read like a secret
    return f"{stem}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def _real_name(place: str) -> str:
    """Return a place as it is written, a path of this machine with its links followed.

    One manifest is one batch, through whichever link or spelling it is reached. So a link that
    leads to another file tomorrow leads to another batch, which the docs say.
    """
    name = full_name(place)
    return os.path.realpath(name) if os.path.isabs(name) else name  # noqa: PTH117 -- it is text


def check_rows_of(plan: Plan, *, strict: bool) -> None:
    """Say what is wrong with the rows, and stop where none is left or the user is strict.

    Raises:
        InvalidManifest: Nothing is to be bought.
    """
    for row in plan.bad[:20]:
        log.logger().warning("%s", row)
    if len(plan.bad) > 20:
        log.logger().warning("… and %d more problems", len(plan.bad) - 20)
    if not plan.items or (strict and plan.bad):
        what = "no row is valid" if not plan.items else "not every row is valid"
        raise InvalidManifest(what, rows=plan.bad)


def check_output(requests: str | list[Any], output: str | None) -> None:
    """The results of a batch are not written over its manifest.

    Raises:
        StorageUnavailable: They would be.
    """
    if output and isinstance(requests, str) and _real_name(output) == _real_name(requests):
        raise StorageUnavailable(f"the results would replace the manifest {shown_url(requests)}")


def check_prices(plan: Plan, budget: Budget) -> None:
    """A limit in money needs the price of each model.

    Raises:
        InvalidRequest: One is missing.
    """
    missing = {item.request.model for item in plan.items} - set(budget.prices)
    if budget.max_spend is not None and missing:
        raise InvalidRequest(
            f"max_spend needs the price of {', '.join(sorted(missing))}: set "
            'COMETAPI_PRICES, as {"gen3a_turbo": 0.32}, or limit max_seconds'
        )


def spending_of(plan: Plan, budget: Budget, spent: Spent | None = None) -> Spending:
    """What a batch comes to, and what was bought of it."""
    costs = [estimate(item.request, budget.prices) for item in plan.items]
    priced, spent = budget.prices and all(cost is not None for cost in costs), spent or Spent()
    return Spending(
        seconds=sum(seconds_of(item.request) for item in plan.items),
        estimate=round(sum(cost or 0.0 for cost in costs), 6) if priced else None,
        spent_seconds=round(spent.seconds, 6),
        spent=round(spent.money, 6) if priced else None,
        max_seconds=budget.max_seconds,
        max_spend=budget.max_spend,
    )


@dataclass(frozen=True)
class Found:
    """What the ledger knows of the items of a batch.

    Attributes:
        bought: Keys under which something is, or may have been, bought.
        results: The result of each item, stored or waiting.
    """

    bought: set[str]
    results: list[ItemResult]


async def looked_up(items: Sequence[BatchItem], ledger: "Ledger", storage: str | None) -> Found:
    """Ask the ledger about all items at once.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
    """
    known = await ledger.of_keys([item.key for item in items])
    place = full_name(storage or settings_now().storage)
    done = await asyncio.to_thread(_stored_already, items, known, place)
    return Found(
        bought={key for key, entry in known.items() if not entry.is_free()},
        results=[done.get(item.id) or waiting(item) for item in items],
    )


def _stored_already(
    items: Sequence[BatchItem], known: Mapping[str, Entry], place: str
) -> dict[str, ItemResult]:
    done: dict[str, ItemResult] = {}
    for item in items:
        entry = known.get(item.key)
        if entry is None or entry.fingerprint != item.request.fingerprint():
            continue
        videos = entry.videos.get(place, ())
        if videos and not is_gone(videos):
            done[item.id] = stored(item, entry.result(place))
    return done


async def foreseen(requests: str | list[Any], key: str | None, storage: str | None) -> BatchResult:
    """What a batch would come to, as its rows and the ledger tell. It buys nothing.

    Raises:
        InvalidManifest: The manifest cannot be read.
        LedgerUnavailable: The ledger cannot be used.
    """
    plan = await asyncio.to_thread(planned, requests, key)
    ledger = await open_ledger()
    budget = Budget(batch_prefix(plan.key), settings_now().prices)
    found = await looked_up(plan.items, ledger, storage)
    return BatchResult(
        key=plan.key,
        results=(*found.results, *invalid(plan.bad)),
        spending=spending_of(plan, budget, await ledger.spent(budget.prefix, budget.prices)),
    )
