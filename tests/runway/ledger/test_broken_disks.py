# SPDX-License-Identifier: Apache-2.0
"""Nothing is bought while the ledger's disk is full, read-only, missing or corrupted.

Full disks are real file systems without any space left.
"""

import asyncio
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_cometapi.runway import (
    Ledger,
    LedgerOutdated,
    LedgerUnavailable,
    State,
    SubmissionUncertain,
)
from prefect_cometapi.runway.ledger.entry import GenerationKind
from prefect_cometapi.runway.ledger.purchase import buy_once

from ..factories import Service, Told, buy, finished, intent, put, until

S = State
NOBODY = 65534
PAGE = 4096

HAS_ITS_TURN = """
import asyncio, sys
from prefect_cometapi.runway import Ledger

async def work():
    async with Ledger(sys.argv[1], lease=0.3).leases.hold_exclusively("before", "another") as entry:
        assert "|another" in entry.owner

asyncio.run(work())
"""


@pytest.fixture
async def on_disk(small_disk):
    """Return a small disk and a ledger in use on it."""
    disk = small_disk(1000)
    ledger = Ledger(f"sqlite:///{disk.folder}/ledger.db")
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    yield disk, ledger
    await ledger.database.close()


async def test_a_new_ledger_on_a_full_disk_stops_before_anything_is_sent(small_disk):
    """The error says how to help, and the same ledger works once there is space."""
    disk, service = small_disk(1000), Service()
    disk.fill()
    ledger = Ledger(f"sqlite:///{disk.folder}/ledger.db")
    with pytest.raises(LedgerUnavailable, match="is full; make room on its disk") as caught:
        await buy(ledger, service)
    assert "nothing was charged" in str(caught.value)
    assert service.posts == 0
    disk.make_room()
    assert (await buy(ledger, service)).task_id == "task-1"
    await ledger.database.close()


def refusals_of(ledger: Ledger, monkeypatch) -> asyncio.Event:
    """Return an event that is set once a change is refused."""
    change, refused = ledger._change, asyncio.Event()

    async def watched(*arguments, **named):
        try:
            return await change(*arguments, **named)
        except LedgerUnavailable:
            refused.set()
            raise

    monkeypatch.setattr(ledger, "_change", watched)
    return refused


async def test_an_id_that_finds_the_disk_full_is_recorded_as_soon_as_there_is_room(
    on_disk, monkeypatch
):
    """The generation is paid for, so recording its id is retried."""
    disk, ledger = on_disk
    service, told = Service().silent(), Told()
    buying = asyncio.create_task(buy(ledger, service, warn=told))
    await service.asked.wait()
    disk.fill()
    refused = refusals_of(ledger, monkeypatch)
    service.answer.set()
    await refused.wait()
    disk.make_room()
    assert (await buying).task_id == "task-1"
    assert (await ledger.get("sku-17")).task_id == "task-1"
    assert told == []


async def test_an_id_that_a_full_disk_keeps_refusing_is_told_and_never_bought_again(on_disk):
    """The run continues, the warning says how to record the id, and the key is uncertain."""
    disk, ledger = on_disk
    ledger.database.retry_timeout = 0.3
    service, told = Service().silent(), Told()
    buying = asyncio.create_task(buy(ledger, service, wish=intent("sku 17"), warn=told))
    await service.asked.wait()
    disk.fill()
    service.answer.set()
    bought = await buying
    assert (bought.state, bought.task_id) == (S.SUBMITTED, "task-1")
    (words,) = told
    assert "disk is full" in words
    assert "prefect-cometapi ledger adopt 'sku 17' task-1" in words
    with pytest.raises(LedgerUnavailable):
        await buy(ledger, service, wish=intent("sku 17"))
    disk.make_room()
    with pytest.raises(SubmissionUncertain):
        await buy(ledger, service, wish=intent("sku 17"))
    assert await ledger.mark_succeeded(
        bought.submission(), finished()
    )  # as the run does at its end
    assert (await buy(ledger, service, wish=intent("sku 17"))).task_id == "task-1"
    assert service.posts == 1


