# SPDX-License-Identifier: Apache-2.0
"""Each item is in exactly one shard, and an order is read as it was written."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway.batch import sharding
from prefect_cometapi.runway.batch.models import BatchItem, ItemResult, Outcome
from prefect_cometapi.runway.batch.rows import batch_keys, check_rows, rows_of
from prefect_cometapi.runway.batch.sharding import ShardOrder
from prefect_cometapi.runway.errors import StorageUnavailable
from prefect_cometapi.runway.ledger.budget import EXCEEDS_LIMIT
from prefect_cometapi.runway.ledger.entry import State
from prefect_cometapi.runway.models.prices import Price

from ..factories import entry

REQUESTS = [
    {
        "promptImage": "https://example.com/cat.jpg",
        "promptText": "langsam \u00fcber \U0001f408",
        "seed": 7,
    },
    {"videoUri": "https://example.com/a.mp4?X-Amz-Signature=0a1b", "promptText": "cinematic"},
    {
        "promptImage": [{"uri": "data:image/png;base64,aGVsbG8=", "position": "first"}],
        "model": "gen4_turbo",
        "ratio": "1280:720",
        "extra": {"tomorrow": {"image": "data:image/png;base64,aGVsbG8=", "share": 0.1}},
    },
]

SHARDS = st.integers(1, 9)
KEYS = st.lists(st.text(min_size=1), unique=True, max_size=40)


def items_of(keys: list[str]) -> list[BatchItem]:
    (made, *_), _bad = check_rows(rows_of(REQUESTS[:1]), batch_keys("b"))
    return [made.model_copy(update={"id": key, "idempotency_key": key}) for key in keys]


def order(**changes: object) -> ShardOrder:
    items, bad = check_rows(rows_of(REQUESTS), batch_keys("spring"))
    assert not bad
    fields = {
        "idempotency_key": "spring",
        "number": 2,
        "of": 4,
        "total": 12,
        "rows": tuple(map(sharding.row_of, items)),
        "base_url": "https://api.cometapi.com",
        "storage": "s3://videos/spring",
        "ledger": "0a1b",
        "max_in_flight": 5,
        "max_spend": 12.5,
        "prices": {"gen3a_turbo": Price(0.32), "gen4_turbo": Price(0.05, per_second=True)},
    }
    return ShardOrder.model_validate(fields | changes)


@given(KEYS, SHARDS, st.randoms(use_true_random=False))
def test_each_item_is_in_one_shard_wherever_it_is(keys, shards, chance: random.Random):
    """Each item is in one shard, the same one in any order and among any other items."""
    items = items_of(keys)
    parts = sharding.split(items, shards)
    assert len(parts) == shards
    assert sorted(item.id for part in parts for item in part) == sorted(keys)
    shuffled = chance.sample(items, len(items))
    for part, others in zip(parts, sharding.split(shuffled[::2], shards), strict=True):
        assert {item.id for item in others} <= {item.id for item in part}
        assert part == [item for item in items if item in part]


def test_a_shard_is_the_same_for_ever():
    """The shard of a key does not change with the version of Python or of this package."""
    assert [sharding.shard_of(f"spring/sku-{n}", 4) for n in range(8)] == [1, 1, 3, 2, 1, 1, 0, 2]


def test_shards_are_of_about_one_size():
    """No shard of 10,000 items is a tenth larger than its share."""
    keys = [f"spring/sku-{n}" for n in range(10_000)]
    sizes = [len(part) for part in sharding.split(items_of(keys), 4)]
    assert max(sizes) < 1.1 * 2_500


@given(st.integers(1, 500), SHARDS)
def test_a_limit_is_shared_completely(total, shards):
    """The parts of a limit add up to it, and differ by one at most."""
    parts = sharding.share(total, shards)
    assert sum(parts) == total
    assert len(parts) == shards
    assert max(parts) - min(parts) <= 1


def test_an_order_is_read_as_it_was_written():
    """The items of an order have the same keys, requests and fingerprints, signed URLs included."""
    written = order()
    digest, content = written.packed()
    read = ShardOrder.unpack(content, digest)
    assert (read, read.name) == (written, "2/4")
    items, _bad = check_rows(rows_of(REQUESTS), batch_keys("spring"))
    assert read.items() == items
    assert [one.request.to_wire() for one in read.items()] == [
        one.request.to_wire() for one in items
    ]


def test_an_order_is_known_by_its_digest():
    """Equal orders have one digest, and another limit or account makes another one."""
    assert order().packed()[0] == order().packed()[0]
    changes = ({"max_spend": 13.0}, {"storage": "s3://elsewhere"}, {"credentials": "prod"})
    assert len({order(**one).packed()[0] for one in ({}, *changes)}) == 4


@pytest.mark.parametrize("harm", ["another", "cut", "no gzip"])
def test_a_file_that_is_not_the_order_is_refused(harm):
    """A file with other content is not taken for the order."""
    digest, content = order().packed()
    assert sharding.order_name(digest) != sharding.results_name(digest, "run")
    files = {"another": order(total=13).packed()[1], "cut": content[:-9], "no gzip": b"{}"}
    with pytest.raises(StorageUnavailable, match="is not the order of this shard"):
        ShardOrder.unpack(files[harm], digest)


def test_an_order_shows_no_request():
    """The repr of an order has none of the URLs and data URIs of its requests."""
    assert "example.com" not in repr(order())


def result(outcome: Outcome, error: str | None = None, message: str = "") -> ItemResult:
    return ItemResult(id="a", outcome=outcome, error=error, message=message)


FAILED = result(Outcome.FAILED, "GenerationFailed", "moderated")


@pytest.mark.parametrize(
    ("results", "most", "reason"),
    [
        ([], 0, None),
        ([result(Outcome.STORED), FAILED], None, None),
        ([FAILED], 1, None),
        ([FAILED, result(Outcome.UNCERTAIN)], 1, "2 items failed, but at most 1 may fail"),
        ([result(Outcome.FAILED, "QuotaExceeded", "empty")], None, "the account cannot buy more"),
        ([FAILED, result(Outcome.FAILED, "QuotaExceeded")], 0, "the account cannot buy more"),
        ([result(Outcome.WAITING), result(Outcome.RUNNING), result(Outcome.NOT_BOUGHT)], 0, None),
    ],
)
def test_the_shards_stop_for_the_reasons_of_a_batch(results, most, reason):
    """Failures of all shards count together, and an account that cannot pay stops all of them."""
    found = sharding.reason_to_stop_shards(results, most)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([FAILED, result(Outcome.STORED)], None),
        ([result(Outcome.NOT_BOUGHT, None, f"{EXCEEDS_LIMIT} (1 of 1)")], None),
        ([FAILED, result(Outcome.NOT_BOUGHT, None, "not reached")], "not reached"),
    ],
)
def test_a_limit_is_no_gap(results, reason):
    """A spending limit that is reached is no reason to call a batch failed; others are."""
    assert sharding.reason_of_gap(results) == reason


@pytest.mark.parametrize(
    ("state", "outcome", "error"),
    [
        (None, Outcome.NOT_BOUGHT, None),
        (State.REJECTED, Outcome.NOT_BOUGHT, None),
        (State.RESUBMIT_ALLOWED, Outcome.NOT_BOUGHT, None),
        (State.CLAIMED, Outcome.UNCERTAIN, "SubmissionUncertain"),
        (State.UNCERTAIN, Outcome.UNCERTAIN, "SubmissionUncertain"),
        (State.SUBMITTED, Outcome.FAILED, "GenerationTimeout"),
        (State.SUCCEEDED, Outcome.FAILED, "GenerationTimeout"),
        (State.FAILED, Outcome.FAILED, "GenerationFailed"),
    ],
)
def test_what_a_shard_left_behind_is_in_the_ledger(state, outcome, error):
    """An item of a shard that died counts as bought unless the ledger shows that it is free."""
    (item,) = items_of(["sku-17"])
    unsent = {None, State.REJECTED, State.RESUBMIT_ALLOWED, State.CLAIMED, State.UNCERTAIN}
    task_id = None if state in unsent else "task-1"
    found = sharding.left_behind(item, state and entry(state, task_id=task_id), "shard 2/4 ended")
    assert (found.outcome, found.error, found.task_id) == (outcome, error, task_id)
    assert (found.message == "shard 2/4 ended") == (state is not State.FAILED)


def test_results_are_read_line_by_line():
    """The lines that a shard wrote are its results."""
    rows = [FAILED, result(Outcome.STORED)]
    lines = "\n".join(row.model_dump_json() for row in rows).encode()
    assert sharding.read_rows(lines) == rows
    with pytest.raises(ValueError, match="JSON"):
        sharding.read_rows(lines[:-5])
