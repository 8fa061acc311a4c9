# SPDX-License-Identifier: Apache-2.0
"""Shards of a batch: the items of each, the orders for the workers, and the joint outcome.

Each item belongs to the shard that a hash of its idempotency key names. So an item stays in its
shard when rows are added to the manifest or change their places.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Self

from pydantic import Field, ValidationError

from ..errors import (
    AuthenticationError,
    CometAPIError,
    GenerationTimeout,
    QuotaExceeded,
    StorageUnavailable,
    SubmissionUncertain,
)
from ..ledger.budget import EXCEEDS_LIMIT
from ..ledger.costs import BILLED_CURRENCY
from ..ledger.entry import Entry
from ..models.generation import FrozenModel
from ..models.prices import Prices
from ..models.requests import ROUTES
from .models import BatchItem, ItemResult, Outcome
from .outcomes import account_refuses, ended, not_bought, too_many_failures

FOLDER = ".cometapi-shards"
"""Folder of a storage with the orders and the results of shards."""

_STOPPING = {AuthenticationError.__name__, QuotaExceeded.__name__}


def shard_of(idempotency_key: str, shards: int) -> int:
    """Return the number of an item's shard, from 0; pure."""
    digest = hashlib.sha256(idempotency_key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % shards


def split(items: Iterable[BatchItem], shards: int) -> list[list[BatchItem]]:
    """Return the items of each shard, in their order; a shard may be empty; pure."""
    parts: list[list[BatchItem]] = [[] for _ in range(shards)]
    for item in items:
        parts[shard_of(item.idempotency_key, shards)].append(item)
    return parts


def share(total: int, shards: int) -> list[int]:
    """Return the part of a limit that each shard gets; the parts differ by one at most; pure."""
    least, rest = divmod(total, shards)
    return [least + (number < rest) for number in range(shards)]


class ShardOrder(FrozenModel):
    """Order for one shard of a batch: its items, and the limits that apply to it."""

    idempotency_key: str = Field(description="Prefix of the idempotency keys of the batch.")
    number: int = Field(ge=1, description="Number of the shard, from 1.")
    of: int = Field(ge=1, description="Number of shards of the batch.")
    total: int = Field(ge=1, description="Number of items of all shards.")
    rows: tuple[dict[str, Any], ...] = Field(
        repr=False, description="Items: id, idempotency key, route and fields of the request."
    )
    base_url: str = Field(description="Base URL of the service.")
    storage: str = Field(description="Location for the videos.")
    credentials: str | None = Field(
        default=None, description="Name of the credentials block; None for those of each worker."
    )
    ledger: str = Field(description="Identity of the ledger.")
    host: str | None = Field(
        default=None, description="Machine of the ledger, if only that machine can use it."
    )
    max_in_flight: int = Field(ge=1, description="Generations in flight of this shard.")
    submissions_per_second: float | None = Field(
        default=None, description="Submissions per second of this shard."
    )
    max_failures: int | None = Field(
        default=None, description="Number of items that may fail in all shards."
    )
    max_spend: float | None = Field(default=None, description="Spending limit of the batch.")
    max_seconds: float | None = Field(
        default=None, description="Limit of the batch in seconds of video."
    )
    prices: Prices = Field(
        default={}, description="Prices by model of the items; empty without a spending limit."
    )
    currency: str = Field(
        default=BILLED_CURRENCY, description="Currency of the prices and of the spending limit."
    )

    @property
    def name(self) -> str:
        """Number of the shard and of all shards, as ``2/4``."""
        return f"{self.number}/{self.of}"

    def items(self) -> list[BatchItem]:
        """Return the items of the shard."""
        return [_item_of(row) for row in self.rows]

    def packed(self) -> tuple[str, bytes]:
        """Return the digest that names the order's run and files, and the content of its file.

        Equal orders have equal digests.
        """
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()
        return _digest_of(text), gzip.compress(text)

    @classmethod
    def unpack(cls, content: bytes, digest: str) -> Self:
        """Return the order in a file.

        Args:
            content: Content of the file.
            digest: Digest of the order.

        Raises:
            StorageUnavailable: The file does not have that order.
        """
        with suppress(OSError, EOFError, zlib.error, ValidationError):
            text = gzip.decompress(content)
            if _digest_of(text) == digest:
                return cls.model_validate_json(text)
        raise StorageUnavailable(f"the file {order_name(digest)} is not the order of this shard")


def _digest_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]


def row_of(item: BatchItem) -> dict[str, Any]:
    """Return an item as JSON from which the same request can be made again; pure."""
    return {
        "id": item.id,
        "idempotency_key": item.idempotency_key,
        "route": item.request.route,
        "fields": item.request.fields(),
    }


def _item_of(row: Mapping[str, Any]) -> BatchItem:
    request = ROUTES[row["route"]].model_validate(row["fields"])
    return BatchItem(id=row["id"], idempotency_key=row["idempotency_key"], request=request)


def order_name(digest: str) -> str:
    """Return the name of an order's file in the storage of the batch."""
    return f"{FOLDER}/{digest}.json.gz"


def results_name(digest: str, run: str) -> str:
    """Return the name of the file with the results of a shard's run."""
    return f"{FOLDER}/{digest}.{run}.results.jsonl"


def read_rows(content: bytes) -> list[ItemResult]:
    """Return the results that a shard's run wrote; pure.

    Raises:
        ValueError: The content is not valid.
    """
    return [ItemResult.model_validate_json(line) for line in content.splitlines()]


def reason_to_stop_shards(results: Iterable[ItemResult], max_failures: int | None) -> str | None:
    """Return the reason why no shard of a batch may buy more, or None; pure.

    Args:
        results: Results of the items of all shards so far.
        max_failures: Number of items that may fail, or None for no limit.
    """
    failed = [one for one in results if one.outcome in {Outcome.FAILED, Outcome.UNCERTAIN}]
    refusals = (account_refuses(one.message) for one in failed if one.error in _STOPPING)
    return next(refusals, None) or too_many_failures(len(failed), max_failures)


def reason_of_gap(results: Iterable[ItemResult]) -> str | None:
    """Return why an item was not bought, other than a spending limit, or None; pure."""
    reasons = (one.message or "" for one in results if one.outcome is Outcome.NOT_BOUGHT)
    return next((why for why in reasons if not why.startswith(EXCEEDS_LIMIT)), None)


def left_behind(item: BatchItem, entry: Entry | None, why: str) -> ItemResult:
    """Return the result of an item that its shard did not finish, from its ledger entry; pure.

    Args:
        item: The item.
        entry: Its entry in the ledger, if there is one.
        why: Reason why the shard ended.
    """
    if entry is None or entry.is_free():
        return not_bought(item, why)
    return ended(item, _error_of(entry, why))


def _error_of(entry: Entry, why: str) -> CometAPIError:
    if failure := entry.failure():
        return failure
    error = GenerationTimeout(why) if entry.task_id else SubmissionUncertain(why)
    return error.with_context(idempotency_key=entry.idempotency_key, task_id=entry.task_id)
