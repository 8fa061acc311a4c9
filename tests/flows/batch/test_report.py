# SPDX-License-Identifier: Apache-2.0
"""The final output manifest has the outcome of the whole batch."""

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from prefect_cometapi.flows.batch import report
from prefect_cometapi.flows.batch.plan import check_output
from prefect_cometapi.flows.batch.progress import BatchProgress
from prefect_cometapi.flows.batch.report import Report
from prefect_cometapi.runway import StorageUnavailable
from prefect_cometapi.runway.batch.models import ItemResult, Outcome
from prefect_cometapi.runway.batch.results import publish_results
from prefect_cometapi.runway.ledger.budget import Budget
from prefect_cometapi.runway.storage.folder import FolderStorage

from ...written_results import read_results


async def nothing_new() -> None:
    """Return no spending."""


async def test_a_slow_write_does_not_replace_the_last_one(tmp_path, monkeypatch):
    """A slow first write that ends late does not replace the final output."""
    under_way, may_go_on = threading.Event(), threading.Event()
    writes: list[Outcome] = []

    def slow_at_first(results, *place):
        if not under_way.is_set():
            under_way.set()
            may_go_on.wait(30)
        writes.append(results[0].outcome)
        return publish_results(results, *place)

    monkeypatch.setattr(report, "publish_results", slow_at_first)
    progress = BatchProgress(Budget("b/"))
    progress.begin([ItemResult(id="one", outcome=Outcome.WAITING)])
    async with Report(
        "batch", progress, nothing_new, FolderStorage(tmp_path), "out.jsonl"
    ) as writer:
        progress.put(ItemResult(id="one", outcome=Outcome.RUNNING))
        await asyncio.to_thread(under_way.wait, 30)
        progress.put(ItemResult(id="one", outcome=Outcome.STORED))
        asyncio.get_running_loop().call_later(0.1, may_go_on.set)
    assert writes == [Outcome.RUNNING, Outcome.STORED]
    assert [item.outcome for item in read_results(str(writer.output))] == [Outcome.STORED]


async def test_a_disk_that_is_full_under_the_gallery_does_not_break_the_batch(
    tmp_path, monkeypatch, caplog
):
    """A gallery that cannot be written for lack of space is only logged; the videos are stored."""

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    progress = BatchProgress(Budget("b/"))
    progress.begin([ItemResult(id="one", outcome=Outcome.STORED)])
    async with Report(
        "batch", progress, nothing_new, FolderStorage(tmp_path), "out.jsonl"
    ) as report:
        pass
    assert [item.outcome for item in read_results(str(report.output))] == [Outcome.STORED]
    assert report.gallery is None
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    ("output", "page"),
    [
        ("night.2026-11-01.jsonl", "night.2026-11-01.gallery.html"),
        ("night.2026-11-02.jsonl.gz", "night.2026-11-02.gallery.html"),
        ("night.results.parquet", "night.gallery.html"),
    ],
)
async def test_each_output_has_a_gallery_of_its_own(tmp_path, output, page):
    """Each output has a gallery of its own, even if the names begin alike."""
    progress = BatchProgress(Budget("b/"))
    progress.begin([ItemResult(id="one", outcome=Outcome.STORED)])
    async with Report("batch", progress, nothing_new, FolderStorage(tmp_path), output) as report:
        pass
    assert report.gallery == str(tmp_path / page)


@pytest.mark.parametrize("output", ["rows.jsonl", "./out/../rows.jsonl", "file://{}/rows.jsonl"])
def test_results_do_not_replace_what_was_asked_for(tmp_path, output):
    """Results are never written over the manifest, which the next run needs."""
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(StorageUnavailable, match="would overwrite the manifest"):
        check_output("rows.jsonl", output.format(tmp_path))
    check_output("rows.jsonl", "results.jsonl")
    check_output("rows.jsonl", None)
    check_output([{}], "rows.jsonl")


async def test_a_batch_that_fails_before_its_items_are_known_leaves_the_earlier_report(tmp_path):
    """A batch that ends before its items are known replaces no results by an empty report."""
    (tmp_path / "out.jsonl").write_text("earlier", encoding="utf-8")
    with pytest.raises(ConnectionError):
        async with Report(
            "batch", BatchProgress(Budget("b/")), nothing_new, FolderStorage(tmp_path), "out.jsonl"
        ):
            raise ConnectionError("the ledger is away")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "earlier"
