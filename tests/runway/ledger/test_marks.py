# SPDX-License-Identifier: Apache-2.0
"""A ledger that was restored from an older copy is noticed before it buys anything again."""

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import Ledger, LedgerOutdated, State, StorageError
from prefect_cometapi.runway.ledger.marks import (
    FOLDER,
    STALE,
    LedgerMark,
    MarkFile,
    highest_serial,
    ledgers_in_use,
    read_marks,
    write_mark,
)
from prefect_cometapi.runway.ledger.purchase import attach, buy_once
from prefect_cometapi.runway.storage.factory import open_storage
from prefect_cometapi.runway.storage.folder import FolderStorage

from ..factories import Service, change, intent

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
ONE, OTHER = "a" * 32, "b" * 32

marks = st.builds(
    LedgerMark,
    identity=st.sampled_from([ONE, OTHER, "c" * 32]),
    serial=st.integers(0, 50),
    written_at=st.timedeltas(timedelta(), 2 * STALE).map(lambda ago: NOW - ago),
)


async def bought(ledger: Ledger, *keys: str) -> Service:
    service = Service(*(f"task-{key}" for key in keys))
    for key in keys:
        await buy_once(ledger, intent(key), service.post, run="r")
    return service


@pytest.fixture
async def older_copy(file_url, tmp_path) -> Path:
    """Replace the ledger's file by an older copy, which has key a but not b and c."""
    file, copy = tmp_path / "ledger.db", tmp_path / "backup.db"
    ledger = Ledger(file_url)
    await bought(ledger, "a")
    shutil.copyfile(file, copy)
    await bought(ledger, "b", "c")
    await ledger.database.close()
    copy.replace(file)
    return file


async def test_an_older_copy_buys_nothing(older_copy, file_url):
    """Purchases that the older copy does not have would be paid for again."""
    ledger, service = Ledger(file_url), Service()
    for key in ("b", "d"):
        with pytest.raises(LedgerOutdated, match="has claims up to number 1, but claim 3"):
            await buy_once(ledger, intent(key), service.post, run="r")
    assert service.posts == 0
    assert [entry.idempotency_key for entry in await ledger.entries()] == ["a"]
    await ledger.database.close()


async def test_an_older_copy_still_gives_what_it_knows(older_copy, file_url):
    """Attaching an id and recording a delivery cost nothing, so they work."""
    ledger = Ledger(file_url)
    assert (await attach(ledger, intent("a"), "task-a")).task_id == "task-a"
    await ledger.database.close()


async def test_a_ledger_buys_again_once_the_user_says_so(older_copy, file_url):
    """Later claims are numbered after the forgotten ones."""
    ledger: Any = Ledger(file_url)
    await ledger.history.accept_missing(3)
    await bought(ledger, "d")
    assert (await ledger.get("d")).serial == 4
    await ledger.database.close()
    beside: Any = MarkFile(older_copy).read()
    assert beside.serial == 4


async def test_a_copy_that_is_put_in_place_under_a_running_process_is_noticed(file_url, tmp_path):
    """The claim is withdrawn, and nothing is sent."""
    file, copy = tmp_path / "ledger.db", tmp_path / "backup.db"
    ledger: Any = Ledger(file_url)
    await bought(ledger, "a")
    shutil.copyfile(file, copy)
    await bought(ledger, "b", "c")
    copy.replace(file)
    service = Service()
    with pytest.raises(LedgerOutdated):
        await buy_once(ledger, intent("b"), service.post, run="r")
    assert service.posts == 0
    there = await ledger.get("b")
    assert (there.state, there.charges, there.owner) == (State.REJECTED, 0, None)
    await ledger.database.close()


async def test_another_ledger_in_its_place_buys_nothing(older_copy, file_url, tmp_path):
    """A ledger that was deleted and created again is noticed as well."""
    older_copy.unlink()
    ledger, service = Ledger(file_url), Service()
    with pytest.raises(LedgerOutdated, match="is not the one that was there before"):
        await buy_once(ledger, intent("d"), service.post, run="r")
    assert service.posts == 0
    await ledger.history.accept_missing(0)
    await bought(ledger, "d")
    await ledger.database.close()


async def test_a_mark_of_a_storage_counts_too(ledger):
    """A mark in a storage works even if there is none beside the ledger."""
    await bought(ledger, "a")
    now = await ledger.history.mark()
    assert (await ledger.history.check_current([now])).serial == 1
    with pytest.raises(LedgerOutdated):
        await ledger.history.check_current([now.model_copy(update={"serial": 2})])
    other = now.model_copy(update={"identity": OTHER, "serial": 99})
    await ledger.history.check_current([other])


