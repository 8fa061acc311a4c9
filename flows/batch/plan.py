# SPDX-License-Identifier: Apache-2.0
"""Plan of a batch: its rows, their idempotency keys, their cost, and results already stored."""

import asyncio
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from ...runway.batch.errors import InvalidManifest, once_each
from ...runway.batch.manifest import read_rows
from ...runway.batch.models import BatchItem, BatchResult, ItemResult
from ...runway.batch.outcomes import invalid, stored, unusable, waiting
from ...runway.batch.rows import (
    BadRow,
    Row,
    batch_keys,
    batch_prefix,
    check_rows,
    rows_of,
)
from ...runway.batch.table_files import FileFormat
from ...runway.errors import InvalidRequest, StorageUnavailable
from ...runway.ledger.budget import Budget, Spent, estimate, seconds_of
from ...runway.ledger.entry import Entry
from ...runway.ledger.figures import Spending
from ...runway.models.keys import one_form
from ...runway.models.model_limits import known_models, model_table
from ...runway.redact import hide_secrets, redact_url
from ..runtime import log
from ..runtime.block_storage import canonical_location
from ..runtime.identity import lasting_run_id
from ..runtime.run_context import RunContext
from ..steps.delivery import is_gone
from .source_check import check_sources

if TYPE_CHECKING:
    from ...runway.ledger.store import Ledger


@cache
def _temporary_folders() -> re.Pattern[str]:
    """Return the pattern of the temporary folders that Prefect creates for one run.

    The process worker runs a deployment without a working directory in one of them. The runner
    keeps pulled code in the other. tests/flows/batch/test_plan.py checks both against Prefect.
    """
    try:
        folders = {gettempdir(), os.path.realpath(gettempdir())}
    except FileNotFoundError:  # no folder for temporary files is writable
        return re.compile("(?!)")
    temporary = "|".join(map(re.escape, folders))
    return re.compile(rf"({temporary})/(tmp\w+prefect|runner_storage)/")


@dataclass(frozen=True)
class Reading:
    """Properties of a manifest that the user names, because its name and content do not say them.

    Attributes:
        file_format: Format, as csv, jsonl or parquet.
        encoding: Encoding of the text, as windows-1252.
    """

    file_format: str | None = None
    encoding: str | None = None

    def rows(self, location: str) -> list[Row]:
        """Return the rows of a manifest.

        Raises:
            InvalidManifest: The manifest cannot be read.
        """
        named = FileFormat[self.file_format.upper()] if self.file_format else None
        return read_rows(location, file_format=named, encoding=self.encoding)


@dataclass(frozen=True)
class Plan:
    """Validated content of a batch."""

    idempotency_key: str
    items: list[BatchItem]
    bad: list[BadRow]


def make_plan(requests: str | list[Any], key: str | None, reading: Reading = Reading()) -> Plan:
    """Read the requests of a batch, and validate every row.

    Args:
        requests: Location of a manifest, or a list of requests.
        key: Prefix of the items' idempotency keys. By default it is derived from the location of
            the manifest, or from the run if there is none.
        reading: Properties of the manifest that the user names.

    Raises:
        InvalidManifest: The manifest cannot be read.
        InvalidRequest: No key is given, and the manifest is in a folder that exists for one run
            only, so the next run would derive a different key.
    """
    key = one_form(key or _batch_key(requests))
    rows: Sequence[Row] = reading.rows(requests) if isinstance(requests, str) else rows_of(requests)
    items, bad = check_rows(rows, batch_keys(key))
    return Plan(key, items, bad)


