# SPDX-License-Identifier: Apache-2.0
"""The ledger keeps every generation, and each change is atomic and made at most once."""

import asyncio
import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_cometapi.runway import (
    GenerationCancelled,
    GenerationFailed,
    LedgerUnavailable,
    State,
    Submission,
)
from prefect_cometapi.runway.ledger.entry import ALLOWED_PREDECESSORS
from prefect_cometapi.runway.ledger.statement import Sql

from ..factories import (
    BASE,
    MOMENT,
    SIGNED,
    change,
    dead_owner,
    distant_owner,
    finished,
    intent,
    put,
    set_columns,
    video,
)

S = State


async def test_a_key_has_one_entry(ledger):
    """A second claim of the key gets nothing, and the first claim gets its entry again."""
    first = await ledger._insert(intent(), S.CLAIMED, "claim-1", attempts=1, owner="h")
    assert await ledger._insert(intent(model="other"), S.CLAIMED, "claim-2") is None
    again = await ledger._insert(intent(), S.CLAIMED, "claim-1", attempts=1, owner="h")
    assert (again.claim, again.created_at) == (first.claim, first.created_at)
    there = await ledger.get("sku-17")
    assert (there.claim, there.model, there.attempts) == ("claim-1", "gen4_turbo", 1)


async def test_of_twenty_claims_at_once_one_is_made(ledger):
    """The database decides which claim wins."""
    made = await asyncio.gather(
        *[ledger._insert(intent(), S.CLAIMED, f"claim-{number}") for number in range(20)]
    )
    assert len([entry for entry in made if entry]) == 1


async def test_a_key_is_told_apart_from_every_other(ledger):
    """Letters, case and spaces distinguish keys."""
    keys = ["a", "A", " a", "a ", "ä", "a\u0308", "%", "_", "a'b", 'a"b', "鍵", "😀"]
    for key in keys:
        assert await ledger._insert(intent(key), S.SUBMITTED, "c", task_id=f"id of {key}")
    for key in keys:
        assert (await ledger.get(key)).task_id == f"id of {key}"
    assert await ledger.get("b") is None


async def test_what_was_written_is_read(ledger):
    """Every field of an intent is read back, including numbers and nested JSON."""
    wish = intent(
        "k",
        request={"a": [1, 2.5, None, True, {"ü": "\0 \ud800 😀"}], "promptText": ""},
        billed_seconds=7.25,
        storage="s3://bucket/videos",
        credentials="cometapi-credentials/prod",
        flow_run_id="0190a1b2",
    )
    await ledger._insert(wish, S.SUBMITTED, "c", task_id="t", attempts=3)
    there = await ledger.get("k")
    assert {name: getattr(there, name) for name in wish.model_dump()} == wish.model_dump()
    assert (there.attempts, there.outputs, there.videos) == (3, (), {})
    assert (there.owner, there.lease_left, there.failure_code) == (None, None, "")


@pytest.mark.parametrize("before", State)
async def test_a_change_is_made_only_where_it_may_follow(ledger, before):
    """The database enforces the allowed transitions for each pair of states."""
    for after in State:
        key = f"{before} to {after}"
        was = await put(ledger, before, key, task_id="t")
        changed = await change(ledger, key, after, note="new")
        there = await ledger.get(key)
        if before in ALLOWED_PREDECESSORS[after]:
            assert changed == there
            assert (there.state, there.note) == (after, "new")
            assert there.changed_at >= was.changed_at
        else:
            assert changed is None
            assert there == was


async def test_of_two_changes_at_once_one_is_made(ledger):
    """Both changes were based on the same entry, and the second one fails."""
    for number in range(10):
        key = f"k{number}"
        seen = await put(ledger, S.UNCERTAIN, key)
        made = await asyncio.gather(
            ledger.mark_claimed(seen, "one", "h1", {}),
            ledger.mark_claimed(seen, "two", "h2", {}),
            ledger.mark_resubmit_allowed(seen, ""),
        )
        assert len([entry for entry in made if entry]) == 1


async def test_a_change_needs_what_it_was_decided_on(ledger):
    """A change needs the state and claim that were read, or the claim that owns the entry."""
    seen = await put(ledger, S.UNCERTAIN)
    again = await ledger.mark_claimed(seen, "new", "h", {})
    unknown = again.model_copy(update={"idempotency_key": "unknown"})
    assert await ledger.mark_adopted(seen, "other", "t", {}, checked=True) is None
    for claimed in (seen, unknown):
        assert await ledger.mark_submitted(claimed, "t", MOMENT, None) is None
    changed = await ledger.mark_submitted(again, "t", MOMENT, None)
    assert (changed.state, changed.task_id) == (S.SUBMITTED, "t")