async def test_a_lease_that_a_full_disk_does_not_release_lapses(on_disk):
    """The work ends normally, and another process continues although this one is alive."""
    disk, _ = on_disk
    url = f"sqlite:///{disk.folder}/ledger.db"
    ledger: Any = Ledger(url, lease=0.3)
    async with ledger.leases.hold_exclusively("before", "run") as entry:
        assert entry
        disk.fill()
    disk.make_room()
    assert (await ledger.get("before")).owner == entry.owner
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", HAS_ITS_TURN, url)
    async with asyncio.timeout(20):
        assert await other.wait() == 0
    await ledger.database.close()


async def test_a_claim_whose_lease_could_not_be_renewed_is_not_bought_again(on_disk):
    """On a disk that is full for longer than a lease, other runs wait."""
    disk, _ = on_disk
    url = f"sqlite:///{disk.folder}/ledger.db"
    ledger = Ledger(url, lease=0.3)
    elsewhere: Any = Ledger(url)
    service = Service().silent()
    buying = asyncio.create_task(buy(ledger, service))
    await service.asked.wait()
    disk.fill()

    async def lapsed() -> bool:
        return (await elsewhere.get("sku-17")).lease_left < 0

    async def is_renewed() -> bool:
        return not await lapsed()

    await until(lapsed)
    disk.make_room()
    wanting = asyncio.create_task(buy(elsewhere, service))
    await until(is_renewed)
    service.answer.set()
    assert (await buying).task_id == (await wanting).task_id == "task-1"
    assert service.posts == 1
    for each in (ledger, elsewhere):
        await each.database.close()


async def test_a_disk_that_may_only_be_read_stops_before_anything_is_sent(on_disk):
    """A read-only disk, as after a disk error, stops purchases until it can be written again."""
    disk, ledger = on_disk
    service = Service()
    await ledger.database.close()
    disk.only_read(True)
    with pytest.raises(LedgerUnavailable, match="make it writable"):
        await buy(ledger, service)
    assert service.posts == 0
    disk.only_read(False)
    assert (await buy(ledger, service)).task_id == "task-1"


def test_a_file_that_could_only_be_read_for_a_while_is_written_again():
    """A process that runs for weeks does not need a restart."""
    reader, writer = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        file, service = Path(folder) / "ledger.db", Service()
        ledger = Ledger(f"sqlite:///{file}")
        asyncio.run(put(ledger, S.SUBMITTED, "before", task_id="t"))
        asyncio.run(ledger.database.close())

        async def work() -> None:
            again = Ledger(f"sqlite:///{file}")
            file.chmod(0o400)
            with pytest.raises(LedgerUnavailable, match="readonly database; make it writable"):
                await buy(again, service)
            assert service.posts == 0
            for each in Path(folder).glob("ledger.db*"):
                each.chmod(0o600)
            writer.send((await buy(again, service)).task_id)

        def child() -> None:
            file.chmod(0o400)
            if os.access(file, os.W_OK):  # root can write anywhere, except in some containers
                for path in (Path(folder), *Path(folder).glob("ledger.db*")):
                    os.chown(path, NOBODY, -1)
                os.setegid(NOBODY)
                os.seteuid(NOBODY)
            asyncio.run(work())

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(30)
        assert reader.poll(0)
        assert reader.recv() == "task-1"


@pytest.fixture
async def in_use(tmp_path):
    """Return a ledger in use, in its own folder."""
    folder = tmp_path / "books"
    folder.mkdir(exist_ok=True)
    ledger = Ledger(f"sqlite:///{folder}/ledger.db")
    await put(ledger, S.SUBMITTED, "before", task_id="t")
    yield folder, ledger
    await ledger.database.close()