def _batch_key(requests: str | list[Any]) -> str:
    if not isinstance(requests, str):
        return f"run-{lasting_run_id() or uuid4()}"
    address = one_form(_real_name(requests)).rstrip("/")  # macOS decomposes the names of files
    temporary = _temporary_folders()
    if temporary.match(address) or temporary.match(canonical_location(requests)):
        raise InvalidRequest(
            f"{requests} is in a folder that Prefect creates for this run only, so the next run "
            "would buy everything again. Pass idempotency_key, or set the deployment's working_dir"
        )
    if address.lower().startswith(("http://", "https://")):
        address = _file_at(address)
    stem = PurePosixPath(address).name.partition(".")[0][:60]
    stem = stem if hide_secrets(stem) == stem else "batch"  # A key must not look like a secret.
    return f"{stem}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def _file_at(url: str) -> str:
    """Return the address of a manifest without login and query; pure.

    The query may be a signature, and a new signature does not mean a different file. Only the
    number of a sheet in a document of Google does.
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    sheet = parse_qs(parts.query).get("gid", [""])[0] if host == "docs.google.com" else ""
    return f"{parts.scheme}://{host}{parts.path}" + (f"?gid={sheet}" if sheet else "")


def _real_name(location: str) -> str:
    """Return the name of a location; in a local path, symbolic links are resolved.

    A manifest is the same batch under every link or spelling of its path. Consequently, a link that
    later points to another file stands for another batch. The docs mention this.
    """
    name = canonical_location(location)
    return os.path.realpath(name) if os.path.isabs(name) else name  # noqa: PTH117 -- it is text


def check_rows_of(plan: Plan, *, strict: bool) -> None:
    """Log the problems of invalid rows, and refuse a batch that must not start.

    Args:
        plan: Plan of the batch.
        strict: Whether a single invalid row is enough to refuse the batch.

    Raises:
        InvalidManifest: No row is valid, or one is not and ``strict`` is set.
    """
    distinct = once_each(plan.bad)
    for problem in distinct[:20]:
        log.logger().warning("%s", problem)
    if len(distinct) > 20:
        log.logger().warning("… and %d more problems", len(distinct) - 20)
    if not plan.items or (strict and plan.bad):
        what = "no row is valid" if not plan.items else "not every row is valid"
        raise InvalidManifest(what, rows=plan.bad)


def check_output(requests: str | list[Any], output: str | None) -> None:
    """Check that the results would not overwrite the manifest.

    Raises:
        StorageUnavailable: The output is the same file as the manifest.
    """
    if output and isinstance(requests, str) and _real_name(output) == _real_name(requests):
        raise StorageUnavailable(f"the output would overwrite the manifest {redact_url(requests)}")


def check_prices(plan: Plan, budget: Budget) -> None:
    """Check that a limit in money has the price of each model.

    Raises:
        InvalidRequest: A price is missing.
    """
    missing = {item.request.model for item in plan.items} - set(budget.prices)
    if budget.max_spend is not None and missing:
        raise InvalidRequest(
            f"max_spend needs the price of {', '.join(sorted(missing))}. Set COMETAPI_PRICES, "
            f"such as {_example_price(missing)} or catalogue, or use max_seconds"
        )


def _example_price(models: Collection[str]) -> str:
    """Return an example of COMETAPI_PRICES, with a published price and its date."""
    priced = {name: its.price for name, its in known_models().items() if its.price}
    named = next((name for name in sorted(models) if name in priced), "gen3a_turbo")
    source = model_table().sources[priced[named].source]
    price = priced[named].price()
    value = f'"{price}"' if price.per_second else str(price)
    return f'{{"{named}": {value}}} ({source.seller}, {source.date})'


async def read_spent(budget: Budget, ledger: "Ledger") -> Spent:
    """Return the amounts spent under the keys of a budget, as the ledger has them.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
    """
    return await ledger.spent(budget.prefix, budget.prices, budget.currency)


def spending_of(plan: Plan, budget: Budget, spent: Spent | None = None) -> Spending:
    """Return the estimated cost of a batch, and the part that is already spent."""
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
    """Items of a batch as recorded in the ledger.

    Attributes:
        bought: Idempotency keys with a generation that was bought or possibly charged.
        results: The result of each item, stored or waiting.
    """

    bought: set[str]
    results: list[ItemResult]


async def look_up(context: RunContext, items: Sequence[BatchItem]) -> Found:
    """Read the ledger entries of all items in one call.

    Raises:
        LedgerUnavailable: The ledger cannot be used.
    """
    known = await (await context.ledger()).get_many([item.idempotency_key for item in items])
    done = await asyncio.to_thread(_stored_already, items, known, context.location)
    return Found(
        bought={key for key, entry in known.items() if not entry.is_free()},
        results=[done.get(item.id) or waiting(item) for item in items],
    )


def _stored_already(
    items: Sequence[BatchItem], known: Mapping[str, Entry], location: str
) -> dict[str, ItemResult]:
    done: dict[str, ItemResult] = {}
    for item in items:
        entry = known.get(item.idempotency_key)
        if entry is None or not entry.is_of(item.request):
            continue
        videos = entry.videos.get(location, ())
        if videos and not is_gone(videos):
            done[item.id] = stored(item, entry.result(location))
    return done


async def dry_run(
    requests: str | list[Any],
    key: str | None,
    storage: str | None,
    reading: Reading = Reading(),
    *,
    max_spend: float | None = None,
    max_seconds: float | None = None,
) -> BatchResult:
    """Return the result and cost to expect of a batch, from its rows and the ledger. Buys nothing.

    The sources of each item that is not bought yet are read and checked.

    Raises:
        InvalidManifest: The manifest cannot be read.
        InvalidRequest: There is a limit in money, and a model without a price.
        LedgerUnavailable: The ledger cannot be used.
    """
    plan = await asyncio.to_thread(make_plan, requests, key, reading)
    context = RunContext(None, storage)
    ledger = await context.ledger()
    prefix, prices = batch_prefix(plan.idempotency_key), await context.prices()
    budget = Budget(prefix, prices, max_spend, max_seconds, context.currency)
    check_prices(plan, budget)
    found = await look_up(context, plan.items)
    missing = [item for item in plan.items if item.idempotency_key not in found.bought]
    problems = await check_sources(missing, context)
    results = [
        unusable(item, problems[item.id]) if item.id in problems else result
        for item, result in zip(plan.items, found.results, strict=True)
    ]
    usable = replace(plan, items=[item for item in plan.items if item.id not in problems])
    return BatchResult(
        idempotency_key=plan.idempotency_key,
        results=(*results, *invalid(plan.bad)),
        spending=spending_of(usable, budget, await read_spent(budget, ledger)),
    )