async def test_later_claims_come_after_those_that_are_missing(ledger):
    """This works on any database, once the user has accepted the unknown claims."""
    await bought(ledger, "a")
    await ledger.history.accept_missing(7)
    assert (await ledger.history.mark()).serial == 7
    await bought(ledger, "b")
    assert (await ledger.get("b")).serial == 8


async def test_claims_at_the_same_time_raise_no_alarm(ledger):
    """Two claims may get the same number, and answers may come in any order."""
    other = Ledger(ledger.database._url.text)
    service = Service()
    buying = [
        buy_once(which, intent(f"{number}"), service.post, run="r")
        for number in range(20)
        for which in (ledger, other)
    ]
    entries = await asyncio.gather(*buying)
    assert service.posts == 20
    assert all(entry.serial for entry in entries)
    await other.database.close()


async def test_a_claim_made_again_has_a_new_number(ledger):
    """A second purchase of a key also increases the serial number."""
    await bought(ledger, "a", "b")
    await change(ledger, "a", State.FAILED)
    await change(ledger, "a", State.RESUBMIT_ALLOWED)
    await bought(ledger, "a")
    assert (await ledger.get("a")).serial == 3
    assert (await ledger.history.mark()).serial == 3


@given(st.lists(marks))
def test_the_highest_serial_is_that_of_the_ledger_itself(found):
    """Marks of other ledgers are ignored."""
    own = [mark.serial for mark in found if mark.identity == ONE]
    assert highest_serial(found, ONE) == max(own, default=0)


@given(st.lists(marks))
def test_ledgers_in_use_are_others_and_lately_seen(found):
    """The newest ledger comes first, and unused ones cause no warning."""
    others = ledgers_in_use(found, ONE, NOW)
    assert all(mark.identity != ONE and NOW - mark.written_at <= STALE for mark in others)
    assert others == sorted(others, key=lambda mark: mark.written_at, reverse=True)
    left = [mark for mark in found if mark not in others]
    assert all(mark.identity == ONE or NOW - mark.written_at > STALE for mark in left)


@pytest.mark.parametrize("place", ["folder", "memory://marks"])
def test_marks_are_kept_in_a_storage(place, tmp_path):
    """A storage has one mark per ledger, which is replaced."""
    storage = FolderStorage(tmp_path / "videos") if place == "folder" else open_storage(place)
    assert read_marks(storage, ONE) == []
    for serial in (1, 7):
        write_mark(storage, LedgerMark.of(ONE, serial, "here"))
    write_mark(storage, LedgerMark.of(OTHER, 3, "there"))
    found = read_marks(storage, ONE)
    assert {(mark.identity, mark.serial) for mark in found} == {(ONE, 7), (OTHER, 3)}
    assert storage.names(FOLDER) == [f"{ONE}.json", f"{OTHER}.json"]


def test_a_storage_that_cannot_be_listed_shows_no_mark(tmp_path):
    """Other checks report whether the storage can be used."""
    (tmp_path / "file").write_text("no folder")
    storage = FolderStorage(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be listed"):
        storage.names()
    assert read_marks(storage, ONE) == []


def test_a_mark_that_cannot_be_read_is_no_mark(tmp_path):
    """A mark with any other content is ignored."""
    storage = FolderStorage(tmp_path)
    write_mark(storage, LedgerMark.of(ONE, 1, "here"))
    for name, text in ((OTHER, "nonsense"), ("../x", ""), ("c" * 32, '{"identity": "../.."}')):
        (tmp_path / FOLDER / f"{name.replace('/', '_')}.json").write_text(text)
    assert [mark.identity for mark in read_marks(storage, ONE)] == [ONE]
    beside = MarkFile(tmp_path / "ledger.db")
    beside.path.write_text("[]")
    assert beside.read() is None


def test_a_mark_beside_a_ledger_that_cannot_be_written_stops_nothing(tmp_path):
    """Without the mark, only the protection is weaker."""
    beside = MarkFile(tmp_path / "missing" / "ledger.db")
    beside.write(LedgerMark.of(ONE, 1, "here"))
    assert beside.read() is None


def test_a_mark_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    """If the name of the mark is taken by a folder, no temporary file stays."""
    (tmp_path / "ledger.db.mark").mkdir()
    beside = MarkFile(tmp_path / "ledger.db")
    beside.write(LedgerMark.of("0" * 32, 7, "sqlite"))
    assert beside.read() is None
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db.mark"]