async def test_a_change_with_an_id_keeps_another_id(ledger):
    """An id is written if the entry has that id, or has none under the claim that got it."""
    claim = (await put(ledger, S.UNCERTAIN, "a")).claim
    await put(ledger, S.UNCERTAIN, "d")
    await put(ledger, S.SUBMITTED, "b", task_id="task-1")
    await put(ledger, S.SUBMITTED, "c", task_id="task-2")

    def bought(key: str) -> Submission:
        return Submission(idempotency_key=key, task_id="task-1", submitted_at=MOMENT, claim=claim)

    made = [await ledger.mark_succeeded(bought(key), finished()) for key in "abcd"]
    assert [entry and entry.task_id for entry in made] == ["task-1", "task-1", None, None]
    assert (await ledger.get("c")).task_id == "task-2"


async def test_a_claim_whose_answer_was_lost_is_known_again(ledger):
    """Repeating the same claim returns its entry."""
    seen = await put(ledger, S.UNCERTAIN)
    first = await ledger.mark_claimed(seen, "mine", "h", {"attempts": 2})
    again = await ledger.mark_claimed(seen, "mine", "h", {"attempts": 2})
    assert (again.claim, again.attempts) == (first.claim, first.attempts) == ("mine", 2)
    assert await ledger.mark_claimed(seen, "theirs", "h", {}) is None


async def test_a_lease_begins_and_ends_with_its_holder(ledger):
    """The length of a lease is measured by the database's clock."""
    made = await put(ledger, S.CLAIMED, owner="h")
    assert made.lease_left
    assert 55 < made.lease_left <= 60
    changed = await change(ledger, "sku-17", S.UNCERTAIN, owner=None)
    assert (changed.owner, changed.lease_left) == (None, None)
    taken = await ledger.leases.acquire("sku-17", "other")
    assert (taken.owner, taken.state) == ("other", S.UNCERTAIN)
    assert await ledger.leases.acquire("unknown", "other") is None
    await ledger.leases.release("sku-17", "somebody else", "note")
    assert (await ledger.get("sku-17")).owner == "other"
    await ledger.leases.release("sku-17", "other", "done")
    there = await ledger.get("sku-17")
    assert (there.owner, there.lease_left, there.note) == (None, None, "done")


async def test_who_works_is_living_and_who_is_dead_is_not(ledger):
    """A process elsewhere is alive as long as its lease, a local one as long as it exists."""
    for holder, living in [(distant_owner(), True), (dead_owner(), False), (None, False)]:
        there = await put(ledger, S.CLAIMED, str(holder), owner=holder)
        assert await ledger.leases.is_active(there) is living
        over = there.model_copy(update={"lease_left": -0.1})
        assert not await ledger.leases.is_active(over)


async def test_entries_come_newest_first_and_filtered(ledger):
    """Entries are filtered by state, time and run, up to a limit."""
    for number in range(6):
        state = S.SUBMITTED if number % 2 else S.STORED
        wish = intent(f"k{number}", flow_run_id="run-1" if number < 3 else "run-2")
        await ledger._insert(wish, state, "c", task_id=str(number))
    every = await ledger.entries()

    async def keys(**filters) -> str:
        return "".join(entry.idempotency_key[1] for entry in await ledger.entries(**filters))

    assert [entry.idempotency_key for entry in every] == ["k5", "k4", "k3", "k2", "k1", "k0"]
    assert await keys(states=[S.SUBMITTED]) == "531"
    assert await keys(states=[S.SUBMITTED, S.STORED], limit=2) == "54"
    assert await keys(states=[S.WRITTEN_OFF]) == ""
    assert await keys(flow_run_id="run-1") == "210"
    assert await keys(flow_run_id="run-1", states=[S.SUBMITTED]) == "1"
    middle = every[2].created_at
    assert await keys(since=middle) == "543"
    assert await keys(since=middle.astimezone(timezone(timedelta(hours=9)))) == "543"
    assert await keys(since=datetime.now(UTC) + timedelta(hours=1)) == ""


async def test_an_id_is_found_at_the_service_that_gave_it(ledger):
    """The first of several entries is found, and none of another service."""
    await put(ledger, S.SUBMITTED, "a", task_id="task-1")
    await put(ledger, S.STORED, "b", task_id="task-1")
    assert (await ledger.find_by_task_id("task-1", BASE)).idempotency_key == "a"
    assert await ledger.find_by_task_id("task-1", "https://other.example.com") is None
    assert await ledger.find_by_task_id("task-2", BASE) is None


async def test_times_come_back_in_utc(ledger):
    """Times are exact to the microsecond, whatever zone they were written in."""
    moment = datetime(2026, 7, 1, 23, 30, 5, 123456, timezone(timedelta(hours=-7)))
    made = await put(ledger, S.SUBMITTED, task_id="t", submitted_at=moment, stored_at=None)
    assert made.submitted_at
    assert made.submitted_at == moment
    assert made.submitted_at.utcoffset() == timedelta(0)
    assert made.created_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - made.created_at) < timedelta(seconds=20)
    assert made.stored_at is None