@pytest.mark.parametrize("key", ["before", "sku-17"])
async def test_a_ledger_that_was_deleted_while_in_use_buys_nothing(in_use, key):
    """Data written to a deleted file could never be read again."""
    folder, ledger = in_use
    service = Service()
    shutil.rmtree(folder)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="was deleted or moved away") as caught:
            await buy(ledger, service, wish=intent(key))
        assert str(folder) in caught.value.message
        assert "nothing was charged" in str(caught.value)
    assert service.posts == 0
    assert not folder.exists()  # a new, empty ledger would buy again


async def test_a_ledger_that_comes_back_is_used_again(in_use, tmp_path):
    """The ledger works again when its disk is mounted again."""
    folder, ledger = in_use
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(LedgerUnavailable):
        await ledger.get("before")
    (tmp_path / "elsewhere").rename(folder)
    assert (await ledger.get("before")).task_id == "t"


async def test_a_backup_that_is_put_in_place_while_in_use_is_what_counts(in_use):
    """All processes read the same restored file from then on."""
    folder, ledger = in_use
    backup = folder / "backup.db"
    with sqlite3.connect(folder / "ledger.db") as source, sqlite3.connect(backup) as copy:
        source.backup(copy)
    await put(ledger, S.SUBMITTED, "after", task_id="t2")
    for left in folder.glob("ledger.db-*"):
        left.unlink()
    backup.rename(folder / "ledger.db")
    assert await ledger.get("after") is None
    assert (await ledger.get("before")).task_id == "t"


async def test_a_ledger_that_is_deleted_before_the_id_comes_leaves_it_with_the_run(in_use):
    """The warning contains the id and the location, and no new ledger is made."""
    folder, ledger = in_use
    ledger.database.retry_timeout = 0.3
    service, told = Service().silent(), Told()
    buying = asyncio.create_task(buy(ledger, service, warn=told))
    await service.asked.wait()
    shutil.rmtree(folder)
    service.answer.set()
    assert (await buying).task_id == "task-1"
    assert "was deleted or moved away" in told[0]
    assert "ledger adopt sku-17 task-1" in told[0]
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["zeros", "noise", "half noise"])
@pytest.mark.heavy
async def test_a_corrupted_page_never_makes_a_key_look_free(tmp_path, damage):
    """The key is found, or the error says what to do and nothing is bought."""
    path, dice = tmp_path / "ledger.db", random.Random(damage)
    ledger = Ledger(f"sqlite:///{path}")
    for number in range(40):
        await put(ledger, S.SUBMITTED, f"k{number}", task_id=f"t{number}")
    await ledger.database.close()
    whole, service, told = path.read_bytes(), Service(), set()
    for start in range(0, len(whole), PAGE):
        page = bytes(PAGE) if damage == "zeros" else dice.randbytes(PAGE)
        kept = PAGE // 2 if damage == "half noise" else 0
        bad = whole[start : start + kept] + page[kept:]
        path.write_bytes(whole[:start] + bad + whole[start + PAGE :])
        corrupted = Ledger(f"sqlite:///{path}")
        for number in range(0, 40, 4):
            try:
                found = await buy_once(corrupted, intent(f"k{number}"), service.post, run="r")
            except (LedgerUnavailable, LedgerOutdated) as error:
                told.add(str(error))
            else:
                assert found.task_id == f"t{number}"
        await corrupted.database.close()
    assert service.posts == 0
    assert told
    assert all("in its place" in one and "put " in one for one in told)


@pytest.mark.parametrize("damage", ["identity = 'not hex'", "serial_floor = x'ff'"])
async def test_a_ledger_whose_number_of_claims_is_corrupted_buys_nothing(
    file_ledger, tmp_path, damage
):
    """An older copy of it could not be told from a newer one any more."""
    await put(file_ledger, S.SUBMITTED, task_id="t")
    await file_ledger.database.close()
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute(f"UPDATE cometapi_ledger_version SET {damage}")
    service, corrupted = Service(), Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with pytest.raises(LedgerUnavailable) as caught:
        await buy_once(corrupted, intent("new"), service.post, run="r")
    assert "do not delete it" in str(caught.value)
    assert service.posts == 0
    await corrupted.database.close()


