# SPDX-License-Identifier: Apache-2.0
"""Entries that a ledger has lost are restored from stored videos."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cometapi.runway import State, StorageError
from prefect_cometapi.runway.ledger.purchase import buy_once
from prefect_cometapi.runway.ledger.rebuild import entries_of, missing_claims, rebuild
from prefect_cometapi.runway.storage.folder import FolderStorage

from ..factories import BASE, Service, intent, put, video

S = State
LEDGER = "a" * 32


def sidecar(key: str = "sku-17", name: str = "a", **changes: Any) -> dict[str, Any]:
    """Make the JSON file beside a stored video."""
    return {
        "idempotency_key": key,
        "task_id": f"task-{key}",
        "submitted_at": "2026-11-21T09:30:00Z",
        "route": "image_to_video",
        "model": "gen4_turbo",
        "fingerprint": "a" * 64,
        "request": {"promptText": "slow zoom", "duration": 5},
        "claim": "c1",
        "base_url": BASE,
        "polls": 3,
        "waited": 61.5,
        "stored_at": "2026-11-21T09:31:30Z",
        "billed_seconds": 5.0,
        "cost": 0.25,
        "charges": 2,
        "serial": 4,
        "ledger": LEDGER,
        "video": video(name).model_dump(mode="json"),
        **changes,
    }


def folder(path: Path, *sidecars: dict[str, Any]) -> FolderStorage:
    """Make a storage with these files."""
    for number, content in enumerate(sidecars):
        (path / f"{number}.json").write_text(json.dumps(content))
    return FolderStorage(path)


async def rebuilt(ledger, storage):
    return await rebuild(ledger, storage, location="/videos", base_url=BASE)


async def test_a_stored_video_brings_its_purchase_back(ledger, tmp_path):
    """The entry has its cost and its videos, and its key is not bought again."""
    found = await rebuilt(ledger, folder(tmp_path, sidecar(ledger="another")))
    assert (found.restored, found.known, found.videos) == (["sku-17"], 0, 1)
    there = await ledger.get("sku-17")
    assert (there.state, there.task_id, there.storage) == (S.STORED, "task-sku-17", "/videos")
    assert (there.charges, there.cost, there.billed_seconds, there.serial) == (2, 0.25, 5.0, None)
    assert (there.waited, there.polls) == (61.5, 3)
    assert there.videos == {"/videos": (video("a"),)}
    service = Service()
    again = await buy_once(ledger, intent(), service.post, run="r")
    assert (again.task_id, service.posts) == ("task-sku-17", 0)


async def test_a_sidecar_without_a_number_is_read_too(ledger, tmp_path):
    """Early versions wrote sidecars without a number."""
    early = {name: value for name, value in sidecar().items() if name not in {"serial", "ledger"}}
    found = await rebuilt(ledger, folder(tmp_path, early))
    assert (found.restored, found.serials) == (["sku-17"], {})


async def test_several_videos_of_one_purchase_come_back_together(ledger, tmp_path):
    """The videos are in the order of their names."""
    storage = folder(tmp_path, sidecar(name="b"), sidecar(name="a"))
    assert (await rebuilt(ledger, storage)).restored == ["sku-17"]
    assert (await ledger.get("sku-17")).videos["/videos"] == (video("a"), video("b"))


async def test_rebuilding_again_changes_nothing(ledger, tmp_path):
    """Known entries stay unchanged."""
    storage = folder(tmp_path, sidecar(), sidecar("sku-18"))
    await rebuilt(ledger, storage)
    before = await ledger.entries()
    again = await rebuilt(ledger, storage)
    assert (again.restored, again.known) == ([], 2)
    assert await ledger.entries() == before


@pytest.mark.parametrize("state", [S.UNCERTAIN, S.REJECTED, S.RESUBMIT_ALLOWED, S.WRITTEN_OFF])
async def test_a_key_without_an_id_gets_the_id_of_its_video(ledger, tmp_path, state):
    """The older copy had the claim, but not its outcome."""
    await put(ledger, state)
    assert (await rebuilt(ledger, folder(tmp_path, sidecar()))).restored == ["sku-17"]
    there = await ledger.get("sku-17")
    assert (there.state, there.task_id) == (S.STORED, "task-sku-17")


async def test_a_key_that_stands_for_another_purchase_by_now_keeps_it(ledger, tmp_path):
    """The older purchase is recorded beside the newer one."""
    await put(ledger, S.SUBMITTED, task_id="task-new")
    found = await rebuilt(ledger, folder(tmp_path, sidecar()))
    assert found.renamed == {"sku-17": "sku-17+task-sku-17"}
    assert (await ledger.get("sku-17")).task_id == "task-new"
    assert (await ledger.get("sku-17+task-sku-17")).state is S.STORED


async def test_what_is_no_sidecar_is_left_alone_and_what_is_broken_is_named(ledger, tmp_path):
    """One broken file does not hide the others."""
    storage = folder(tmp_path, sidecar(), {"results": []}, sidecar("sku-18", submitted_at="?"))
    (tmp_path / "cut.json").write_text('{"idempotency_key": ')
    (tmp_path / "list.json").write_text("[1]")
    found = await rebuilt(ledger, storage)
    assert found.restored == ["sku-17"]
    assert found.unreadable == ["cut.json", "sku-18"]


async def test_a_storage_that_cannot_be_listed_says_so(ledger):
    """The error says how to fix it."""

    class Silent:
        def names(self, folder: str = "") -> None:
            return None

    storage: Any = Silent()
    with pytest.raises(StorageError, match="name it by its URL"):
        await rebuilt(ledger, storage)


def test_an_early_sidecar_is_read_with_what_it_has():
    """A sidecar without ledger data counts as one purchase of the length of its video."""
    names = ("claim", "base_url", "billed_seconds", "cost", "charges", "serial", "ledger")
    early = {name: value for name, value in sidecar().items() if name not in names}
    (entry,), bad = entries_of([early], location="/v", base_url=BASE, identity=LEDGER)
    assert (entry.base_url, entry.charges, entry.billed_seconds) == (BASE, 1, 5.0)
    assert bad == []


def test_a_serial_counts_only_in_its_own_ledger():
    """Serial numbers of another ledger are ignored."""
    both = [sidecar(), sidecar("sku-18", ledger="b" * 32)]
    entries, _ = entries_of(both, location="/v", base_url=BASE, identity=LEDGER)
    assert {entry.idempotency_key: entry.serial for entry in entries} == {
        "sku-17": 4,
        "sku-18": None,
    }


@given(st.integers(0, 30), st.integers(0, 30), st.sets(st.integers(1, 40)), st.data())
def test_claims_that_nobody_knows_are_counted(last, highest, known, data):
    """The missing claims are those between the ledger's newest and the newest one known."""
    in_ledger = data.draw(st.sets(st.sampled_from(sorted(known)))) if known else set()
    missing = missing_claims(last, highest, in_ledger=in_ledger, in_sidecars=known - in_ledger)
    assert missing == sum(1 for one in range(last + 1, highest + 1) if one not in known)