async def test_text_that_no_database_takes_is_kept_as_well_as_possible(ledger):
    """NUL characters and surrogates in a message do not break the entry."""
    odd = "a\0b\ud800c"
    await put(ledger, S.CLAIMED, owner="h", attempts=1)
    changed = await change(ledger, "sku-17", S.UNCERTAIN, note=odd, failure_code=odd, owner=None)
    for kept in (changed.note, changed.failure_code):
        assert kept.startswith("a")
        assert kept.endswith("c")
    wish = intent("other", request={"promptText": odd, odd: [odd]}, storage=odd)
    assert (await ledger._insert(wish, S.CLAIMED, "c")).storage == changed.note


async def test_a_run_with_an_odd_name_can_hold_a_generation(ledger):
    """A run name with invalid characters is stored as well as possible."""
    assert await put(ledger, S.CLAIMED, owner="h:1:s:2|a\0b\ud800c")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(note=st.text(st.characters()), body=st.dictionaries(st.text(), st.text(), max_size=3))
async def test_any_text_can_be_recorded(file_ledger, note, body):
    """Any text can be stored and read as an error or as a request."""
    key = uuid4().hex
    assert await file_ledger._insert(intent(key, request=body), S.CLAIMED, "c")
    assert await change(file_ledger, key, S.UNCERTAIN, note=note)
    there = await file_ledger.get(key)
    assert there.request == body


async def test_a_success_is_recorded_with_its_polls_and_without_its_token(ledger):
    """A repeated step records the success again."""
    made = await put(ledger, S.SUBMITTED, task_id="task-1", submitted_at=datetime.now(UTC))
    for _ in range(2):
        done = await ledger.mark_succeeded(made.submission(), finished())
        assert (done.state, done.polls, done.note) == (S.SUCCEEDED, 3, "")
        assert done.waited == pytest.approx(1.5, abs=0.01)
        assert str(done.outputs[0]).startswith("https://cdn.example.com/out.mp4?<sha256:")
    async with asyncio.timeout(5):
        rows = await ledger.database.rows(Sql("SELECT * FROM cometapi_generations"))
    assert "topsecret" not in str(rows)
    assert SIGNED not in json.dumps(str(rows))
    assert (await ledger.get("sku-17")).finished().polls == 3


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GenerationFailed("no cats", code="SAFETY.INPUT.TEXT"), S.FAILED),
        (GenerationCancelled("stopped", code="CANCELLED"), S.CANCELLED),
    ],
)
async def test_a_bad_end_is_recorded_with_its_reason(ledger, error, state):
    """A recorded failure raises the same error again."""
    made = (await put(ledger, S.SUBMITTED, task_id="task-1")).submission()
    ended = await ledger.mark_failed(made, error)
    assert ended.state is state
    assert ended.finished_at
    again = ended.failure()
    assert (type(again), again.message, again.code) == (type(error), error.message, error.code)
    other = made.model_copy(update={"task_id": "task-2"})
    assert await ledger.mark_failed(other, error) is None


async def test_a_video_that_is_stored_in_a_second_place_is_kept_in_the_first(ledger):
    """Both locations are kept, and storing again replaces only the same one."""
    made = await put(ledger, S.SUCCEEDED, task_id="task-1")
    one = await ledger.mark_stored(made, "task-1", "/one", [video("a")])
    two = await ledger.mark_stored(one, "task-1", "/two", [video("b"), video("c")])
    three = await ledger.mark_stored(two, "task-1", "/one", [video("d")])
    assert three.state is S.STORED
    assert three.stored_at
    assert three.videos == {"/one": (video("d"),), "/two": (video("b"), video("c"))}
    assert three == await ledger.get("sku-17")
    assert await ledger.mark_stored(three, "task-2", "/one", []) is None


async def test_the_seconds_that_are_billed_are_measured_where_they_are_not_known(ledger):
    """Seconds that the request gave are not replaced."""
    known = await put(ledger, S.SUCCEEDED, "a", task_id="1")
    unknown = await ledger._insert(intent("b", billed_seconds=None), S.SUCCEEDED, "c", task_id="2")
    videos = [video("a", 4.0004), video("b", 6.0)]
    assert (await ledger.mark_stored(known, "1", "/a", videos)).billed_seconds == 5.0
    assert (await ledger.mark_stored(unknown, "2", "/a", videos)).billed_seconds == 10.0


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "sold"), ("outputs", None), ("videos", {"/a": [{"uri": "canary"}]})],
)
async def test_a_row_that_cannot_be_read_is_named_and_stops_what_needs_it(ledger, column, value):
    """The error names a key that is possibly bought, and shows no other columns."""
    await put(ledger, S.SUBMITTED, "odd", task_id="canary")
    await put(ledger, S.SUBMITTED, "good", task_id="t")
    await set_columns(ledger, "odd", **{column: value})
    told = f"row of key 'odd' is corrupted: {column}"
    for look in (ledger.entries(), ledger.get_many(["odd", "good"]), ledger.get("odd")):
        with pytest.raises(LedgerUnavailable, match=told) as raised:
            await look
        assert "canary" not in str(raised.value)
    assert await ledger.get("good")