async def test_an_entry_with_corrupted_words_is_told_without_them(file_ledger, tmp_path):
    """The database does not notice a flipped bit in a text, and the entry is not guessed."""
    await put(file_ledger, S.SUBMITTED, task_id="t")
    service = Service()
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute("UPDATE cometapi_generations SET state = 'submytted'")
    with pytest.raises(LedgerUnavailable, match="is corrupted: state\n") as caught:
        await buy(file_ledger, service)
    assert "do not delete it" in str(caught.value)
    assert "may have been bought" in str(caught.value)
    assert "submytted" not in str(caught.value)
    assert service.posts == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("outputs", "'[cut off'"),
        ("videos", "x'ff'"),
        ("request", "17"),
        ("request", """CAST(x'7b2261223a22ff227d' AS TEXT)"""),
        ("created_at", "'2026-02-31 10:00:00'"),
        ("finished_at", "17"),
        ("note", "CAST(x'ff' AS TEXT)"),
    ],
)
async def test_an_entry_that_cannot_even_be_decoded_holds_up_no_other(
    file_ledger, tmp_path, column, value
):
    """The corrupted entry is reported by its key, and the others are found and finished."""
    await put(file_ledger, S.SUBMITTED, "odd", task_id="t1")
    await put(file_ledger, S.SUBMITTED, "good", task_id="t2")
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute(
            f"UPDATE cometapi_generations SET {column} = {value} WHERE idempotency_key = 'odd'"
        )
    corrupted: list[LedgerUnavailable] = []
    found = await file_ledger.entries(on_corrupted=corrupted.append)
    assert [entry.idempotency_key for entry in found] == ["good"]
    (told,) = corrupted
    assert f"the row of key 'odd' is corrupted: {column}" in told.message
    with pytest.raises(LedgerUnavailable, match="is corrupted"):
        await file_ledger.get("odd")


async def test_a_row_whose_state_is_none_is_told_to_who_looks_for_any(file_ledger, tmp_path):
    """The collector would otherwise never see the generation."""
    await put(file_ledger, S.SUBMITTED, "odd", task_id="t1")
    await put(file_ledger, S.SUBMITTED, "good", task_id="t2")
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute(
            "UPDATE cometapi_generations SET state = 'submytted' WHERE idempotency_key = 'odd'"
        )
    corrupted: list[LedgerUnavailable] = []
    found = await file_ledger.entries(states=[S.SUBMITTED], on_corrupted=corrupted.append)
    assert [entry.idempotency_key for entry in found] == ["good"]
    (told,) = corrupted
    assert "the row of key 'odd' is corrupted: state" in told.message


async def test_a_key_that_cannot_be_decoded_is_told_as_it_is(file_ledger, tmp_path):
    """The error shows the raw key, so that a person can find and fix it."""
    await put(file_ledger, S.SUBMITTED, "odd", task_id="t1")
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute("UPDATE cometapi_generations SET idempotency_key = CAST(x'ff6f' AS TEXT)")
    with pytest.raises(LedgerUnavailable, match=r"xffo.* is corrupted: idempotency_key"):
        await file_ledger.entries()


async def test_how_long_generations_took_is_told_without_those_whose_times_are_corrupted(
    file_ledger, tmp_path
):
    """The other durations still determine the poll schedule."""
    now = datetime.now(UTC)
    for key in ("odd", "good"):
        await put(file_ledger, S.STORED, key, submitted_at=now, finished_at=now)
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute(
            "UPDATE cometapi_generations SET finished_at = '?' WHERE idempotency_key = 'odd'"
        )
    wanted = intent()
    assert wanted.route
    assert wanted.model
    kind = GenerationKind(wanted.base_url, wanted.route, wanted.model, None)
    assert len(await file_ledger.durations(kind, 10)) == 1
